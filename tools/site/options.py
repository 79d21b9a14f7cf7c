"""Every option of the configuration for the documentation, by the room that documents it."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Iterable
from typing import Any

from transformers import TrainingArguments
from trl import DatasetMixtureConfig, DPOConfig, ModelConfig, ScriptArguments

from trl_dpo_ext.cli.arguments import TrainParser
from trl_dpo_ext.config import DPOExtConfig
from trl_dpo_ext.hyperparameter_fields import owned_hyperparameters
from trl_dpo_ext.option_docs import read_args

from .markdown import definition, escaped, one_line

TITLES = {
    "DPOExtConfig": "Losses",
    "DataOptions": "Data",
    "PolicyOptions": "Adapters",
    "StoreOptions": "Reference store",
    "ReferenceModelOptions": "Reference model",
    "MovingReferenceOptions": "Moving references",
    "ForwardOptions": "Forward pass",
    "WatchOptions": "Watching a run",
    "PitfallOptions": "Warnings",
    "LossHyperparameters": "Hyperparameters of losses",
}
"""Our classes of options, in the order of the page."""
OF_SCRIPT = {
    "Model": ModelConfig,
    "Dataset": ScriptArguments,
    "Mixture of datasets": DatasetMixtureConfig,
}
"""What `train` takes beside the configuration; TRL's."""


def as_markdown() -> str:
    """Every option with its default, its type, and its help text."""
    actions = {action.dest: action for action in TrainParser()._actions}
    documented: set[str] = set()
    parts = []
    for class_name, title in TITLES.items():
        (cls,) = (cls for cls in DPOExtConfig.__mro__ if cls.__name__ == class_name)
        names = list(read_args(cls))
        documented |= set(names)
        parts.append(f"## {title}\n\n{_intro(cls)}{_entries(names, actions)}")
    ours = {field.name for field in dataclasses.fields(DPOExtConfig)} - documented
    of_transformers = {field.name for field in dataclasses.fields(TrainingArguments)}
    of_trl = [field.name for field in dataclasses.fields(DPOConfig) if field.name in ours - of_transformers]
    rest = [field.name for field in dataclasses.fields(TrainingArguments) if field.name in ours]
    words = "The fields of TRL's `DPOConfig` that this package leaves as they are."
    parts.append(f"## TRL's options\n\n{words}\n\n{_entries(of_trl, actions)}")
    words = "The fields of transformers' `TrainingArguments`, with TRL's defaults."
    parts.append(f"## Training arguments\n\n{words}\n\n{_entries(rest, actions)}")
    parts.append(f"## Of the command alone\n\n{_OF_THE_COMMAND}")
    for title, cls in OF_SCRIPT.items():
        names = [field.name for field in dataclasses.fields(cls) if field.name in actions]
        parts.append(f"### {title}\n\nTRL's `{cls.__name__}`.\n\n{_entries(names, actions)}")
    return "\n\n".join(parts)


_OF_THE_COMMAND = "`trl-dpo-ext train` takes these too. A script passes them to the trainer, or to what loads its data."


def _intro(cls: type) -> str:
    text = (cls.__doc__ or "").split("Args:")[0].strip()
    first = " ".join(text.split()).replace("[`DPOExtTrainer`]", "`DPOExtTrainer`")
    return f"{escaped(first)}\n\n" if cls is not DPOExtConfig else ""


def _entries(names: Iterable[str], actions: dict[str, argparse.Action]) -> str:
    fields = {field.name: field for field in dataclasses.fields(DPOExtConfig)}
    entries = []
    for name in names:
        if name in actions:
            entries.append(entry(actions[name]))
        elif name in fields:  # without a flag
            entries.append(definition(name, "", one_line(str(fields[name].metadata.get("help", ""))), f"option-{name}"))
    return "\n".join(entries)


def entry(action: argparse.Action) -> str:
    """One option: type, default, and help text."""
    owned = owned_hyperparameters().get(action.dest)
    kind = _kind(action)
    default = owned[0].default if owned else _shown(action.default)
    facts = ", ".join(filter(None, [kind, "" if default in (None, "") else f"default `{default}`"]))
    losses = f" Of {', '.join(f'[`{name}`](losses/{name}.md)' for name in owned[1])}." if owned else ""
    text = one_line((action.help or "").replace("%%", "%"))
    return definition(action.dest, facts, text + losses, f"option-{action.dest}")


def _kind(action: argparse.Action) -> str:
    if action.choices:
        return "one of " + ", ".join(f"`{choice}`" for choice in action.choices)
    hints = typing.get_type_hints(DPOExtConfig).get(action.dest)
    many = "list of " if action.nargs in ("+", "*") else ""
    if hints is bool or "bool" in str(getattr(action.type, "__name__", "")):
        return "bool"
    names = {"str": "text", "int": "int", "float": "float", "Path": "path"}
    return many + names.get(getattr(action.type, "__name__", ""), "") if action.type else ""


def _shown(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return getattr(value, "value", value)
