"""Compiled models: found under their wrapper, run uncompiled by a reference pass, refused where hooks are needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.support import runs, tiny
from trl_dpo_ext.errors import InputError


@pytest.fixture(autouse=True)
def _compiled_apart(monkeypatch) -> Iterator[None]:
    """`torch_compile` stays on in the environment of the process."""
    for name in ("BACKEND", "MODE"):
        monkeypatch.setenv(f"ACCELERATE_DYNAMO_{name}", "no" if name == "BACKEND" else "default")
    yield
    torch.compiler.reset()


def in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def wrapped(model: Any) -> Any:
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("loss", ["tdpo1", "tdpo2"])
def test_losses_of_whole_distributions_are_refused_with_torch_compile_by_the_configuration(loss: str, tmp_path) -> None:
    with pytest.raises(InputError, match=rf"{loss} cannot be used with torch_compile=True.*hooks"):
        runs.config(tmp_path, loss_type=["sigmoid", loss], torch_compile=True)


OPTIONS = [{"loss_type": "tdpo2"}, {"share_prompt": True}, {"padding_free": True}]
COMPILED = {
    "policy, in place": lambda: {"model": in_place(tiny.model()), "ref_model": tiny.model(1)},
    "policy, wrapped": lambda: {"model": wrapped(tiny.model()), "ref_model": tiny.model(1)},
    "backbone": lambda: {"model": backbone_compiled(tiny.model()), "ref_model": tiny.model(1)},
    "reference, in place": lambda: {"ref_model": in_place(tiny.model(1))},
    "reference, wrapped": lambda: {"ref_model": wrapped(tiny.model(1))},
}


def backbone_compiled(model: Any) -> Any:
    model.base_model.compile(backend="eager")
    return model


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: next(iter(option)))
@pytest.mark.parametrize("case", COMPILED)
def test_what_needs_hooks_refuses_models_that_were_compiled_before(case: str, option: dict, tmp_path) -> None:
    name = "policy" if case == "backbone" else case.split(",")[0]
    with pytest.raises(InputError, match=rf"the {name} was compiled before it was given to the trainer"):
        runs.trainer(tmp_path, **COMPILED[case](), **option)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: next(iter(option)))
def test_what_needs_hooks_refuses_accelerates_dynamo_backend(option: dict, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
    with pytest.raises(InputError, match="the dynamo backend of accelerate"):
        runs.trainer(tmp_path, ref_model=tiny.model(1), **option)


def test_compiled_layers_inside_a_backbone_are_no_obstacle(tmp_path) -> None:
    model = tiny.model()
    model.model.layers[0].compile(backend="eager")
    runs.trainer(tmp_path, model=model, ref_model=tiny.model(1), share_prompt=True)


def test_a_compiled_reference_is_described_by_the_model_inside(tmp_path) -> None:
    run = runs.trainer(tmp_path, ref_model=wrapped(tiny.model(1)))
    assert run.describe_reference().startswith("LlamaForCausalLM in float32")


def test_a_compiled_reference_fills_a_store_as_the_model_inside_does(tmp_path) -> None:
    sums = {}
    for name, reference in (("plain", tiny.model(1)), ("compiled", wrapped(tiny.model(1)))):
        run = runs.trainer(
            tmp_path / name,
            ref_model=reference,
            precompute_ref_log_probs=True,
            ref_store=str(tmp_path / name / "store"),
        )
        batch = run.data_collator([run.train_dataset[row] for row in range(4)])
        sums[name] = batch["ref_token_logps"]
    assert torch.equal(sums["plain"], sums["compiled"])
    assert sums["plain"].abs().sum() > 0


@pytest.mark.parametrize("option", ["share_prompt", "padding_free"])
def test_neftune_is_refused_where_rows_have_another_length(option: str, tmp_path) -> None:
    with pytest.raises(InputError, match=f"{option} cannot be used with neftune_noise_alpha=5.0"):
        runs.config(tmp_path, neftune_noise_alpha=5.0, **{option: True})
    runs.config(tmp_path, neftune_noise_alpha=5.0)


def test_a_policy_that_was_compiled_before_fills_a_store_with_its_own_log_probs(tmp_path) -> None:
    sums = {}
    for name, model in (("plain", tiny.model()), ("compiled", wrapped(tiny.model()))):
        folder = tmp_path / name
        run = runs.trainer(folder, model=model, precompute_ref_log_probs=True, ref_store=str(folder / "store"))
        sums[name] = run.data_collator([run.train_dataset[row] for row in range(4)])["ref_token_logps"]
    assert torch.equal(sums["plain"], sums["compiled"])
