"""Runs that are sampled while they train, by a sampler beside them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import TrainerCallback

from tests.support import runs, tiny
from trl_dpo_ext.watch.sampling import Sampler

WATCHED: dict[str, Any] = {"watch": True, "watch_prompts": 5, "watch_max_new_tokens": 8}


LORA = LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.5, init_lora_weights=False)


class Sampling(TrainerCallback):
    """Samples before training and after each step."""

    def __init__(self, run: Any, before: Callable[[int], None] = lambda step: None) -> None:
        self.sampler, self.before = sampler(run), before
        self.sampled: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.sampler.begin(state.global_step)
        self._sample(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._sample(state.global_step)

    def _sample(self, step: int) -> None:
        self.before(step)
        self.sampled.append(self.sampler.sample(step))


def trainer(folder: Path, **settings: Any) -> Any:
    """A trainer that does not watch itself, and the options of a sampler as `run.watched`."""
    settings = {"eval_dataset": tiny.preferences(8), "max_steps": 2, **settings}
    watched = {name: settings.pop(name) for name in list(settings) if name.startswith("watch")}
    run = runs.trainer(folder, **settings)
    run.watched = copy.copy(run.args)
    vars(run.watched).update({**WATCHED, **watched})
    return run


def sampler(run: Any) -> Sampler:
    return Sampler(run.host, run.watched, run.reference)


def sampled(folder: Path, before: Callable[[int], None] = lambda step: None, **settings: Any) -> tuple[Any, Sampling]:
    run = trainer(folder, **settings)
    sampling = Sampling(run, before)
    run.add_callback(sampling)
    run.train()
    return run, sampling


@torch.no_grad()
def greedy(model: Any, prompt: str) -> list[int]:
    ids = torch.tensor([tiny.tokenizer()(prompt)["input_ids"]])
    found = model.eval().generate(input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    return found[0, ids.size(1) :].tolist()
