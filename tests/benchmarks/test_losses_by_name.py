"""Benchmarks of losses take the names of losses, and no others: a row that is missing would look like one that failed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import alarms
import compare_losses

from trl_dpo_ext import list_losses


@pytest.mark.parametrize("program", [compare_losses, alarms], ids=lambda program: program.__name__)
@pytest.mark.parametrize("wrong", [["sigmoid", "sigmod"], ["pl"], ["dpo"], []], ids=str)
def test_what_is_no_loss_of_pairs_is_refused(program: Any, wrong: list[str], capsys: Any) -> None:
    assert program.parsed(["--losses", "sigmoid", "dpop"]).losses == ["sigmoid", "dpop"]
    assert program.parsed([]).losses == [variant.name for variant in list_losses(reads="pairs")]
    with pytest.raises(SystemExit):
        program.parsed(["--losses", *wrong])
    assert "--losses" in capsys.readouterr().err
