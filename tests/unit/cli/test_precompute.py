"""`trl-dpo-ext precompute` as a process of its own: a store that survives its process, also one that is killed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from tests.support import tiny
from trl_dpo_ext.cli import main as cli
from trl_dpo_ext.reference.store.store import Store


def pairs_file(folder: Path, pairs: int) -> Path:
    words, chance = tiny.SENTENCE.split(), random.Random(0)

    def text(most: int) -> str:
        return " " + " ".join(chance.choices(words, k=chance.randint(4, most)))

    rows = [{"prompt": text(20), "chosen": text(9), "rejected": text(15)} for _ in range(pairs)]
    file = folder / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def arguments(folder: Path, data: Path, *more: str) -> list[str]:
    model = folder / "model"
    if not model.exists():
        tiny.saved_model(str(model))
    given = {
        "model_name_or_path": model,
        "dataset_name": data,
        "output_dir": folder / "out",
        "ref_store": folder / "refs",
    }
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return [*flags, "--bf16", "false", "--use_cpu", "--report_to", "none", "--learning_rate", "1e-3", *more]


def start(*argv: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "trl_dpo_ext", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def counts(printed: str) -> tuple[int, int]:
    found = re.search(r"(\d+) sequences found, (?:(\d+) computed|none to compute)", printed)
    assert found, printed[-3000:]
    return int(found[1]), int(found[2] or 0)


@pytest.mark.slow
def test_a_killed_pass_goes_on_where_it_stopped_and_gives_the_same_numbers(tmp_path, capsys):
    data = pairs_file(tmp_path, pairs=1500)
    flags = ["precompute", *arguments(tmp_path, data, "--precompute_ref_max_tokens", "40")]
    process = start(*flags)
    parts = tmp_path / "refs" / "parts"
    for _ in range(1200):
        if process.poll() is not None or (parts.is_dir() and any(parts.glob("*.parquet"))):
            break
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0][-3000:]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = len(Store.read_only(tmp_path / "refs"))
    assert kept > 0

    assert cli.main(arguments_again(flags, 4096)) == 0
    found, computed = counts(capsys.readouterr().out)
    assert found == kept
    assert found + computed == len(Store.read_only(tmp_path / "refs"))
    assert computed > 0

    whole = tmp_path / "whole"
    assert cli.main([*arguments_again(flags, 4096), "--ref_store", str(whole)]) == 0
    resumed, at_once = (Store.read_only(folder).load(None) for folder in (tmp_path / "refs", whole))
    assert len(resumed) == len(at_once)
    for part in Store.read_only(whole).parts:
        assert part.sequences > 0
    assert sorted_logps(resumed) == pytest.approx(sorted_logps(at_once), abs=1e-4)


def arguments_again(flags: list[str], max_tokens: int) -> list[str]:
    return [*flags[:-1], str(max_tokens)]


def sorted_logps(loaded):
    """All log-probs in the order of their keys."""
    order = loaded.index.positions
    return [float(x) for row in order for x in loaded.flat[loaded.offsets[row] : loaded.offsets[row + 1]]]


@pytest.mark.slow
def test_a_store_filled_by_the_command_serves_the_training_command(tmp_path, capsys):
    data = pairs_file(tmp_path, pairs=6)
    assert cli.main(["precompute", *arguments(tmp_path, data)]) == 0
    assert counts(capsys.readouterr().out)[0] == 0
    train = ["train", *arguments(tmp_path, data, "--precompute_ref_log_probs", "--max_steps", "2", "--seed", "5")]
    assert cli.main([*train, "--per_device_train_batch_size", "2", "--save_strategy", "no"]) == 0
    found, computed = counts(capsys.readouterr().out)
    assert computed == 0
    assert found > 0
    assert cli.main(["precompute", *arguments(tmp_path, data)]) == 0
    assert counts(capsys.readouterr().out) == (found, 0)


@pytest.mark.slow
def test_a_described_reference_is_stored_without_the_policy_and_read_beside_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    data = pairs_file(tmp_path, pairs=6)
    nf4 = ["--ref_quantization", "nf4", "--use_peft", "--lora_target_modules", "q_proj", "v_proj"]
    loaded = []
    load = LlamaForCausalLM.from_pretrained.__func__
    monkeypatch.setattr(
        LlamaForCausalLM,
        "from_pretrained",
        classmethod(lambda cls, *a, **k: loaded.append(k.get("quantization_config")) or load(cls, *a, **k)),
    )
    assert cli.main(["precompute", *arguments(tmp_path, data, *nf4)]) == 0
    assert counts(capsys.readouterr().out) == (0, 12)
    assert len(loaded) == 1  # the reference, and no policy
    assert loaded[0] is not None
    steps = ["--max_steps", "1", "--per_device_train_batch_size", "2", "--save_strategy", "no"]
    train = ["train", *arguments(tmp_path, data, "--precompute_ref_log_probs", *nf4, *steps)]
    assert cli.main(train) == 0
    printed = capsys.readouterr().out
    assert counts(printed) == (12, 0)
    assert len(loaded) == 2  # the policy, and no reference
    assert loaded[1] is None


def test_a_stream_is_read_to_its_end(tmp_path, capsys):
    data = pairs_file(tmp_path, pairs=6)
    assert cli.main(["precompute", *arguments(tmp_path, data, "--dataset_streaming")]) == 0
    assert counts(capsys.readouterr().out)[1] == 12


def test_a_folder_that_is_no_store_is_named_before_the_pass(tmp_path, capsys):
    data = pairs_file(tmp_path, pairs=2)
    (tmp_path / "refs").write_text("notes")
    assert cli.main(["precompute", *arguments(tmp_path, data)]) == 2
    assert "refs" in capsys.readouterr().err
