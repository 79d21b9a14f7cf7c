"""What the launched tests of sampling run in every process; see launched.py."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, TrainerCallback
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaModel

from tests.distributed.launched import trainer
from trl_dpo_ext._trl import Host
from trl_dpo_ext.watch.sampling import Sampler


class Sampling(TrainerCallback):
    """Samples before training and after each step, and keeps what was sampled."""

    def __init__(self, run: Any, options: dict[str, Any]) -> None:
        args = copy.copy(run.args)
        vars(args).update(options)
        self.sampler = Sampler(run.host, args, run.reference)
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
    """Train while sampling.

    On the process `failing`, the `failing_call`-th call of `failing_at` (see `fail_at`) fails. With `ungathered`, the
    weights of ZeRO-3 are split while answers are generated, as where they do not fit.
    """
    failing, call, at = (settings.pop(name, None) for name in ("failing", "failing_call", "failing_at"))
    if settings.pop("ungathered", False):
        Host._gathered_fits = lambda *_: False  # type: ignore[method-assign]
    options = {name: settings.pop(name) for name in list(settings) if name.startswith("watch")}
    run = trainer(folder, settings)  # does not watch itself
    sampling = Sampling(run, options)
    run.add_callback(sampling)
    if run.accelerator.process_index == failing:
        fail_at(call, at)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.train()
    told = [str(each.message) for each in caught if "Watching" in str(each.message)]
    return {**sampling.record, "told": told}


PLACES = {
    "token": (LlamaForCausalLM, "prepare_inputs_for_generation"),  # between two forwards
    "layer": (LlamaMLP, "forward"),  # inside a layer, whose weights all processes have gathered
    "model": (LlamaModel, "forward"),  # before the first layer
}


def fail_at(call: int, at: str) -> None:
    """Let one call of a place fail while no gradient is computed."""
    owner, name = PLACES[at]
    method, calls = getattr(owner, name), 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += not torch.is_grad_enabled()
        if calls == call and not torch.is_grad_enabled():
            raise RuntimeError("no more tokens")
        return method(*args, **kwargs)

    setattr(owner, name, failing)
