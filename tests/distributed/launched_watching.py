"""What the launched tests of sampling run in every process; see launched.py."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from transformers import LlamaForCausalLM, TrainerCallback

from tests.distributed.launched import trainer
from trl_dpo_ext.watch.sampling import Sampler


class Sampling(TrainerCallback):
    """Samples before training and after each step, and keeps what was sampled."""

    def __init__(self, run: Any) -> None:
        self.sampler = Sampler(run.host, run.args, run.reference)
        self.sampled: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.sampler.begin(state.global_step)
        self.sampled.append(self.sampler.sample(state.global_step))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.sampled.append(self.sampler.sample(state.global_step))

    @property
    def record(self) -> dict[str, Any]:
        metrics = [None if each is None else each.metrics for each in self.sampled]
        rows = [None if each is None else list(each.rows) for each in self.sampled]
        return {"sampled": rows, "metrics": metrics, "problem": self.sampler.problem}


def sample(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train while sampling; on the process `failing`, the `failing_call`-th token from then on cannot be prepared."""
    failing, call = settings.pop("failing", None), settings.pop("failing_call", 0)
    run = trainer(folder, settings)
    sampling = Sampling(run)
    run.add_callback(sampling)
    if run.accelerator.process_index == failing:
        fail_at(call)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.train()
    told = [str(each.message) for each in caught if "Watching" in str(each.message)]
    return {**sampling.record, "told": told}


def fail_at(call: int) -> None:
    """Let the preparation of a token fail: inside `generate`, between two forwards."""
    prepare, calls = LlamaForCausalLM.prepare_inputs_for_generation, 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise RuntimeError("no more tokens")
        return prepare(*args, **kwargs)

    LlamaForCausalLM.prepare_inputs_for_generation = failing  # type: ignore[method-assign]
