"""What chooses the best model, what is predicted, and rows that a model has no positions or embeddings for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM, TrainerCallback

from tests.support import runs, tiny
from trl_dpo_ext.errors import InputError

from .listing import Kind

watching = Kind("The best model, and predictions")
lengths = Kind("Rows and references that do not fit the model")

EVERY = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "best", "save_steps": 1}


@pytest.mark.parametrize(
    ("metric", "given"),
    [
        watching.case("`metric_for_best_model=accuracy`", "error that lists the metrics", "accuracy", {}),
        watching.case("a mistyped metric", "error that lists the metrics", "eval_reward/accuracies", {}),
        watching.case(
            "a metric that one of several datasets does not have",
            "error that lists the metrics",
            "eval_a_f1",
            {"eval_dataset": {"a": tiny.preferences(2), "b": tiny.preferences(2)}},
        ),
    ],
)
def test_unknown_metrics(tmp_path: Path, metric: str, given: dict[str, Any]) -> None:
    data = {"eval_dataset": tiny.preferences(2), **given}
    with pytest.raises(InputError, match=r"is not a metric of this run; it has .*rewards/accuracies"):
        runs.trainer(tmp_path, metric_for_best_model=metric, **data, **EVERY)


class WinRate(TrainerCallback):
    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        metrics["eval_win_rate"] = 0.5


@pytest.mark.parametrize(
    ("metric", "given"),
    [
        ("win_rate", {"callbacks": [WinRate()]}),
        ("n", {"compute_metrics": lambda predicted: {"n": len(predicted.label_ids)}}),
        ("rewards/accuracies", {}),
        ("eval_loss/sft", {"loss_type": ["sigmoid", "sft"]}),
    ],
)
def test_metrics_that_are_known_later_or_now(tmp_path: Path, metric: str, given: dict[str, Any]) -> None:
    runs.trainer(tmp_path, metric_for_best_model=metric, eval_dataset=tiny.preferences(2), **given, **EVERY)


@watching("`EarlyStoppingCallback` without `metric_for_best_model`", "error at construction")
def test_early_stopping(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="EarlyStoppingCallback needs"):
        runs.trainer(tmp_path, callbacks=[EarlyStoppingCallback(1)])


@watching("`predict` on a dictionary of datasets", "error: one at a time")
def test_predict_takes_one_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="predict takes one dataset; call it for each of a, b"):
        runs.trainer(tmp_path).predict({"a": tiny.preferences(2), "b": tiny.preferences(2)})


def gpt2() -> Any:
    sizes: Any = {"n_positions": 24, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny.tokenizer()), **sizes))


def opt() -> Any:
    sizes: Any = {"max_position_embeddings": 24, "hidden_size": 16, "ffn_dim": 16, "num_attention_heads": 2}
    sizes |= {"num_hidden_layers": 1, "word_embed_proj_dim": 16}
    return OPTForCausalLM(OPTConfig(vocab_size=len(tiny.tokenizer()), **sizes))


def long_rows(words: int) -> Dataset:
    return Dataset.from_list([{"prompt": "say " * words + "say", "chosen": " yes", "rejected": " no"}] * 4)


@pytest.mark.parametrize(
    "make",
    [
        lengths.case("rows longer than the positions that GPT-2 has learned", "error with both numbers", gpt2),
        lengths.case("rows longer than the positions that OPT has learned", "error with both numbers", opt),
    ],
)
def test_learned_positions(tmp_path: Path, make: Any) -> None:
    with pytest.raises(InputError, match=r"learned 24 positions, and 4 of 4 rows of train_dataset.*at most 24"):
        runs.trainer(tmp_path, model=make(), train_dataset=long_rows(30), max_length=None)


@pytest.mark.parametrize("longest", [0, 1, 2])
def test_learned_positions_are_counted_in_lists(tmp_path: Path, longest: int) -> None:
    """A list counts once, by its longest completion, which need be neither the best nor the worst."""
    said = [" yes", " no", " four"]
    long = [text + " say" * 29 * (at == longest) for at, text in enumerate(said)]
    rows = [{"prompt": "say", "completions": each, "scores": [3.0, 2.0, 1.0]} for each in (said, long, said)]
    found = r"learned 24 positions, and 1 of 3 lists of train_dataset are longer, up to 32 tokens.*at most 24"
    with pytest.raises(InputError, match=found):
        runs.trainer(tmp_path, model=gpt2(), train_dataset=Dataset.from_list(rows), max_length=None)


@pytest.mark.parametrize("make", [gpt2, opt])
def test_rows_that_just_fit(tmp_path: Path, make: Any) -> None:
    runs.trained(tmp_path, model=make(), train_dataset=long_rows(21), max_length=None, max_steps=1)  # 24 tokens
    runs.trained(
        tmp_path, model=make(), train_dataset=long_rows(30), max_length=24, max_steps=1, truncation_mode="keep_end"
    )


def smaller() -> Any:
    model = tiny.model()
    model.resize_token_embeddings(20)
    return model


@lengths("a `ref_model` with fewer tokens than the data have", "error with both numbers")
def test_smaller_reference(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ref_model does not fit.*tokens and the model embeddings for 20"):
        runs.trainer(tmp_path, ref_model=smaller())


def test_a_larger_reference_fits(tmp_path: Path) -> None:
    reference = tiny.model(seed=1)
    reference.resize_token_embeddings(64)
    run = runs.trained(tmp_path, ref_model=reference, max_steps=1)
    assert torch.isfinite(torch.tensor(run.state.log_history[0]["loss"]))
