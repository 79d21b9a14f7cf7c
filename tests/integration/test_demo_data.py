"""What `inspect` says about the demo's data, computed once by hand from TRL's own tokenization."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demo.model import find_gguf, load_tokenizer
from trl_dpo_ext.cli import main as cli

pytestmark = pytest.mark.model
DATA = Path(__file__).parents[2] / "demo" / "data"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: Any) -> str:
    folder = tmp_path_factory.mktemp("smollm2")
    load_tokenizer(find_gguf()).save_pretrained(folder)
    return str(folder)


def inspect(tokenizer: str, *flags: str, capsys: Any) -> dict[str, Any]:
    capsys.readouterr()
    arguments = ["--model_name_or_path", tokenizer, "--dataset_name", str(DATA), "--json", "-", *flags]
    assert cli.main(["inspect", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_demo_at_48_tokens(tokenizer: str, capsys: Any) -> None:
    found = inspect(tokenizer, "--max_length", "48", "--per_device_train_batch_size", "4", capsys=capsys)
    train, test = found["splits"]["train"], found["splits"]["test"]
    assert (train["rows"]["loaded"], test["rows"]["loaded"]) == (285, 65)
    names = ("p5", "p25", "p50", "p75", "p95", "p99", "max")
    lengths = {
        (part, when): [summary[name] for name in names] + [round(summary["mean"], 1)]
        for part, both in train["lengths"].items()
        for when, summary in both.items()
    }
    assert lengths["prompt", "before"] == [36, 37, 38, 40, 42, 43, 43, 38.5]
    assert lengths["chosen", "before"] == [7, 8, 9, 11, 14, 15, 18, 9.8]
    assert lengths["chosen", "after"] == [6, 7, 8, 10, 11, 12, 13, 8.4]
    assert lengths["rejected", "before"] == [23, 28, 32, 41, 48, 55, 57, 34.5]
    assert lengths["rejected", "after"] == [6, 8, 10, 11, 12, 13, 14, 9.5]
    cut = {
        side: (train["truncation"][side]["rows"], train["truncation"][side]["tokens"])
        for side in ("chosen", "rejected")
    }
    assert cut == {"chosen": (123, 384), "rejected": (285, 7116)}
    assert train["truncation"]["chosen"]["rows_without_eos"] == 88
    bias = train["length_bias"]
    assert [bias["before"][key] for key in ("longer", "shorter", "equal")] == [0, 285, 0]
    assert [bias["after"][key] for key in ("longer", "shorter", "equal")] == [0, 122, 163]
    assert [round(100 * edge, 1) for edge in bias["before"]["interval"]] == [0.0, 1.3]
    assert [round(100 * edge, 1) for edge in (bias["after"]["accuracy"], *bias["after"]["interval"])] == [
        28.6,
        23.7,
        34.1,
    ]
    assert (train["difference"]["rows"], train["difference"]["first"]["p50"], train["difference"]["first"]["p95"]) == (
        245,
        0,
        8,
    )
    fed = train["tokens"]["fed"]
    assert (fed["plain"], fed["share_prompt"], round(fed["ratio"], 2)) == (27_046, 15_283, 1.77)
    assert sum(train["tokens"]["scored"].values()) == 5104
    assert train["eos_bos"]["behind_eos"] == [["\n", 162]]
    assert train["max_length"]["keeps_all"] == {"value": 128, "plain": 34_546, "share_prompt": 22_712}
    assert (found["overlap"]["prompts"]["exact"], found["overlap"]["chosen"]["exact"]) == (0, 6)
    findings = {each["name"]: each for each in found["findings"] if each["split"] == "train"}
    assert {name for name, each in findings.items() if each["level"] == "warning"} == {
        "eos_cut",
        "answer_cut",
        "identical_after_truncation",
        "length_bias",
    }
    assert findings["identical_after_truncation"]["count"] == 40
    assert findings["identical_after_truncation"]["rows"] == [11, 25, 30, 45, 49]
    assert findings["near_identical"]["rows"] == [33, 72, 87, 172, 193]
    assert (findings["near_identical"]["count"], findings["near_identical"]["level"]) == (7, "note")
    assert {name for name, each in findings.items() if each["level"] == "note"} == {
        "near_identical",
        "scored_after_eos",
        "unused_column",
    }


def test_the_demo_whole(tokenizer: str, capsys: Any) -> None:
    found = inspect(tokenizer, "--max_length", "160", "--per_device_train_batch_size", "4", capsys=capsys)
    train = found["splits"]["train"]
    fed = train["tokens"]["fed"]
    assert (fed["plain"], fed["padded"], fed["share_prompt"], round(fed["ratio"], 2)) == (34_546, 47_036, 22_712, 1.52)
    assert train["truncation"]["rejected"]["rows"] == 0
    assert train["length_bias"]["after"]["accuracy"] == 0.0
