"""Tables of samples in the trackers of a run: each row is sent once, and a tracker that fails ends nothing."""

from __future__ import annotations

import sys
import warnings
from types import SimpleNamespace
from typing import Any

import pandas
import pytest
from transformers.integrations import TensorBoardCallback

from trl_dpo_ext.watch.tables import COLUMNS, SampleTables, as_markdown


def host(*trackers: str, callbacks: tuple[Any, ...] = ()) -> Any:
    handler = SimpleNamespace(callbacks=list(callbacks))
    args = SimpleNamespace(report_to=list(trackers))
    return SimpleNamespace(trainer=SimpleNamespace(args=args, callback_handler=handler))


def row(step: int, number: int, **values: Any) -> dict[str, Any]:
    texts = {"prompt": f"prompt {number}", "completion": f"answer {step}<eos>", "previous": None}
    plain = {"step": step, "prompt_id": str(number), "length": 3, "ended": True, "repetition": 0.25}
    return {**plain, **texts, "completion_ids": [1, 2], **values}


class FakeTable:
    """`wandb.Table`, with or without the modes that older clients lack."""

    def __init__(self, columns: list[str], **options: Any) -> None:
        self.columns, self.options, self.data = columns, options, []

    def add_data(self, *values: Any) -> None:
        assert len(values) == len(self.columns)
        self.data.append(values)


class OldTable(FakeTable):
    def __init__(self, columns: list[str]) -> None:
        super().__init__(columns)


def fake_wandb(monkeypatch: pytest.MonkeyPatch, table: type) -> list[dict[str, Any]]:
    logged: list[dict[str, Any]] = []
    run = SimpleNamespace(log=logged.append)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Table=table, run=run))
    return logged


def test_wandb_gets_one_table_that_grows(monkeypatch) -> None:
    logged = fake_wandb(monkeypatch, FakeTable)
    sent = SampleTables(host("wandb"))
    for step in (0, 10):
        sent.log(step, [row(step, 1), row(step, 2)])
    first, second = (each["watch/samples"] for each in logged)
    assert first is second
    assert first.options == {"log_mode": "INCREMENTAL"}
    assert first.columns == list(COLUMNS)
    assert [data[0] for data in first.data] == [0, 0, 10, 10]
    assert [each["train/global_step"] for each in logged] == [0, 10]


def test_an_older_wandb_gets_a_table_for_each_step(monkeypatch) -> None:
    logged = fake_wandb(monkeypatch, OldTable)
    sent = SampleTables(host("wandb"))
    for step in (0, 10):
        sent.log(step, [row(step, 1)])
    assert [[data[0] for data in each["watch/samples"].data] for each in logged] == [[0], [10]]


def test_trackio_gets_plain_columns(monkeypatch) -> None:
    logged: list[dict[str, Any]] = []
    fake = SimpleNamespace(Table=lambda dataframe: dataframe, log=logged.append)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    SampleTables(host("trackio")).log(3, [row(3, 1), row(3, 2)])
    (entry,) = logged
    assert list(entry["watch/samples"].columns) == list(COLUMNS)
    assert entry["watch/samples"]["step"].tolist() == [3, 3]


def test_mlflow_and_comet_get_a_file_for_each_step(monkeypatch) -> None:
    files: list[tuple[str, Any]] = []
    mlflow = SimpleNamespace(
        active_run=lambda: object(), log_table=lambda data, artifact_file: files.append((artifact_file, data))
    )
    experiment = SimpleNamespace(log_table=lambda name, tabular_data: files.append((name, tabular_data)))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "comet_ml", SimpleNamespace(get_running_experiment=lambda: experiment))
    sent = SampleTables(host("mlflow", "comet_ml"))
    for step in (0, 10):
        sent.log(step, [row(step, 1)])
    names = [name for name, _ in files]
    assert len(set(names)) == 4
    assert names[0] == "watch/samples_step_00000000.json"
    assert names[1] == "watch_samples_step_00000000.csv"
    assert files[2][1]["step"] == [10]
    assert isinstance(files[3][1], pandas.DataFrame)


def test_no_run_of_a_tracker_is_begun(monkeypatch) -> None:
    def unexpected(*_: Any, **__: Any) -> None:
        raise AssertionError("a table was logged")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=None, Table=unexpected))
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(active_run=lambda: None, log_table=unexpected))
    monkeypatch.setitem(sys.modules, "comet_ml", SimpleNamespace(get_running_experiment=lambda: None))
    sent = SampleTables(host("wandb", "mlflow", "comet_ml", "tensorboard"))
    sent.log(0, [row(0, 1)])
    assert len(sent.trackers) == 4


def test_tensorboard_gets_text_through_the_writer_of_its_callback() -> None:
    written: list[tuple[Any, ...]] = []
    callback = TensorBoardCallback.__new__(TensorBoardCallback)
    callback.tb_writer = SimpleNamespace(add_text=lambda *args: written.append(args), flush=lambda: None)
    SampleTables(host("tensorboard", callbacks=(object(), callback))).log(5, [row(5, 1)])
    assert written == [("watch/samples", as_markdown([row(5, 1)]), 5)]


def test_markdown_shows_special_tokens_and_keeps_its_shape() -> None:
    text = as_markdown([row(1, 1, completion="a | *b*\n<|im_end|>", previous=None)])
    head, rule, line = text.splitlines()
    assert head.count("|") == rule.count("|") == line.count("|") == len(COLUMNS) + 1
    assert "&#60;&#124;im&#95;end&#124;&#62;" in line
    assert "a &#124; &#42;b&#42;↵" in line


def test_a_tracker_that_fails_is_told_once_and_the_others_go_on(monkeypatch) -> None:
    logged = fake_wandb(monkeypatch, FakeTable)

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(Table=dict, log=offline))
    sent = SampleTables(host("trackio", "wandb", "neptune"))
    with pytest.warns(UserWarning, match=r"trackio has not taken the table of samples.*ConnectionError: no network"):
        sent.log(0, [row(0, 1)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sent.log(1, [row(1, 1)])
    assert list(sent.trackers) == ["wandb"]
    assert len(logged) == 2
