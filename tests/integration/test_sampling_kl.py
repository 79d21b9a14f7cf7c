"""The KL divergence of sampled answers, and what stands in its place without a live reference."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.support import runs, tiny
from tests.support.sampling_runs import WATCHED, sampled
from trl_dpo_ext.watch import kl


def test_kl_is_zero_at_the_start_and_log_probs_are_those_of_the_answers(tmp_path) -> None:
    _, watched = sampled(tmp_path)
    start, last = watched.sampled[0], watched.sampled[-1]
    assert start.kl == last.kl == "exact"
    assert start.metrics["watch/kl_per_token"] == pytest.approx(0.0, abs=1e-6)
    assert last.metrics["watch/kl_per_token"] > 1e-4
    assert last.metrics["watch/kl_per_answer"] > last.metrics["watch/kl_per_token"]
    model = tiny.model().eval()
    for row in start.rows:
        prompt = tiny.tokenizer()(row["prompt"])["input_ids"]
        ids = torch.tensor([[*prompt, *row["completion_ids"]]])
        with torch.no_grad():
            logps = model(input_ids=ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        truth = logps.gather(1, ids[0, len(prompt) :, None]).sum().item()
        assert row["logp"] == pytest.approx(truth, abs=1e-4)
        assert row["ref_logp"] == pytest.approx(truth, abs=1e-4)


def test_kl_does_not_depend_on_the_temperature_of_the_answers(tmp_path) -> None:
    found = []
    for temperature in (0.0, 2.0):
        _, watched = sampled(tmp_path, watch_temperature=temperature)
        found.append([each.metrics["watch/kl_per_token"] for each in watched.sampled])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "settings", [{"precompute_ref_log_probs": True}, {"loss_type": "simpo"}, {"watch_kl": "off"}], ids=str
)
def test_without_a_live_reference_there_is_no_kl(tmp_path, settings: dict) -> None:
    stored = {"ref_store": str(tmp_path / "store")} if "precompute_ref_log_probs" in settings else {}
    _, watched = sampled(tmp_path, **settings, **stored)
    assert not any("kl" in name for name in watched.sampled[-1].metrics)
    assert watched.sampled[-1].kl == ""
    assert (watched.sampled[-1].rows[0]["ref_logp"] is None) == ("watch_kl" not in settings)


def test_a_stored_reference_gives_the_log_ratio_of_chosen_answers_and_it_is_not_called_kl(tmp_path) -> None:
    settings = {"eval_dataset": tiny.preferences(8), "eval_strategy": "steps", "eval_steps": 1}
    watched = {**WATCHED, "max_steps": 1, "precompute_ref_log_probs": True, "ref_store": str(tmp_path / "store")}
    run = runs.trained(tmp_path, **settings, **watched)
    evaluated = [line for line in run.state.log_history if "eval_rewards/chosen" in line][-1]
    told = [line for line in run.state.log_history if "watch/logratio_chosen" in line]
    tokens = sum(len(ids) for ids in run.eval_dataset["chosen_ids"]) / len(run.eval_dataset)
    assert told[0]["watch/logratio_chosen"] == pytest.approx(0.0, abs=1e-6)
    assert told[-1]["watch/logratio_chosen"] == pytest.approx(
        evaluated["eval_rewards/chosen"] / run.args.beta / tokens, rel=1e-4
    )
    assert abs(told[-1]["watch/logratio_chosen"]) > 1e-3
    assert not any("kl_per" in name for line in run.state.log_history for name in line)


def test_k3_takes_the_place_of_exact_where_logits_exceed_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(type="cuda")
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2 << 30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 29, 80 << 30))  # 1.5 GiB with what is reserved
    needed = 2 * 4 * 100_000 * 65  # bytes for each row
    rows = int(0.8 * 1.5 * 2**30 / needed)
    assert kl.choose("auto", 100_000, rows, gpu) == "exact"  # type: ignore[arg-type]
    assert kl.choose("auto", 100_000, rows + 1, gpu) == "k3"  # type: ignore[arg-type]
    assert kl.choose("exact", 100_000, rows + 1, gpu) == "exact"  # type: ignore[arg-type]
    assert kl.choose("auto", 100_000, rows + 1, torch.device("cpu")) == "exact"
