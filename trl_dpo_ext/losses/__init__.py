"""Every loss variant, one file per family. Importing this package declares them all."""

from . import (
    anchored,
    auxiliary,
    links,
    logistic,
    margin,
    reference_free,
    regression,
    regularised,
    rejected,
    soft_labels,
    transport,
)

__all__ = [
    "anchored",
    "auxiliary",
    "links",
    "logistic",
    "margin",
    "reference_free",
    "regression",
    "regularised",
    "rejected",
    "soft_labels",
    "transport",
]
