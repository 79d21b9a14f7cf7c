"""A feature of TRL's trainer: how a run uses it, and what is claimed of that run, for the test and for the docs."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tolerances import rounding
from trl_dpo_ext.errors import InputError

WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "share_prompt": {"share_prompt": True},
    "store": {"precompute_ref_log_probs": True, "ref_store": "store"},
    "padding_free": {"padding_free": True},
}
"""The columns of the table: the options of ours with which each feature is tried. `ref_store` is relative."""


@dataclass(frozen=True)
class Run:
    """What a run left behind."""

    weights: dict[str, torch.Tensor]
    logs: list[dict[str, Any]]
    facts: Any
    """What else the feature asks to be equal."""


@dataclass(frozen=True)
class Trained:
    """Our run equals the other one in weights, logs and the feature's facts.

    Args:
        cell: the claim, in the words of the table.
        weights, logs, relative: the largest differences that count as equal: of a weight, and of a logged number,
            absolute or relative, whichever is larger. None: equal bits.
    """

    cell: str
    weights: float | None = None
    logs: float | None = None
    relative: float | None = None

    def check(self, start: Callable[[], Run], other: Callable[[], Run]) -> None:
        """Run both and compare."""
        got, wanted = start(), other()
        assert got.weights.keys() == wanted.weights.keys()
        assert got.facts == wanted.facts
        assert len(got.logs) == len(wanted.logs)
        for name, tensor in wanted.weights.items():
            if self.weights is None:
                assert torch.equal(got.weights[name], tensor), name
            else:
                torch.testing.assert_close(got.weights[name], tensor, rtol=0, atol=self.weights)
        for mine, theirs in zip(got.logs, wanted.logs, strict=True):
            self.check_line(mine, theirs)

    def check_line(self, mine: dict[str, Any], theirs: dict[str, Any]) -> None:
        """Compare what both have logged at one time."""
        mine = {name: mine.get(name) for name in theirs}
        if self.logs is None:
            assert mine == theirs
            return
        margins = [value for name, value in theirs.items() if name.endswith("rewards/margins")]
        if margins and abs(margins[0]) < self.logs:  # rounding decides which side of each pair is ahead
            mine, theirs = ({k: v for k, v in line.items() if "accuracies" not in k} for line in (mine, theirs))
        assert mine == pytest.approx(theirs, rel=self.relative, abs=self.logs)


@dataclass(frozen=True)
class Refused:
    """Our run stops with an `InputError`.

    Args:
        reason: for the table.
        match: a regular expression that the error matches.
    """

    reason: str
    match: str

    @property
    def cell(self) -> str:
        """The claim, in the words of the table."""
        return f"refused: {self.reason}"

    def check(self, start: Callable[[], Run], other: Callable[[], Run]) -> None:
        """Expect the error."""
        del other
        with pytest.raises(InputError) as caught:
            start()
        assert re.search(self.match, str(caught.value)), str(caught.value)


@dataclass(frozen=True)
class Differs:
    """Our run is another one, on purpose.

    Args:
        reason: for the table.
        holds: asserts what is right of our run, given it and the other one.
    """

    reason: str
    holds: Callable[[Run, Run], None]

    @property
    def cell(self) -> str:
        """The claim, in the words of the table."""
        return f"differs: {self.reason}"

    def check(self, start: Callable[[], Run], other: Callable[[], Run]) -> None:
        """Run both, and check what is claimed."""
        self.holds(start(), other())


Outcome = Trained | Refused | Differs
BIT_FOR_BIT = Trained("bit for bit")
# Sums of absolute values: 2 behind a weight, 10 behind most of what is logged, where the log-probs are the exception.
ROUNDING = Trained("to rounding", rounding(2.0), rounding(10.0), rounding(1.0))
# Adaptive optimizers divide by the gradient: where it is small, its rounding error is a visible part of a step.
STEEP = Trained("to rounding", rounding(20.0), rounding(10.0), rounding(1.0))
_HALF = torch.finfo(torch.bfloat16).eps
HALF = Trained("to rounding (bfloat16)", _HALF, _HALF, _HALF)


@dataclass(frozen=True, eq=False)
class Feature:
    """One row of the table.

    Args:
        name: as users know it, in Markdown.
        settings: of the trainer and its configuration; a function of the folder with the model where objects have to
            be made for each run.
        plain, share_prompt, store, padding_free: what is claimed of our run without and with these options.
        drive: what is done with the trainer.
        facts: what else has to be equal, apart from weights and logs.
        logged: which logged numbers are compared.
        policy: saves the model that is trained, in place of the tiny language model.
        trl_fails: the error with which TRL's own run ends. Our plain run is compared with our default run then.
    """

    name: str
    settings: dict[str, Any] | Callable[[Path], dict[str, Any]]
    plain: Outcome = BIT_FOR_BIT
    share_prompt: Outcome = ROUNDING
    store: Outcome = ROUNDING
    padding_free: Outcome = ROUNDING
    drive: Callable[[Any], Any] = field(default=lambda trainer: trainer.train())
    facts: Callable[[Any], Any] = field(default=lambda trainer: None)
    logged: Callable[[str], bool] = field(default=lambda name: True)
    policy: Callable[[str], str] | None = None
    trl_fails: type[Exception] | None = None

    def made(self, folder: Path) -> dict[str, Any]:
        """The settings of one run, with objects that no other run has."""
        return self.settings(folder) if callable(self.settings) else copy.deepcopy(self.settings)

    def outcome(self, way: str) -> Outcome:
        """What is claimed of the run with one of `WAYS`."""
        return getattr(self, way)

    @property
    def follows_trl(self) -> bool:
        """Whether the runs with our options are compared with TRL's run; else with our plain run."""
        return self.trl_fails is None and isinstance(self.plain, Trained)
