"""The record and the log that a run leaves in its output folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import TrainerCallback

from tests.support import runs, tiny
from trl_dpo_ext.distributed.resumption import RUN_FILE
from trl_dpo_ext.model_card.record import fingerprint
from trl_dpo_ext.reports.run_data import read_runs
from trl_dpo_ext.run_files import LOG_FILE, read_json, read_lines


class Killed(RuntimeError):
    pass


class KillAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise Killed


def record(folder: Path) -> dict[str, Any]:
    found = read_json(folder / RUN_FILE)
    assert found
    return found["record"]


def without_time(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    timed = ("runtime", "per_second", "flos")
    return [{k: v for k, v in entry.items() if not any(word in k for word in timed)} for entry in entries]


def test_a_run_records_what_it_trains_and_its_log(tmp_path: Path) -> None:
    held = tiny.preferences().select(range(3))
    run = runs.trained(
        tmp_path, eval_dataset=held, eval_strategy="steps", eval_steps=2, loss_type="dpop", dpop_lambda=7.0, seed=3,
        gradient_accumulation_steps=2, per_device_train_batch_size=2, save_strategy="steps", save_steps=2,
        hub_token="hf_secretsecretsecret", push_to_hub=False, run_name="of no interest",
    )  # fmt: skip
    found = record(tmp_path)
    assert found["losses"] == [{"name": "dpop", "weight": 1.0, "hyperparameters": {"beta": 0.1, "dpop_lambda": 7.0}}]
    assert found["batch"] == {"per_device": 2, "accumulation": 2, "processes": 1, "pairs_per_step": 4}
    assert found["steps"]["max"] == 3
    assert found["data"]["evaluation"][""] == {"rows": 3, "fingerprint": fingerprint(held)}
    assert found["settings"]["seed"] == 3
    assert found["settings"]["learning_rate"] == 1e-2
    assert found["reference"][0] == "Model: the policy before training"
    text = (tmp_path / RUN_FILE).read_text()
    for hidden in ("hf_secret", str(tmp_path), "of no interest"):
        assert hidden not in text
    assert record(tmp_path / "checkpoint-2")["losses"] == found["losses"]
    assert without_time(read_lines(tmp_path / LOG_FILE)) == runs.logs(run)


def test_a_killed_run_has_its_log_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    with pytest.raises(Killed):
        runs.trained(tmp_path, callbacks=[KillAt(5)], **settings)
    (killed,) = read_runs([tmp_path])
    assert killed.series["loss"][0] == [1, 2, 3, 4]
    assert killed.status.startswith("not finished: step 4 of 6")
    run = runs.trainer(tmp_path, **settings)
    run.train(resume_from_checkpoint=True)
    assert [entry["step"] for entry in read_lines(tmp_path / LOG_FILE) if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    assert record(tmp_path)["resumed_from"] == "checkpoint-4"
    runs.trained(tmp_path, max_steps=2)
    assert [entry["step"] for entry in read_lines(tmp_path / LOG_FILE) if "loss" in entry] == [1, 2]


def test_several_evaluation_sets_have_a_fingerprint_each(tmp_path: Path) -> None:
    sets = {"near": tiny.preferences().select(range(2)), "far": tiny.preferences().select(range(2, 6))}
    runs.trained(tmp_path, eval_dataset=sets, eval_strategy="steps", eval_steps=3)
    found = record(tmp_path)["data"]["evaluation"]
    assert {name: part["rows"] for name, part in found.items()} == {"near": 2, "far": 4}
    assert found["near"]["fingerprint"] != found["far"]["fingerprint"]
    (run,) = read_runs([tmp_path])
    assert run.evaluation_sets == ["near", "far"]


def pairs(count: int, word: str = "no") -> Dataset:
    return Dataset.from_list([{"prompt": f"{at}", "chosen": "yes", "rejected": word} for at in range(count)])


def test_a_fingerprint_is_of_the_pairs_and_not_of_their_tokens() -> None:
    plain = pairs(50)
    assert fingerprint(plain) == fingerprint(plain.add_column("chosen_ids", [[1]] * 50))  # type: ignore[call-arg]
    assert fingerprint(plain) == fingerprint(Dataset.from_list(list(plain)))
    ended = plain.map(lambda row: {side: f"{row[side]}<eos>" for side in ("chosen", "rejected")})
    assert fingerprint(ended, "<eos>") == fingerprint(plain)
    others = [pairs(49), pairs(50, "never"), plain.select(range(49, -1, -1)), plain.select([*range(49), 0])]
    assert len({fingerprint(each) for each in (plain, *others)}) == 5
    assert fingerprint(pairs(5000)) != fingerprint(pairs(5001))
    assert fingerprint(plain.to_iterable_dataset()) is None
    assert fingerprint(Dataset.from_dict({"text": ["a"]})) is None
    assert (fingerprint(pairs(1).select([])) or "").startswith("0 rows, ")


def test_messages_have_a_fingerprint() -> None:
    message = [{"role": "user", "content": "ü"}]
    rows = [{"prompt": message, "chosen": message, "rejected": message}]
    assert (fingerprint(Dataset.from_list(rows)) or "").startswith("1 rows, ")
