"""Writes a translated configuration as YAML, with comments on what differs and what was left out."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml

from .draft import Draft, Tool

_WIDTH = 100


def as_yaml(draft: Draft, tool: Tool, source: str) -> str:
    """Return the text of a configuration.

    Args:
        draft: the translation.
        tool: whose configuration was translated.
        source: name of its file.
    """
    lines = [f"# Translated from {source} ({tool.title}) by `trl-dpo-ext migrate`."]
    for key, value in draft.keys.items():
        if key in draft.comments:
            lines += _comment(draft.comments[key])
        lines.append(_entry(key, value))
    if draft.defaults:
        lines += ["", f"# Defaults of {tool.title}, which differ from those here:"]
        lines += [_entry(key, value) for key, value in draft.defaults.items()]
    if draft.effects:
        lines += ["", "# What differs in effect:"]
        for effect in draft.effects:
            lines += _comment(effect, "- ")
    if draft.left_out:
        lines += ["", "# Left out:"]
        for key, reason in draft.left_out.items():
            lines += _comment(f"{key}: {reason}.", "- ")
    lines += ["", "# Launch: accelerate launch --config_file ACCELERATE.yaml -m trl_dpo_ext train --config THIS.yaml"]
    lines += ["# (`trl-dpo-ext recipes NAME --copy DIR` copies accelerate's configurations for one GPU to many nodes)"]
    return "\n".join(lines) + "\n"


def _comment(text: str, mark: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"# {mark}",
        subsequent_indent=f"# {' ' * len(mark)}",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _entry(key: str, value: Any) -> str:
    text = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, default_flow_style=False, width=_WIDTH)
    if isinstance(value, float) and 0 < abs(value) < 1e-3:  # PyYAML writes 5e-07, which YAML 1.1 reads as text
        mantissa, exponent = f"{value:e}".split("e")
        text = f"{key}: {float(mantissa)}e{int(exponent):+d}\n"
    return text.rstrip("\n")
