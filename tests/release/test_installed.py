"""The wheel works in an environment without the checkout: its commands, its recipes, and its types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.release.conftest import Installed
from tests.support import tiny
from trl_dpo_ext.cli.main import COMMANDS

pytestmark = pytest.mark.release


def test_what_is_imported_is_the_wheel(installed: Installed, distributions: dict[str, Path]) -> None:
    printed = installed.python(
        "import trl_dpo_ext, importlib.metadata as m; print(trl_dpo_ext.__file__); "
        "print(trl_dpo_ext.__version__); print(m.version('trl-dpo-ext'))"
    )
    file, version, recorded = printed.splitlines()
    assert Path(file).is_relative_to(installed.environment)
    assert f"-{version}-py3" in distributions["wheel"].name
    assert version == recorded
    assert installed.run("--version") == f"trl-dpo-ext {version}\n"


def test_its_requirements_hold(installed: Installed) -> None:
    printed = installed.python(
        "from importlib import metadata; from packaging.requirements import Requirement as R\n"
        "wanted = [R(text) for text in metadata.requires('trl-dpo-ext')]\n"
        "for one in wanted:\n"
        "    if not one.marker:\n"
        "        print(one.name, one.specifier.contains(metadata.version(one.name), prereleases=True))"
    )
    lines = printed.splitlines()
    assert len(lines) > 10
    assert all(line.endswith(" True") for line in lines), printed


def test_every_command_has_help(installed: Installed) -> None:
    printed = installed.python(
        "from trl_dpo_ext.cli.main import COMMANDS, main\n"
        "for command in COMMANDS:\n"
        "    try:\n"
        "        main([command, '--help'])\n"
        "    except SystemExit as done:\n"
        "        assert not done.code\n"
    )
    assert [command for command in COMMANDS if f"usage: trl-dpo-ext {command} " not in printed] == []
    assert "usage: trl-dpo-ext " in installed.run("--help")


def test_the_recipes_are_listed_and_copied(installed: Installed) -> None:
    assert "zephyr-7b/dpo_full" in installed.run("recipes")
    installed.run("recipes", "zephyr-7b/dpo_full", "--copy", "mine")
    copy = installed.elsewhere / "mine" / "zephyr-7b-dpo_full.yaml"
    assert yaml.safe_load(copy.read_text())["loss_type"]
    assert (installed.elsewhere / "mine" / "zero3.yaml").exists()


def test_losses_estimate_and_migrate_run(installed: Installed) -> None:
    assert "sigmoid" in installed.run("losses")
    config = installed.elsewhere / "config.json"
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config.write_text(json.dumps({"model_type": "qwen2", "vocab_size": 1000, "num_key_value_heads": 2, **shape}))
    printed = installed.run("estimate", "--config", "qwen2.5-0.5b/dpo_full", "--model_config", config)
    assert "GiB per GPU" in printed
    old = installed.elsewhere / "old.yaml"
    old.write_text("stage: dpo\nmodel_name_or_path: m\npref_beta: 0.2\ndataset: d\n")
    assert "beta: 0.2" in installed.run("migrate", old)


def test_rows_are_inspected_and_a_run_trains(installed: Installed) -> None:
    """A whole run, from the installed command to its report."""
    model = tiny.saved_model(str(installed.elsewhere / "model"))
    tiny.preferences(8).to_json(str(installed.elsewhere / "rows.jsonl"))
    flags = ("--model_name_or_path", model, "--dataset_name", "rows.jsonl", "--use_cpu", "--bf16", "false")
    assert "8 pairs" in installed.run("inspect", *flags)
    installed.run(
        "train", *flags, "--output_dir", "out", "--max_steps", "1", "--logging_steps", "1", "--report_to", "none"
    )
    assert "loss" in installed.run("report", "out")


def test_a_wrong_flag_is_answered_without_a_traceback(installed: Installed) -> None:
    printed = installed.run("train", "--warmup_ratio", "0.1", succeeds=False)
    assert "warmup_steps" in printed
    assert "Traceback" not in printed
