"""Every loss variant, one file per family. Importing this package declares them all."""

from . import anchored, auxiliary, links, logistic, regression, transport

__all__ = ["anchored", "auxiliary", "links", "logistic", "regression", "transport"]
