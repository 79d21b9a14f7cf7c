"""Every loss variant, one file per family. Importing this package declares them all."""

from . import (
    anchored,
    auxiliary,
    batch,
    confidence,
    imitation,
    links,
    logistic,
    margin,
    reference_free,
    regression,
    regularised,
    rejected,
    running,
    soft_labels,
    token,
    transport,
)

__all__ = [
    "anchored",
    "auxiliary",
    "batch",
    "confidence",
    "imitation",
    "links",
    "logistic",
    "margin",
    "reference_free",
    "regression",
    "regularised",
    "rejected",
    "running",
    "soft_labels",
    "token",
    "transport",
]
