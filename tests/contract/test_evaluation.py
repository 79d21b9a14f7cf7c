"""How TRL and transformers evaluate, as far as this package leans on it: which numbers come from where."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput
from trl import DPOTrainer

from tests.support import runs, tiny
from tests.support.seams import moved
from tests.support.tolerances import rounding
from trl_dpo_ext import _trl

METRICS = "_trl/metrics.py"
EVALUATION = "evaluation.py"
GATHERING = "distributed/eval_padding.py (RealRows)"


class Recorded(DPOTrainer):
    """Notes what the evaluation loop is asked for, what it gathers, and what is logged."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        self.loops: list[dict[str, Any]] = []
        self.gathered: list[tuple[int, ...]] = []
        self.lines: list[tuple[bool, bool]] = []
        super().__init__(*args, **keywords)

    def evaluation_loop(self, dataloader: Any, description: str, *args: Any, **keywords: Any) -> Any:
        self.loops.append({"description": description, "args": args, **keywords})
        self.gather_function = lambda values: self.gathered.append(tuple(values.shape)) or values
        output = super().evaluation_loop(dataloader, description, *args, **keywords)
        self.loops[-1]["function after"] = self.gather_function
        output.metrics["from the loop"] = 1
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.lines.append(("grad_norm" in logs, start_time is not None))
        super().log(logs, start_time)


pytestmark = pytest.mark.usefixtures("no_loader_is_left_open")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return runs.trainer(
        tmp_path_factory.mktemp("run"),
        Recorded,
        ref_model=tiny.model(1),
        eval_dataset=tiny.preferences(3),
        per_device_eval_batch_size=2,
        max_steps=2,
    )


@pytest.fixture
def batch(run: Recorded) -> dict[str, torch.Tensor]:
    return next(iter(run.get_train_dataloader()))


def metrics_of(run: Recorded, batch: dict[str, torch.Tensor], model: Any = None) -> dict[str, float]:
    """What TRL logs of one evaluation batch, straight from its lists."""
    run.model.eval()
    run._metrics["eval"].clear()
    run.compute_loss(model or run.model, batch)
    values = {name: list(listed) for name, listed in run._metrics["eval"].items()}
    run._metrics["eval"].clear()
    run.model.train()
    assert all(len(listed) == 1 for listed in values.values()), moved("TRL", "one value per batch and metric", METRICS)
    return {name: listed[0] for name, listed in values.items()}


def of_pair(batch: dict[str, torch.Tensor], pair: int, count: int = 1) -> dict[str, torch.Tensor]:
    rows = [*range(pair, pair + count), *range(4 + pair, 4 + pair + count)]
    return {name: values[rows] for name, values in batch.items()}


def test_every_metric_of_trl_is_known_to_be_a_mean_over_pairs_or_tokens_or_a_counter(
    run: Recorded, batch: dict
) -> None:
    names = set(metrics_of(run, batch))
    pairs = {name for name in names if name.startswith(_trl.PAIR_METRICS)}
    known = pairs | set(_trl.TOKEN_METRICS) | set(_trl.COUNTERS)
    assert names == known, moved("TRL", "these are all of its metrics", METRICS)
    assert len(pairs) == 6


def test_each_metric_of_trl_is_the_mean_over_what_it_is_listed_under(run: Recorded, batch: dict) -> None:
    """The value of a batch is that of its parts, weighted by their pairs, or by the tokens of the sides that are listed."""
    whole, parts = metrics_of(run, batch), [of_pair(batch, 0, 3), of_pair(batch, 3)]
    tokens = [dict(zip(("chosen", "rejected"), part["completion_mask"].chunk(2), strict=True)) for part in parts]
    values = [metrics_of(run, part) for part in parts]
    for name in set(whole) - set(_trl.COUNTERS):
        sides = _trl.TOKEN_METRICS.get(name)
        weights = [sum(int(t[side].sum()) for side in sides) for t in tokens] if sides else [3, 1]
        expected = sum(w * v[name] for w, v in zip(weights, values, strict=True)) / sum(weights)
        fact = f"{name} is a mean over {' and '.join(sides) + ' tokens' if sides else 'pairs'}"
        assert whole[name] == pytest.approx(expected, abs=rounding(60)), moved("TRL", fact, METRICS)


def test_metrics_of_pairs_go_through_the_accelerators_gather(run: Recorded, batch: dict) -> None:
    with _trl.Host(run).trim_gathered(lambda values: values[:1] if values.dim() else values):
        cut = metrics_of(run, batch)
    assert "gather" not in vars(run.accelerator)
    alone = metrics_of(run, of_pair(batch, 0))
    for name in (name for name in cut if name.startswith(_trl.PAIR_METRICS)):
        assert cut[name] == pytest.approx(alone[name], abs=rounding(60)), moved("TRL", "accelerator.gather", METRICS)


def test_the_number_of_tokens_adds_up_what_training_batches_attend_to(run: Recorded, batch: dict) -> None:
    run.model.train()
    before = run._total_train_tokens
    run.compute_loss(run.model, batch)
    fed = int(batch["attention_mask"].sum()) // run._tp_size
    counted = run._metrics["train"].pop("num_tokens")
    assert counted == [run._total_train_tokens] == [before + fed], moved("TRL", "_total_train_tokens", METRICS)
    _trl.Host(run).uncount_tokens(fed)
    assert run._metrics["train"].pop("num_tokens") == [before]
    run.model.eval()


def test_metrics_of_tokens_are_sums_over_the_completion_mask_alone(run: Recorded, batch: dict) -> None:
    """Rows that are masked after the model has seen their labels are not counted."""
    recorder = _trl.Recorder(run.model, labels=_trl.labels_of(batch))
    uncounted = torch.tensor([False, True, True, True]).repeat(2).unsqueeze(1)
    hidden = {**batch, "completion_mask": batch["completion_mask"].masked_fill(uncounted, 0)}
    found, alone = metrics_of(run, hidden, recorder), metrics_of(run, of_pair(batch, 0))
    assert (recorder.output.log_probs[1:4] != 0).any()
    for name in _trl.TOKEN_METRICS:
        assert found[name] == pytest.approx(alone[name], abs=rounding(10)), moved("TRL", f"the mask of {name}", METRICS)


def test_log_takes_metrics_by_the_policys_flag_and_names_all_evaluations_eval(run: Recorded) -> None:
    host = _trl.Host(run)
    run.model.eval()
    host.add_metric("x", 2.0)
    run.log({"test_loss": 1.0})
    run.model.train()
    assert run.state.log_history[-1]["eval_x"] == 2.0, moved("TRL", "log prefixes eval_ whatever is evaluated", METRICS)
    assert not run._metrics["eval"], moved("TRL", "log clears what it has averaged", METRICS)


def test_what_is_taken_of_an_evaluation_is_removed(run: Recorded) -> None:
    host = _trl.Host(run)
    run.model.eval()
    host.add_metric("x", 2.0)
    with host.separate_evaluation():
        assert not run._metrics["eval"]
        host.add_metric("y", 3.0)
        assert host.take_evaluated() == {"y": 3.0}
        assert host.take_evaluated() == {}
        host.add_metric("z", 1.0)
    assert not run._metrics["eval"]
    run.model.train()


def test_evaluate_and_predict_return_the_metrics_of_one_loop(run: Recorded) -> None:
    run.loops.clear()
    assert run.evaluate(metric_key_prefix="a")["from the loop"] == 1, moved("transformers", "evaluate", EVALUATION)
    assert run.state.log_history[-1]["from the loop"] == 1, moved("transformers", "evaluate logs them", EVALUATION)
    found = run.predict(run.eval_dataset, metric_key_prefix="b")
    assert found.metrics["from the loop"] == 1, moved("transformers", "predict returns the loop's metrics", EVALUATION)
    asked = [(loop["description"], loop["args"], loop["metric_key_prefix"]) for loop in run.loops]
    assert asked == [("Evaluation", (), "a"), ("Prediction", (), "b")], moved("transformers", "one loop", EVALUATION)
    fields = ("predictions", "label_ids", "metrics", "num_samples")
    assert EvalLoopOutput._fields == fields, moved("transformers", "EvalLoopOutput", EVALUATION)


def test_the_losses_of_a_step_are_gathered_first_repeated_to_a_full_batch(run: Recorded) -> None:
    run.gathered.clear()
    run.predict(run.eval_dataset)
    # 3 pairs in batches of 2: losses, logits and labels of the first batch, then those of the second
    assert [len(shape) for shape in run.gathered] == [1, 3, 2] * 2, moved("transformers", "losses first", GATHERING)
    assert [shape[0] for shape in run.gathered] == [2, 4, 4, 2, 2, 2], moved("transformers", "losses.repeat", GATHERING)
    assert run.loops[-1]["function after"] == run.accelerator.gather_for_metrics, moved(
        "transformers", "gather_function is set back at the end", EVALUATION
    )


def test_persistent_loaders_of_an_evaluation_are_kept_by_name(run: Recorded, monkeypatch) -> None:
    monkeypatch.setattr(run.args, "dataloader_persistent_workers", True)
    monkeypatch.setattr(run.args, "dataloader_num_workers", 1)
    kept = run.get_eval_dataloader()
    assert run.get_eval_dataloader(run.eval_dataset.select([0])) is kept, moved(
        "transformers",
        "the loader of another dataset is not made anew; else get_eval_dataloader is needless",
        EVALUATION,
    )
    monkeypatch.setattr(run.args, "dataloader_persistent_workers", False)
    assert len(run.get_eval_dataloader(run.eval_dataset.select([0])).dataset) == 1, moved(
        "transformers", "a kept loader is used only with dataloader_persistent_workers", EVALUATION
    )
    del run._eval_dataloaders


def test_lines_of_training_steps_alone_are_logged_with_the_time_of_the_start(run: Recorded) -> None:
    run.lines.clear()
    run.train()
    run.evaluate()
    assert run.lines == [(True, True)] * 2 + [(False, False)] * 2, moved(
        "transformers", "log(logs, start_time) for training steps, log(logs) else", EVALUATION
    )
    source = inspect.getsource(DPOTrainer.log)
    assert "self.model.training" in source, moved("TRL", "log goes by self.model.training", EVALUATION)


def test_the_metric_of_the_best_model_is_looked_up_under_the_prefix_of_evaluations(run: Recorded) -> None:
    source = inspect.getsource(Trainer._determine_best_metric)
    assert 'f"eval_{metric_to_check}"' in source, moved("transformers", "eval_", "data/evaluation_sets.py")
