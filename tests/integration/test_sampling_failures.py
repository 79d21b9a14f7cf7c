"""What cannot be sampled, and sampling that fails: it is told once, and the run goes on."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig
from transformers import LlamaForCausalLM

from tests.support import runs
from tests.support.sampling_runs import sampled, sampler, trainer
from trl_dpo_ext.watch import sampling


def test_an_adapter_that_learns_a_prompt_is_named_and_the_run_goes_on(tmp_path) -> None:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.warns(UserWarning, match=r"no answers are sampled, because the adapter \(PREFIX_TUNING\)"):
        run, watched = sampled(tmp_path, peft_config=config, gradient_checkpointing=False)
    assert watched.sampled == [None, None, None]
    assert run.state.global_step == 2


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception, int], None]:
    """Lets the n-th forward of a policy from then on raise."""

    def arm(error: Exception, call: int) -> None:
        forward, calls = LlamaForCausalLM.prepare_inputs_for_generation, 0

        def raising(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                raise error
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(LlamaForCausalLM, "prepare_inputs_for_generation", raising)

    return arm


def test_an_exception_is_told_once_and_training_goes_on(tmp_path, failing) -> None:
    plain = trainer(tmp_path / "plain")
    plain.train()

    def before(step: int) -> None:
        if step == 1:
            failing(RuntimeError("broken model"), 3)

    with pytest.warns(
        UserWarning, match=r"sampling failed at step 1 .* training goes on. RuntimeError: broken"
    ) as told:
        run, watched = sampled(tmp_path / "watched", before)
    assert sum("sampling failed" in str(each.message) for each in told) == 1
    assert [each is None for each in watched.sampled] == [False, True, True]
    assert all(torch.equal(runs.weights(run)[name], tensor) for name, tensor in runs.weights(plain).items())
    assert not run.model.training or plain.model.training


def test_out_of_memory_halves_the_batch_once(tmp_path, failing) -> None:
    def before(step: int) -> None:
        if step in (1, 2):
            failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), 3)

    with pytest.warns(UserWarning, match="sampling failed at step 2"):
        _, watched = sampled(tmp_path, before, per_device_eval_batch_size=4)
    assert [each is None for each in watched.sampled] == [False, False, True]
    assert watched.sampler.batch_size == 2
    assert len(watched.sampled[1].rows) == 5


def test_a_full_disk_ends_sampling_and_not_the_run(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(sampling, "append_lines", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        run, watched = sampled(tmp_path)
    assert watched.sampled == [None, None, None]
    assert run.state.global_step == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda run: setattr(run, "_is_vision_dataset", True), "prompts have images"),
        (lambda run: setattr(run.model.config, "is_encoder_decoder", True), "LlamaForCausalLM is an encoder-decoder"),
        (lambda run: setattr(run.accelerator.state, "parallelism_config", SimpleNamespace(cp_size=2)), "cp_size=2"),
    ],
)
def test_what_cannot_be_sampled_is_named(tmp_path, change: Callable[[Any], None], reason: str) -> None:
    run = trainer(tmp_path)
    change(run)
    with pytest.warns(UserWarning, match=f"no answers are sampled, because {reason}"):
        off = sampler(run)
    assert off.sample(0) is None
