"""How a pass over data runs, apart from the model and the store: what it is called, and what it leaves out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PassSettings:
    """Settings of a pass that computes log-probs for a store.

    Args:
        title: what the progress bar says, with {} for the name of the data.
        leaves_out_nonfinite: whether sequences whose log-probs are not finite are left out of the store; otherwise they
            are an error.
    """

    title: str = "Reference log-probs of {}"
    leaves_out_nonfinite: bool = False
