"""What transformers makes of an option that is given as JSON text."""

from __future__ import annotations

from typing import Any

from transformers import training_args


def typed_values(values: Any) -> Any:
    """Return a mapping decoded from JSON text with numbers and truth values in place of texts that look like them.

    Seam: transformers passes such a mapping through `_convert_str_dict`, recursively, and no other.
    """
    return training_args._convert_str_dict(values) if isinstance(values, dict) else values
