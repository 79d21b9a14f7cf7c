"""What `train` logs before it starts."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import runs, tiny
from trl_dpo_ext.cli import main as cli
from trl_dpo_ext.logging_setup import show_messages


def test_training_says_what_will_run_and_warns_like_the_estimate(tmp_path, capsys) -> None:
    tiny.preferences(8).to_json(str(tmp_path / "pairs.jsonl"))
    recipe = tmp_path / "recipe.yaml"
    keys = {
        "model_name_or_path": tiny.saved_model(str(tmp_path / "model")),
        "dataset_name": str(tmp_path / "pairs.jsonl"),
        "output_dir": str(tmp_path / "out"),
        "loss_type": "sigmoid_norm",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
    }
    recipe.write_text("# A recipe\n#\n# Batch        128 pairs per step\n" + yaml.safe_dump(keys))
    with pytest.warns(UserWarning, match="ignore_pitfalls") as caught:
        assert cli.main(["train", "--config", str(recipe)]) == 0
    said = [str(warning.message) for warning in caught]
    assert any("beta=0.1 is too small for sigmoid_norm" in message for message in said)
    assert any("the recipe uses 128. Set gradient_accumulation_steps: 64" in message for message in said)
    printed = capsys.readouterr().out
    assert "at the first step 0.6931" in printed
    assert "Reference: LlamaForCausalLM in float32, 0.0 MiB of weights on this process" in printed
    assert "Batch: 4 pairs per step" in printed
    assert "Steps: 2 (1 epochs of 2)" in printed
    state = json.loads((Path(keys["output_dir"]) / "trainer_state.json").read_text())
    assert state["global_step"] == 2


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ({}, ["info", "warning"]),
        ({"log_level": "info"}, ["info", "warning"]),
        ({"log_level": "warning"}, ["warning"]),
        ({"log_level": "error"}, []),
        ({"disable_tqdm": True}, ["warning"]),
        ({"disable_tqdm": True, "log_level": "error"}, []),
    ],
)
def test_the_flags_of_transformers_silence_messages(tmp_path, capsys, flags: dict[str, Any], shown: list[str]) -> None:
    logger = logging.getLogger("trl_dpo_ext.any.module")
    for _ in range(2):  # a second trainer in one process does not show messages twice
        show_messages(runs.config(tmp_path, **{"disable_tqdm": False, **flags}))
    logger.info("info")
    logger.warning("warning")
    assert capsys.readouterr().out.split() == shown
