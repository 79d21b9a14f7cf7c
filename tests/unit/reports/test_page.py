"""The page of `report` as a file; tests/browser opens it."""

from __future__ import annotations

import html
import json
import random
import re
from pathlib import Path

import pytest
from datasets import Dataset

from tests.support import runs, tiny
from tests.unit.reports.folders import HOSTILE, entries, write_lines, write_run, write_state, write_watched
from trl_dpo_ext import inspect_preferences
from trl_dpo_ext.pages import LARGEST, Markup
from trl_dpo_ext.reports.page import page
from trl_dpo_ext.reports.page.samples import difference
from trl_dpo_ext.reports.result import report_of
from trl_dpo_ext.reports.run_data import read_runs
from trl_dpo_ext.run_files import LOG_FILE, SAMPLES_FILE


def made(*folders: Path) -> str:
    return page(report_of(read_runs(folders), "0"))


def titles(text: str) -> list[str]:
    """The charts over steps."""
    over_steps = text.split('data-axis="samples"')[0].split('data-axis="epoch"')[0]
    return re.findall("<figcaption><b>([^<]+)</b>", over_steps)


def test_a_watched_run_has_a_chart_of_each_metric(tmp_path: Path) -> None:
    text = made(write_watched(write_run(tmp_path / "run")))
    assert titles(text) == [
        "Loss", "Reward accuracy", "Reward margin", "Log-prob, change from the start", "KL to the reference",
        "Gradient norm", "Learning rate", "Length of samples", "Samples that end", "Repetition in samples",
    ]  # fmt: skip
    assert "nats per token" in text
    assert "chance" in text
    assert "95 % intervals" in text
    assert "one half in evaluation" in text
    assert text.count('class="mark alarm"') == 3 * len(titles(text))


def test_of_a_run_of_plain_trl_what_is_missing_is_left_out(tmp_path: Path) -> None:
    write_state(tmp_path / "plain", entries(40))
    text = made(tmp_path / "plain")
    assert titles(text)[-1] == "Learning rate"
    assert "nats per answer" in text
    for missing in ("Alarms", "Samples", 'data-axis="samples"', "intervals"):
        assert missing not in text
    assert 'data-axis="epoch"' in text


def test_nothing_in_a_folder_can_leave_its_place(tmp_path: Path) -> None:
    hostile = tmp_path / HOSTILE.replace("/", "")
    for text in (
        made(write_watched(write_run(hostile, note=HOSTILE))),
        made(write_watched(write_run(tmp_path / "b")), write_watched(write_run(tmp_path / "c")), hostile),
    ):
        assert text.count("<script") == 2
        assert "document.title=&#x27;broken&#x27;" in text


def test_samples_show_what_changed() -> None:
    shown = "".join(map(str, difference("The capital is Madrid <eos>", "The capital is Paris , I think <eos>")))
    assert shown == "The capital is<del> Madrid</del><ins> Paris , I think</ins> <eos>"
    assert "".join(map(str, difference("东京是", "大阪是"))) == "<del>东京</del><ins>大阪</ins>是"


@pytest.mark.parametrize("seed", range(20))
def test_a_difference_holds_both_texts(seed: int) -> None:
    chosen = random.Random(seed)
    before, after = ("".join(chosen.choices(["a", "b ", " c", "\n", "东", "<"], k=chosen.randrange(30))) for _ in "xy")
    shown = "".join(html.escape(part) if not isinstance(part, Markup) else part for part in difference(before, after))
    assert html.unescape(re.sub("<del>.*?</del>|</?ins>", "", shown, flags=re.DOTALL)) == after
    assert html.unescape(re.sub("<ins>.*?</ins>|</?del>", "", shown, flags=re.DOTALL)) == before


def test_texts_that_repeat_themselves_are_compared_quickly() -> None:
    before, after = "start " + "well <unk> " * 2000 + "old end", "start " + "<unk> well " * 2000 + "new end"
    parts = difference(before, after)
    assert parts[0] == "start"
    assert parts[-1] == " end"


def test_unchanged_samples_say_so(tmp_path: Path) -> None:
    text = made(write_watched(write_run(tmp_path / "run"), prompts=["What is it?"]))
    assert text.count("(unchanged)") == 3
    assert text.count("<del>") == text.count("<ins>") == 1


def test_runs_on_other_evaluation_data_are_marked_everywhere(tmp_path: Path) -> None:
    text = made(write_run(tmp_path / "a"), write_run(tmp_path / "b", evaluated="50 rows, bbbb"))
    assert "Not comparable" in text
    assert "Evaluated on different data (A, B)." in text
    assert re.search(r'class="other-data" title="on other evaluation data">[\d.]+ \[B\]', text)
    assert 'other-data"' not in made(write_run(tmp_path / "c"), write_run(tmp_path / "d"))


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    text = made(write_run(tmp_path / "a"), tmp_path / "none", write_run(tmp_path / "b"))
    assert "none is not a folder" in text
    assert "3 runs" in text


@pytest.mark.parametrize("count", [1, 3])
def test_long_runs_are_thinned_and_small(tmp_path: Path, count: int) -> None:
    folders = [tmp_path / f"run-{at}" for at in range(count)]
    for folder in folders:
        write_run(folder, max_steps=20_000)
        write_lines(
            folder / LOG_FILE, [{"loss": 5.0 if at == 9_999 else 1 / at, "step": at} for at in range(1, 20_001)]
        )
        (folder / "trainer_state.json").unlink()
    text = made(*folders)
    assert len(text.encode()) < LARGEST / 10
    points = re.search(r'data-x="([^"]*)" data-y="([^"]*)"', text)
    assert points
    assert 1000 < len(points[1].split()) <= 2000
    assert "5" in points[2].split()  # the spike


def test_results_of_score_and_inspect_in_the_folder_are_repeated(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    accuracy = {"n": 65, "accuracy": 0.9, "interval": [0.8, 0.95], "ties": 3}
    scored = {"arguments": {"policy": HOSTILE}, "accuracy": accuracy, "margin": {"mean": 1.5}}
    scored |= {"kind": "trl_dpo_ext.score", "length": {"longer_wins": 0.25}}
    (folder / "score.json").write_text(json.dumps(scored))
    (folder / "future.json").write_text(json.dumps({"kind": "trl_dpo_ext.score", "format": 9}))
    (folder / "other.json").write_text("[1, 2]")
    text = made(folder)
    assert "90.0 % (80.0-95.0) of 65 pairs, 3 ties as one half" in text
    assert "future.json" in text
    assert "other.json" not in text
    assert text.count("<script") == 2


def test_what_inspect_writes_is_repeated(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    rows = [{"prompt": f"say {at} ", "chosen": "yes", "rejected": "yes"} for at in range(4)]
    result = inspect_preferences(Dataset.from_list(rows), tiny.tokenizer(), runs.config(tmp_path))
    (folder / "inspect.json").write_text(result.json())
    text = made(folder)
    assert "4 of 4" in text
    assert "warning: identical, train" in text


def test_many_runs_with_long_answers_fit_into_a_page(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"run-{at}", seed=at) for at in range(12)]
    words = [f"word-{at}" for at in range(1000)]
    for folder in folders:
        answers = [
            {"step": step, "prompt": f"prompt {at}", "completion": " ".join(words[step % 7 :: 1 + step % 3])}
            for step in range(12)
            for at in range(40)
        ]
        write_lines(folder / SAMPLES_FILE, answers)
    text = made(*folders)
    assert len(text.encode()) < 20 * 2**20
    assert "of 40 prompts are shown" in text
