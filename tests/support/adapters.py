"""Adapters that transformers puts inside a model."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.integrations.peft import MIN_PEFT_VERSION
from transformers.utils import check_peft_version


def add_inside(model: Any, config: Any) -> Any:
    """Put an adapter inside a model; skip the test where transformers refuses the installed PEFT (5.24: every PEFT)."""
    try:
        check_peft_version(MIN_PEFT_VERSION)
    except ValueError as refused:
        pytest.skip(f"transformers adds no adapter of the installed PEFT: {refused}")
    model.add_adapter(config)
    return model
