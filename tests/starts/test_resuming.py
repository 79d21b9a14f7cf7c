"""Runs that resume from a checkpoint of another run, or from one that has lost a part."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM

from tests.starts.listing import Kind
from tests.support import runs, tiny
from tests.support.lists import lists
from trl_dpo_ext.errors import InputError

resuming = Kind("Resuming from a checkpoint")

SHORT = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], "r": 4, **settings})


def other_model() -> Any:
    return tiny.model(seed=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run that trains all weights."""
    folder = tmp_path_factory.mktemp("whole")
    runs.trained(folder, **SHORT)
    return folder / "checkpoint-1"


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run that trains an adapter."""
    folder = tmp_path_factory.mktemp("adapted")
    runs.trained(folder, peft_config=lora(lora_alpha=8), **SHORT)
    return folder / "checkpoint-1"


def resume(folder: Path, checkpoint: Path, **settings: Any) -> list[float]:
    """Resume for one step; the losses of both."""
    run = runs.trainer(folder, **{"max_steps": 2, "save_strategy": "no", "save_steps": 1, **settings})
    run.train(resume_from_checkpoint=str(checkpoint))
    return [line["loss"] for line in run.state.log_history if "loss" in line]


@resuming("the same run", "goes on as if it had not been stopped")
def test_the_same_run_is_silent(tmp_path: Path, whole: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        resumed = resume(tmp_path, whole)
    assert resumed[0] == pytest.approx(0.6931, abs=1e-4)
    assert resumed[1] < 0.69


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        resuming.case("stored log-probs instead of a live reference", "the same run", {"precompute": True}, True),
        resuming.case("a run against another reference on purpose", "the same run", {"ref": other_model}, True),
        resuming.case("without the `ref_model` of the run", "error: another reference", {"ref": other_model}, False),
    ],
)
def test_references(tmp_path: Path, settings: dict[str, Any], kept: bool) -> None:
    given = {"ref_model": settings["ref"]()} if "ref" in settings else {}
    first = runs.trained(tmp_path, **given, **SHORT)
    again = {"ref_model": settings["ref"]()} if kept and "ref" in settings else {}
    again |= {"precompute_ref_log_probs": True, "ref_store": str(tmp_path / "refs")} if "precompute" in settings else {}
    if kept:
        before = [line["loss"] for line in first.state.log_history if "loss" in line]
        assert resume(tmp_path, tmp_path / "checkpoint-1", **again) == pytest.approx(before, abs=1e-4)
    else:
        with pytest.raises(InputError, match=r"trained against another reference .* resume_from_checkpoint alone"):
            resume(tmp_path, tmp_path / "checkpoint-1", **again)


@pytest.mark.parametrize(
    "settings",
    [
        resuming.case("from other weights, live reference", "error: another reference", {"model": other_model}),
        resuming.case(
            "from other weights, stored reference",
            "error: another reference",
            {"model": other_model, "precompute_ref_log_probs": True},
        ),
        resuming.case(
            "with the checkpoint as the model too",
            "error: another reference",
            {"model": lambda: "checkpoint"},
        ),
        resuming.case("with another `ref_model`", "error: another reference", {"ref_model": other_model}),
    ],
)
def test_another_reference(tmp_path: Path, whole: Path, settings: dict[str, Any]) -> None:
    given = {name: value() if callable(value) else value for name, value in settings.items()}
    if given.get("model") == "checkpoint":
        given["model"] = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
        with torch.no_grad():  # one step moves the tiny model less than rounding may
            given["model"].model.embed_tokens.weight.mul_(1.5)
    if "precompute_ref_log_probs" in given:
        given["ref_store"] = str(tmp_path / "refs")
    with pytest.raises(InputError, match="trained against another reference"):
        resume(tmp_path, whole, **given)


@resuming("another reference, with `verify_reference=False`", "goes on against it")
def test_another_reference_on_purpose(tmp_path: Path, whole: Path) -> None:
    assert len(resume(tmp_path, whole, ref_model=other_model(), verify_reference=False)) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        resuming.case("with another loss", "warning with both", {"loss_type": "ipo"}, "sigmoid.*goes on with.*ipo"),
        resuming.case("with another `beta`", "warning with both", {"beta": 1.0}, "beta=0.1.*goes on with.*beta=1.0"),
        resuming.case(
            "on fewer rows", "warning: other batches", {"train_dataset": tiny.preferences(6)}, "trained on other data"
        ),
        resuming.case(
            "on other rows",
            "warning: other batches",
            {"train_dataset": tiny.preferences().select(range(7, -1, -1))},
            "trained on other data",
        ),
        resuming.case(
            "with another `max_length`", "warning: other batches", {"max_length": 6}, "trained on other data"
        ),
        resuming.case("with another seed", "warning with both", {"seed": 1}, "seed=42, and this run goes on.*seed=1"),
        resuming.case(
            "with another divergence, of which the losses say nothing",
            "warning with both",
            {"f_divergence_type": "js_divergence"},
            "f_divergence_type=reverse_kl, and this run goes on with f_divergence_type=js_divergence",
        ),
    ],
)
def test_another_run(tmp_path: Path, whole: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.warns(UserWarning, match=message):
        resume(tmp_path, whole, **settings)


@pytest.mark.slow
@resuming("lists, with other options of lists", "warning with both")
def test_other_lists(tmp_path: Path) -> None:
    data = {"train_dataset": lists((5, 2, 4, 3))}
    runs.trained(tmp_path, list_pairs="2", max_completions=3, **data, **SHORT)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        resume(tmp_path, tmp_path / "checkpoint-1", list_pairs=2, max_completions=3, **data)
    before, now = "list_pairs=2, list_reduction=mean, max_completions=3", "best, list_reduction=sum, max_completions=4"
    with pytest.warns(UserWarning, match=f"was trained with {before}, and this run goes on with list_pairs={now}"):
        resume(tmp_path, tmp_path / "checkpoint-1", list_pairs="best", list_reduction="sum", max_completions=4, **data)


@resuming("with another optimizer", "error: its state cannot be continued")
def test_another_optimizer(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(InputError, match="optim='sgd' cannot go on from it"):
        resume(tmp_path, whole, optim="sgd")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        resuming.case("with another `lora_alpha`", "error with both", {"lora_alpha": 64}, "lora_alpha was 8 and is 64"),
        resuming.case("with another rank", "error with both", {"r": 8}, "r was 4 and is 8"),
        resuming.case(
            "with other target modules", "error with both", {"target_modules": ["q_proj"]}, "target_modules was"
        ),
        resuming.case("with `use_rslora`", "error with both", {"use_rslora": True}, "use_rslora was False and is True"),
        resuming.case("with all weights, from an adapter", "error", None, "holds an adapter, and this run trains all"),
    ],
)
def test_another_adapter(tmp_path: Path, adapted: Path, settings: dict[str, Any] | None, message: str) -> None:
    config = {} if settings is None else {"peft_config": lora(**{"lora_alpha": 8, **settings})}
    with pytest.raises(InputError, match=message):
        resume(tmp_path, adapted, **config)


@resuming("the same adapter", "goes on as if it had not been stopped")
def test_the_same_adapter(tmp_path: Path, adapted: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert len(resume(tmp_path, adapted, peft_config=lora(lora_alpha=8))) == 2


@resuming("with an adapter, from a whole model", "error")
def test_an_adapter_from_a_whole_model(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(InputError, match="holds a whole model, and this run trains an adapter"):
        resume(tmp_path, whole, peft_config=lora())


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        resuming.case("weights that were not written to the end", "error", "model.safetensors", b"{", "cannot be read"),
        resuming.case("no weights", "error", "model.safetensors", None, "holds no weights"),
        resuming.case(
            "weights in parts, of which one is missing",
            "error that names it",
            "model.safetensors.index.json",
            b'{"weight_map": {"a": "model-00001-of-00002.safetensors"}}',
            "model-00001-of-00002.safetensors cannot be read",
        ),
    ],
)
def test_incomplete(tmp_path: Path, whole: Path, file: str, content: bytes | None, message: str) -> None:
    checkpoint = Path(shutil.copytree(whole, tmp_path / "checkpoint-1"))
    (checkpoint / file).write_bytes(content) if content is not None else (checkpoint / file).unlink()
    with pytest.raises(InputError, match=message):
        resume(tmp_path, checkpoint)


@resuming("a checkpoint without the optimizer's state (`save_only_model`)", "warning")
def test_no_optimizer_state(tmp_path: Path, whole: Path) -> None:
    checkpoint = Path(shutil.copytree(whole, tmp_path / "checkpoint-1"))
    (checkpoint / "optimizer.pt").unlink()
    with pytest.warns(UserWarning, match="no optimizer state"):
        resume(tmp_path, checkpoint)
