"""An evaluation's numbers are those of its dataset: of no other one, and for any batches."""

from __future__ import annotations

from typing import Any

import pytest
from accelerate import Accelerator
from transformers import EarlyStoppingCallback
from transformers.integrations.integration_utils import rewrite_logs

from tests.support import tiny
from trl_dpo_ext import InputError

from .evaluations import close, evaluated, evaluation, renamed, trainer, untimed

EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
pytestmark = pytest.mark.usefixtures("no_loader_is_left_open")


MIXTURE = {"loss_type": ["sigmoid", "sft", "cpo", "dpo_nll:norm=token_mean"], "loss_weights": [1.0, 0.5, 0.3, 0.2]}
SAME = "every mean over pairs or tokens, the loss included, has the value of the dataset as one batch"


@pytest.mark.parametrize(
    "losses",
    [
        evaluation.case("evaluate in batches of 1, 2, 3, 5 or 8 of 7 rows", SAME, {}),
        evaluation.case("evaluate `sft`, a mean over tokens", SAME, {"loss_type": "sft"}),
        evaluation.case("evaluate a mixture with means over tokens", SAME, MIXTURE),
    ],
)
def test_every_metric_is_the_same_for_every_batch_size(other: Any, losses: dict) -> None:
    other.set_losses(**{"loss_weights": None, **losses})
    one_batch = evaluated(other, size=8)
    assert 0 < one_batch["eval_mean_token_accuracy"] < 1
    for size in (1, 2, 3, 5):
        assert evaluated(other, size=size) == close(one_batch)


@pytest.mark.parametrize(
    "settings",
    [
        evaluation.case("evaluate with `share_prompt`", SAME, {"share_prompt": True}),
        evaluation.case("evaluate with `padding_free`", SAME, {"padding_free": True}),
        evaluation.case("evaluate token-level losses", SAME, {"loss_type": ["tdpo1", "simpo", "sampo"]}),
        evaluation.case("evaluate losses left to TRL (`trl:sft`)", SAME, {"loss_type": ["trl:sft", "sft"]}),
        evaluation.case("evaluate with WPO's weights", SAME, {"use_weighting": True}),
        evaluation.case("evaluate with a weight for each pair", SAME, {"weight_column": "w"}),
        evaluation.case("evaluate with `ld_alpha`", SAME, {"ld_alpha": 0.5}),
    ],
)
def test_options_do_not_change_that(settings: dict, tmp_path) -> None:
    data = {"train_dataset": tiny.preferences(8, w=[1.0] * 8)}
    data["eval_dataset"] = tiny.preferences(7, w=[1.0, 2.0, 0.5, 0.0, 3.0, 1.0, 0.25])
    run = trainer(tmp_path, **data, **(settings if "loss_type" in settings else {**MIXTURE, **settings}))
    one_batch = evaluated(run, size=8)
    for size in (1, 2, 5):
        assert evaluated(run, size=size) == close(one_batch)


def test_the_loss_of_sft_is_the_mean_over_all_tokens(other: Any) -> None:
    other.set_losses(loss_type="sft", loss_weights=None)
    tokens = sum(map(len, other.eval_dataset["chosen_ids"]))
    metrics = evaluated(other)
    assert metrics["eval_loss"] == pytest.approx(-7 * metrics["eval_logps/chosen"] / tokens, rel=1e-5)


@evaluation("evaluate streamed data, whose length is not known", SAME)
def test_streamed_data_has_the_metrics_of_its_rows(run: Any) -> None:
    expected = evaluated(run)
    streamed = tiny.preferences(7).to_iterable_dataset()
    for size in (2, 5, 8):
        assert evaluated(run, streamed, size=size) == close(expected)


@evaluation("give several evaluation datasets", "each has all metrics, under its name: `eval_easy_rewards/accuracies`")
def test_several_datasets_have_metrics_of_their_own(run: Any) -> None:
    sets = {"easy": tiny.preferences(3), "hard": tiny.preferences(7)}
    expected = renamed(evaluated(run, sets["easy"]), "eval_easy") | renamed(evaluated(run, sets["hard"]), "eval_hard")
    found = evaluated(run, sets)
    found.pop("epoch")
    assert found == expected
    assert found["eval_easy_rewards/accuracies"] != found["eval_hard_rewards/accuracies"]
    logged = [untimed(line) for line in run.state.log_history[-2:]]
    assert [{*line} - {"epoch", "step"} for line in logged] == [
        {name for name in expected if name.startswith(prefix)} for prefix in ("eval_easy", "eval_hard")
    ]
    assert "eval/easy_rewards/accuracies" in rewrite_logs(logged[0])  # as trackers show it


@evaluation(
    "watch one of several evaluation datasets: `metric_for_best_model=eval_easy_rewards/accuracies`",
    "the best model by that metric is kept and loaded, and `EarlyStoppingCallback` goes by it",
)
def test_a_metric_of_one_dataset_finds_the_best_model(tmp_path) -> None:
    best = "eval_easy_rewards/accuracies"
    sets = {"easy": tiny.preferences(3), "hard": tiny.preferences(4)}
    settings = {"load_best_model_at_end": True, "metric_for_best_model": best, "learning_rate": 0.0, **EVERY_STEP}
    run = trainer(tmp_path, eval_dataset=sets, eval_on_start=True, max_steps=4, **settings)
    run.add_callback(EarlyStoppingCallback(early_stopping_patience=1))
    run.train()
    assert run.state.global_step == 2  # nothing improves without a learning rate
    assert run.state.best_metric == untimed(run.evaluate())[best]
    assert run.state.best_model_checkpoint.endswith("checkpoint-1")


@pytest.mark.parametrize(
    "metric",
    [
        evaluation.case("watch no dataset of several: `load_best_model_at_end`", "error: names the datasets", None),
        evaluation.case("watch `rewards/margins` of several datasets", "error: names the datasets", "rewards/margins"),
        evaluation.case("watch a dataset that does not exist", "error: names the datasets", "eval_esy_loss"),
    ],
)
def test_a_metric_that_no_dataset_has_is_refused_before_a_model_is_loaded(metric: str | None, tmp_path) -> None:
    settings = {"load_best_model_at_end": True, "metric_for_best_model": metric, **EVERY_STEP}
    with pytest.raises(
        InputError, match=r"does not name one of the evaluation datasets \(easy, hard\).*eval_easy_loss"
    ):
        trainer(
            tmp_path,
            model="no such model",
            eval_dataset=dict.fromkeys(("easy", "hard"), tiny.preferences(2)),
            **settings,
        )
    Accelerator(cpu=True)  # an unfinished constructor leaves accelerate's state empty, for `run` too


@evaluation("call `predict`, on raw or prepared rows", "its metrics are those of its rows, under `test_` or its prefix")
def test_predict_has_the_metrics_of_its_rows(run: Any) -> None:
    expected = evaluated(run, tiny.preferences(3))
    for rows in (tiny.preferences(3), run.eval_dataset.select(range(3))):
        assert untimed(run.predict(rows).metrics) == renamed(expected, "test")
        assert untimed(run.predict(rows, metric_key_prefix="held_out").metrics) == renamed(expected, "held_out")


@evaluation("evaluate with a store", SAME)
@evaluation("call `predict` on new rows with a store", "their reference log-probs are stored first")
def test_a_store_serves_evaluations_in_any_batches_and_predictions(run: Any, tmp_path) -> None:
    stored = trainer(tmp_path, precompute_ref_log_probs=True, eval_dataset=tiny.preferences(3))
    expected = evaluated(run, tiny.preferences(3))
    for size in (1, 2, 8):
        assert evaluated(stored, size=size) == close(expected)
    assert untimed(stored.predict(tiny.preferences(7)).metrics) == close(renamed(evaluated(run), "test"))


@evaluation("evaluate with `metric_key_prefix`", "all metrics have that prefix, in the log and in what is returned")
def test_a_prefix_is_that_of_all_metrics(run: Any) -> None:
    expected = renamed(evaluated(run), "mine")
    found = evaluated(run, metric_key_prefix="mine")
    found.pop("epoch")
    assert found == expected
    assert untimed(run.state.log_history[-1]).keys() - {"epoch", "step"} == expected.keys()


def rows_of(token_ids: Any) -> list[list[int]]:
    return sorted([int(token) for token in row if token > 0] for row in token_ids)  # without padding


@evaluation("`compute_metrics`, or the outputs of `predict`", "both rows of every pair, and one loss for each pair")
@pytest.mark.filterwarnings("ignore:`return_outputs=True`")
def test_every_row_is_predicted(run: Any, monkeypatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(run, "compute_metrics", lambda given: seen.append(given) or {"sum": float(given.losses.sum())})
    monkeypatch.setattr(run.args, "include_for_metrics", ["loss", "inputs"])
    one_batch = evaluated(run, size=7)
    for size, accumulation in ((2, None), (5, 1), (8, 2)):
        monkeypatch.setattr(run.args, "eval_accumulation_steps", accumulation)
        found = evaluated(run, size=size)
        given = seen[-1]
        assert (len(given.predictions), len(given.label_ids), len(given.inputs), len(given.losses)) == (14, 14, 14, 7)
        assert rows_of(given.label_ids) == rows_of(seen[0].label_ids)
        assert found == close(one_batch)
    monkeypatch.setattr(run.args, "prediction_loss_only", True)
    one_batch.pop("eval_sum")
    assert evaluated(run, size=7) == close(one_batch)
