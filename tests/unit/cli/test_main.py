"""The command line: its commands, and wrong input without a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.command_line import BASE
from trl_dpo_ext import list_losses
from trl_dpo_ext.cli import main as cli


def test_wrong_input_ends_with_status_two_and_no_traceback(capsys) -> None:
    assert cli.main(["train", *BASE, "--loss_type", "sigmod"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: 3 problems:\n- Unknown loss_type 'sigmod'.")  # and no model and no data
    assert "Traceback" not in captured.err


def test_losses_lists_every_variant(capsys) -> None:
    assert cli.main(["losses"]) == 0
    table = capsys.readouterr().out
    pairs, lists, experimental = table.split("\n\n")
    seen = [variant for variant in list_losses() if not variant.experimental]
    for part, variants in (
        (pairs, [variant for variant in seen if variant.reads == "pairs"]),
        (lists, [variant for variant in seen if variant.reads == "lists"]),
        (experimental, [variant for variant in list_losses() if variant.experimental]),
    ):
        names = [variant.name for variant in variants]
        assert names
        assert [line.split()[0] for line in part.splitlines()[1:]] == names
    assert cli.main(["losses", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["name"] for record in records] == [variant.name for variant in list_losses()]


@pytest.mark.parametrize("variant", list_losses(), ids=lambda v: v.name)
def test_losses_name_prints_formula_and_hyperparameters(capsys, variant) -> None:
    assert cli.main(["losses", variant.name]) == 0
    text = capsys.readouterr().out
    assert variant.summary in text
    assert all(f"  {parameter.name}: " in text for parameter in variant.hyperparameters)


def test_losses_of_an_unknown_name_is_an_error(capsys) -> None:
    assert cli.main(["losses", "dpopp"]) == 2
    assert "Did you mean 'dpop'?" in capsys.readouterr().err


@pytest.mark.slow
def test_listing_losses_does_not_import_trl() -> None:
    code = "import sys, trl_dpo_ext.cli.main as c; c.main(['losses']); print('trl' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.splitlines()[-1] == "False False"


def test_report_reads_what_training_left_and_names_a_folder_without_a_run(tmp_path, capsys) -> None:
    assert cli.main(["report", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_help_lists_every_command(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert len(cli.COMMANDS) == 10
    for name, (_, _, text) in cli.COMMANDS.items():
        assert f"{name} {text}" in printed


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_has_help(capsys, command: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: trl-dpo-ext {command} ")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["trian"], "invalid choice: 'trian'"),
        (["recipes", "--copies", "mine"], "unrecognized arguments: --copies"),
        (["report"], "the following arguments are required: output_dir"),
    ],
)
def test_wrong_usage_ends_with_status_two(capsys, argv: list[str], expected: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err
