"""Whatever has become of the files of a run, `report` shows what is left, or says that nothing is."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.reports.folders import entries, write_run, write_state, write_watched
from trl_dpo_ext.cli import main as cli
from trl_dpo_ext.distributed.resumption import RUN_FILE
from trl_dpo_ext.reports import shapes
from trl_dpo_ext.reports.run_data import read_runs
from trl_dpo_ext.run_files import ALARMS_FILE, LOG_FILE, METRICS_FILE, SAMPLES_FILE, read_samples

STATE = "checkpoint-10/trainer_state.json"
RESULTS: dict[str, Any] = {
    "score.json": {
        "kind": "trl_dpo_ext.score", "arguments": {"policy": "p"}, "margin": {"mean": 0.5},
        "accuracy": {"n": 5, "accuracy": 0.5, "interval": [0.1, 0.9], "ties": 0}, "length": {"longer_wins": 0.5},
    },
    "rank.json": {
        "kind": "trl_dpo_ext.score", "arguments": {}, "ranking": {
            "completions": 3, "prompts": 2, "compared": 2, "top1": {"interval": [0.1, 0.2], "accuracy": 0.5},
            "pairs": {"accuracy": 0.5, "n": 3},
        },
    },
    "inspect.json": {
        "kind": "trl_dpo_ext.inspect", "arguments": {"dataset": "d"}, "splits": {"train": {"rows": {"kept": 1, "loaded": 2}}},
        "findings": [{"ignored": False, "level": "warning", "name": "n", "split": "train", "sentence": "s"}],
    },
    "adapter_config.json": {"peft_type": "LORA", "r": 4, "target_modules": ["q"], "base_model_name_or_path": "b"},
}  # fmt: skip
LINES = (LOG_FILE, METRICS_FILE, ALARMS_FILE, SAMPLES_FILE)
OBJECTS = (RUN_FILE, STATE, *RESULTS)
FILES = (*OBJECTS, *LINES, "README.md")
WRONG: list[Any] = [None, -3, True, "x", [], {}, {"a": 1}, float("nan"), 10**400, [None], ["x", 1], "\ud800"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = write_watched(write_run(tmp_path / "run", steps=12, finished=False), steps=12)
    write_state(made / "checkpoint-10", entries(10))
    for name, content in RESULTS.items():
        (made / name).write_text(json.dumps(content))
    (made / "README.md").write_text("---\nbase_model: a/b\ndatasets: [c]\n---\n")
    return made


@pytest.fixture
def reported(folder: Path, tmp_path: Path) -> Callable[[], None]:
    """Reports the run beside a sound one, in every form."""
    sound = write_watched(write_run(tmp_path / "sound", steps=12), steps=12)

    def report() -> None:
        out = {form: str(tmp_path / f"report.{form}") for form in ("json", "html")}
        assert cli.main(["report", str(folder), str(sound), "--json", out["json"], "--html", out["html"]]) == 0
        assert len(json.loads(Path(out["json"]).read_text())["runs"]) == 2

    return report


DAMAGED: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "binary": lambda content: bytes(range(256)) * 40,
    "zeros": lambda content: b"\0" * 4096,
    "in UTF-16": lambda content: content.decode().encode("utf-16"),
    "brackets": lambda content: b"[" * 100_000,
    "brackets in a line": lambda content: content + b'{"step": 1, "a": ' + b"[" * 100_000 + b"\n",
    "a list": lambda content: b"[1, 2]",
    "cut": lambda content: content[: len(content) // 2],
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in FILES if name not in (RUN_FILE, STATE, LOG_FILE)]


@pytest.mark.parametrize("name", [RUN_FILE, STATE, LOG_FILE, *SLOW])
def test_a_file_that_was_damaged_as_a_whole_ends_in_no_traceback(folder: Path, reported, name: str) -> None:
    file = folder / name
    content = file.read_bytes()
    for damaged in DAMAGED.values():
        file.write_bytes(damaged(content))
        reported()
    file.unlink()
    reported()
    file.symlink_to("nowhere")
    reported()
    file.unlink()
    file.mkdir()
    reported()


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for name in value if isinstance(value, dict) else range(min(len(value), 2)) if isinstance(value, list) else ():
        yield from paths(value[name], (*path, name))


def changed(value: Any, path: tuple[Any, ...], new: Any, *, remove: bool = False) -> Any:
    if not path:
        return new
    value = at = copy.deepcopy(value)
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = new
    if remove:
        del at[path[-1]]
    return value


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OBJECTS, *LINES])
def test_a_value_of_another_type_or_a_missing_one_ends_in_no_traceback(folder: Path, reported, name: str) -> None:
    *before, last = (folder / name).read_text().splitlines()
    draw = random.Random(name)
    for path in paths(json.loads(last)):
        new = draw.choice(WRONG)
        damaged = json.dumps(changed(json.loads(last), path, new, remove=bool(path) and new is None))
        (folder / name).write_text("\n".join([*before, damaged, ""]))
        reported()


def record_with(folder: Path, **changes: Any) -> Any:
    content = json.loads((folder / RUN_FILE).read_text())
    content["record"] |= changes
    (folder / RUN_FILE).write_text(json.dumps(content))
    (run,) = read_runs([folder])
    return run


def test_an_accuracy_that_is_no_share_has_no_interval(folder: Path, reported) -> None:
    lines = [{**json.loads(line), "accuracy": -3} for line in (folder / METRICS_FILE).read_text().splitlines()]
    (folder / METRICS_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    reported()


def test_what_is_left_of_a_record_is_shown(folder: Path, reported) -> None:
    run = record_with(
        folder, losses=[{"name": "ipo"}, 7, {"weight": "x"}], batch=None, steps={"max": "many"}, options=[3, "a=b"]
    )
    assert [(loss["name"], loss["weight"]) for loss in run.record["losses"]] == [("ipo", 1.0), ("?", 1.0)]
    assert (run.pairs_per_step, run.max_steps) == (None, 40)  # the latter from the checkpoint
    assert run.record["options"] == ["a=b"]
    assert run.record["model"] == "some/model"
    reported()


@pytest.mark.parametrize(
    "wrong", [{"losses": []}, {"reference": ["None", ": x", ""]}, {"losses": [], "reference": ["None"]}]
)
def test_a_record_without_losses_or_with_odd_lines_is_compared(folder: Path, reported, wrong: dict[str, Any]) -> None:
    record_with(folder, **wrong)
    reported()


def test_a_card_that_refers_to_itself_is_read(folder: Path) -> None:
    (folder / RUN_FILE).unlink()
    for metadata in ("base_model: &a [*a]", "base_model: &a {b: *a}", "base_model: 2020-01-01", "- a"):
        (folder / "README.md").write_text(f"---\n{metadata}\n---\n")
        assert cli.main(["report", str(folder)]) == 0


def test_readers_leave_out_what_does_not_fit() -> None:
    read = shapes.fields({"a": shapes.whole, "b": shapes.default(shapes.text, "?"), "c": shapes.items(shapes.number)})
    assert read({"a": True, "b": 3, "c": [1, "x", 2.5, None, 10**400]}) == {"b": "?", "c": [1, 2.5]}
    assert read({"a": 3, "d": [[[[[1]]]]]}) == {"a": 3, "b": "?", "c": [], "d": [[[["..."]]]]}
    assert read([1]) == {"b": "?", "c": []}
    assert shapes.whole(-1) is shapes.whole(1.0) is shapes.number(False) is shapes.MISSING
    assert shapes.plain({1: -(10**400), "x": object}) == {"1": float("-inf"), "x": str(object)}
    assert shapes.mapping(shapes.text)({"a": "b", "c": 1}) == {"a": "b"}


def test_a_line_of_samples_without_prompt_or_answer_does_not_end_a_resumed_run(tmp_path: Path) -> None:
    good = {"step": 1, "prompt_id": "p", "completion": "c"}
    lines = [{**good, "prompt_id": []}, {**good, "completion": None}, {"step": 1}, {**good, "step": True}, good]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_samples(tmp_path / "samples.jsonl") == [good]
