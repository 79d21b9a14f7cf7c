"""`Host`: a trainer of TRL's, as the rest of the package sees it."""

from __future__ import annotations

from .batch import BatchSeams
from .generation import GenerationSeams
from .loss import LossSeams
from .metrics import MetricSeams


class Host(BatchSeams, LossSeams, MetricSeams, GenerationSeams):
    """Everything that this package asks of TRL's trainer or does to it.

    Each method that rests on a fact that TRL's documentation does not promise names that *seam*, and has a test in
    tests/contract, so that a TRL upgrade which moves the seam breaks a test that names it, not a user's run.
    """
