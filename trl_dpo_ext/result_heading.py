"""What the JSON object of a command begins with, the same for `inspect`, `score`, and `report`."""

from __future__ import annotations

import datetime
import importlib.metadata
from typing import Any

FORMAT = 1
"""Within a format, keys are only added."""


def result_heading(kind: str, *libraries: str) -> dict[str, Any]:
    """Return kind, format, versions, and date.

    Args:
        kind: of the result, such as `score`.
        libraries: whose versions are told.
    """
    return {
        "kind": f"trl_dpo_ext.{kind}",
        "format": FORMAT,
        "versions": {name: importlib.metadata.version(name) for name in libraries},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
