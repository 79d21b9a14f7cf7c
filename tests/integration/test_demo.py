"""The demo's data and measurements, without its model; `make demo` runs the whole."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset

from demo import lists, preferences, show
from demo import run as demo_run
from demo.evaluate import Scores, answer_metrics, preference_metrics, read_pairs, score
from demo.facts import ADDITIONS, PRODUCTS, SUBTRACTIONS, TOPICS
from demo.launch import _HIDDEN
from tests.support import scoring, tiny
from trl_dpo_ext.cli import main as cli
from trl_dpo_ext.data.lists.reading import read_completions
from trl_dpo_ext.reports.run_log import read_run
from trl_dpo_ext.run_files import LOG_FILE, append_lines

ROOT = Path(__file__).parents[2]


def test_the_committed_files_are_what_the_program_writes() -> None:
    train, held_out = preferences.make_pairs()
    assert preferences.to_jsonl(train) == (preferences.DATA / "train.jsonl").read_text(encoding="utf-8")
    assert preferences.to_jsonl(held_out) == (preferences.DATA / "test.jsonl").read_text(encoding="utf-8")
    assert (len(train), len(held_out)) == (285, 65)


def test_training_and_held_out_share_no_prompt_fact_or_phrase() -> None:
    train, held_out = preferences.make_pairs()
    assert not {pair.question for pair in train} & {pair.question for pair in held_out}
    assert len({pair.question for pair in train + held_out}) == 350
    phrases = [phrase for options in preferences.HELD_OUT_PADDING.values() for phrase in options]
    assert not set(phrases) & {phrase for options in preferences.TRAIN_PADDING.values() for phrase in options}


def test_both_answers_hold_the_fact_and_the_rejected_one_is_longer() -> None:
    train, held_out = preferences.make_pairs()
    for pair in train + held_out:
        assert pair.answer in pair.chosen or pair.answer.capitalize() in pair.chosen
        assert pair.chosen in pair.rejected
        assert len(pair.rejected.split()) >= len(pair.chosen.split()) + 8


def test_a_list_has_the_answers_of_its_pair_and_the_same_ones_with_another_fact() -> None:
    for pairs, made in zip(preferences.make_pairs(), lists.make_lists(), strict=True):
        for pair, each in zip(pairs, made, strict=True):
            answers, question = each.answers, each.question
            assert (question.text, answers["right, short"], answers["right, padded"]) == (
                pair.question,
                pair.chosen,
                pair.rejected,
            )
            others = {y for _, y in question.topic.facts if question.direct(y) == answers["wrong, short"]}
            (other,) = others - {question.fact[1]}
            assert answers["wrong, padded"] == question.padded(other)
            assert other in {pair.answer for pair in pairs if pair.topic == question.topic.name}
            assert len(set(answers.values())) == 4


def test_a_list_is_scored_by_right_before_short_and_tells_nothing_by_its_order() -> None:
    train, held_out = lists.make_lists()
    for each in train + held_out:
        row: Any = each.record()
        assert dict(zip(row["kinds"], row["scores"], strict=True)) == lists.SCORES
        assert [message["content"] for (message,) in row["completions"]] == [*each.answers.values()]
    first = [next(iter(each.answers)) for each in train]
    assert all(50 < first.count(kind) < 92 for kind in lists.SCORES)  # of 285, about 71 each
    assert lists.make_lists() == (train, held_out)


@pytest.mark.parametrize("argv", [[], ["a", "b"], ["--unknown"]])
def test_a_wrong_command_line_for_lists_is_answered_with_its_usage(argv: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as left:
        lists.main(argv)
    assert left.value.code == 2
    assert "usage: python -m demo.lists" in capsys.readouterr().err


@pytest.mark.slow
def test_lists_are_written_as_rows_that_the_package_trains_on(tmp_path) -> None:
    assert lists.write(tmp_path / "data") == (285, 65)
    found = read_completions(load_dataset(str(tmp_path / "data"))["test"])
    assert (len(found.prompts), len(found.texts), found.orders) == (65, 260, {"scores"})
    model = tiny.saved_model(str(tmp_path / "model"))
    flags = [
        "--dataset_name",
        str(tmp_path / "data"),
        "--model_name_or_path",
        model,
        "--output_dir",
        str(tmp_path / "o"),
    ]
    short = ["--max_steps", "1", "--bf16", "false", "--use_cpu", "true", "--report_to", "none", "--max_length", "64"]
    assert cli.main(["train", *flags, *short, "--loss_type", "pl", "--logging_steps", "1"]) == 0
    (step,) = read_run(tmp_path / "o").train
    assert step["loss"] == pytest.approx(math.log(24), abs=1e-4)
    assert 0 <= step["rewards/top1_accuracy"] <= 1


@pytest.mark.parametrize("facts", [ADDITIONS, SUBTRACTIONS, PRODUCTS])
def test_the_arithmetic_is_true(facts: tuple[tuple[str, str], ...]) -> None:
    for x, y in facts:
        left, sign, right = x.split()
        expected = {"+": int(left) + int(right), "-": int(left) - int(right), "*": int(left) * int(right)}[sign]
        assert int(y) == expected


def test_no_topic_asks_the_same_twice() -> None:
    for topic in TOPICS:
        assert len({x for x, _ in topic.facts}) == len(topic.facts)


def test_the_questions_shown_are_held_out() -> None:
    pairs = read_pairs(preferences.DATA / "test.jsonl")
    assert [question for question, _ in show.pick(pairs, [""] * len(pairs))] == list(show.SHOWN)


def scores(chosen: list[float], rejected: list[float]) -> Scores:
    ones = torch.ones(len(chosen))
    return Scores(torch.tensor(chosen), torch.tensor(rejected), 2 * ones, 4 * ones)


def test_a_policy_that_is_its_reference_has_accuracy_one_half_and_no_margin() -> None:
    same = scores([-3.0, -4.0], [-5.0, -9.0])
    metrics = preference_metrics(same, same, beta=0.1)
    assert (metrics["reward_accuracy"], metrics["reward_margin"]) == (0.5, 0.0)
    assert metrics["avg_logp_accuracy"] == 0.5  # -1.5 loses against -1.25, -2 wins against -2.25


def test_reward_accuracy_counts_wins_and_half_of_the_ties() -> None:
    reference = scores([-3.0, -3.0, -3.0, -3.0], [-5.0, -5.0, -5.0, -5.0])
    policy = scores([-2.0, -3.0, -4.0, -1.0], [-5.0, -5.0, -5.0, -5.0])
    metrics = preference_metrics(policy, reference, beta=0.5)
    assert metrics["reward_accuracy"] == 2.5 / 4
    assert metrics["reward_margin"] == pytest.approx(0.5 * (1 + 0 - 1 + 2) / 4)


@torch.no_grad()
def test_scores_are_the_answers_log_probs_whatever_the_batch() -> None:
    model, tokenizer = tiny.model(), tiny.tokenizer()
    pairs = list(tiny.preferences(5, conversational=True))
    in_batches = score(model, tokenizer, pairs, batch_size=4)
    for index, pair in enumerate(pairs):
        for side, logps, tokens in (
            ("chosen", in_batches.chosen_logps, in_batches.chosen_tokens),
            ("rejected", in_batches.rejected_logps, in_batches.rejected_tokens),
        ):
            words = tokenizer.apply_chat_template(pair["prompt"] + pair[side], return_tensors="pt", return_dict=False)
            start = len(pair["prompt"][0]["content"].split()) + 2  # <user> ... <assistant>
            logits = model(input_ids=words).logits.log_softmax(-1)
            expected = sum(logits[0, at - 1, words[0, at]] for at in range(start, words.shape[1]))
            assert logps[index] == pytest.approx(float(expected), rel=1e-5)
            assert tokens[index] == words.shape[1] - start


def test_a_fact_counts_as_a_word_of_its_own_and_definitions_do_not_count() -> None:
    pairs = [
        {"answer": "He", "topic": "symbol"},
        {"answer": "60", "topic": "count"},
        {"answer": "x", "topic": "definition"},
    ]
    metrics = answer_metrics(tiny.tokenizer(), ["Hello", "It is 60.", "what is"], pairs)
    assert metrics == {"answer_tokens": (1 + 3 + 2) / 3, "contains_fact": 0.5}


@pytest.mark.parametrize(
    ("line", "hidden"),
    [
        ("  4%|4         | 1/24 [00:26<10:12, 26.63s/it]\r", False),
        ("Saved to out.\n", False),
        ("ValueError: loss_type\n", False),
        ("{'loss': '1.122', 'grad_norm': '2.0'}\n", True),
        ("x.py:1: FutureWarning: old\n", True),
        ("\n", True),
    ],
)
def test_progress_and_errors_are_shown_and_the_metrics_of_each_step_are_not(line: str, hidden: bool) -> None:
    assert bool(_HIDDEN.search(line)) == hidden


def test_every_key_of_the_accelerate_config_is_one_that_accelerate_knows() -> None:
    from accelerate.commands.config.config_args import ClusterConfig

    config = ClusterConfig.from_yaml_file(str(ROOT / demo_run.ACCELERATE_CONFIG))
    assert (config.distributed_type, config.use_cpu, config.num_processes) == ("NO", True, 1)


@pytest.mark.slow
def test_the_recipe_runs_as_the_demo_launches_it_and_starts_at_ln_2(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from demo.launch import launch
    from trl_dpo_ext.reports.run_log import read_run

    monkeypatch.chdir(ROOT)
    model = tiny.saved_model(str(tmp_path / "model"))
    command = demo_run.training_command(model, tmp_path / "out")
    launch([*command, "--lora_target_modules", "all-linear", "--max_steps", "2"], tmp_path / "log")
    run = read_run(tmp_path / "out")
    assert run.train[0]["loss/sigmoid"] == pytest.approx(math.log(2), abs=1e-4)
    assert run.train[0]["loss"] == pytest.approx(math.log(2) + 0.2 * run.train[0]["loss/sft"], abs=1e-3)
    adapter = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"]) == (16, 32)


def test_the_demo_scores_the_held_out_pairs_and_writes_pages(tmp_path, monkeypatch, capsys) -> None:
    def in_this_process(command: list[str], log: Path, show: bool = True) -> None:
        assert command[:3] == [sys.executable, "-m", "trl_dpo_ext"]
        assert cli.main(command[3:]) == 0

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(demo_run, "WORK", tmp_path)
    monkeypatch.setattr(demo_run, "launch", in_this_process)
    base = tiny.saved_model(str(tmp_path / "model"))
    adapter = scoring.saved_adapter(tmp_path / "out", base)
    append_lines(Path(adapter) / LOG_FILE, [{"step": step, "loss": 0.69} for step in (1, 2)])  # as training does
    demo_run.write_pages(base, Path(adapter))
    printed = capsys.readouterr().out
    for expected in ("demo/data, test: ", "accuracy  ", "topic  ", "Wrote "):
        assert expected in printed
    assert (tmp_path / "scores.html").stat().st_size > 10_000
    page = (tmp_path / "run.html").read_text(encoding="utf-8")
    assert "score.json" in page
    assert "inspect.json" in page
    assert (tmp_path / "data.html").stat().st_size > 10_000
    kinds = [json.loads((tmp_path / "out" / f"{name}.json").read_text())["kind"] for name in ("score", "inspect")]
    assert kinds == ["trl_dpo_ext.score", "trl_dpo_ext.inspect"]


def test_a_training_that_fails_stops_the_demo_with_its_last_words(tmp_path) -> None:
    from demo.launch import launch

    with pytest.raises(SystemExit, match=r"(?s)no such loss.*status 3"):
        launch([sys.executable, "-c", "print('no such loss'); raise SystemExit(3)"], tmp_path / "log")


@pytest.mark.model
def test_the_tokenizer_of_the_model_file_is_the_published_one() -> None:
    from demo.model import find_gguf, load_tokenizer

    tokenizer = load_tokenizer(find_gguf())
    assert (tokenizer.eos_token, tokenizer.pad_token, len(tokenizer)) == ("<|im_end|>", "<|im_end|>", 49152)
    for text in ("What is 12345 + 67?", "a  1\n\t2  b", "don't, naïve, 日本"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.tokenize("12") == ["1", "2"]
    assert tokenizer.tokenize("a  1")[1:] == ["ĠĠ", "1"]  # digits are cut off first, as in the original
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
