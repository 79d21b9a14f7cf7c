"""The JSON Schema of a configuration file, for completion and checks in editors."""

from __future__ import annotations

import json
from typing import Any

from ..core.loss_spec import HOST_PREFIX
from ..core.registry import LossVariant, get_loss, list_losses
from ..hyperparameter_fields import owned_hyperparameters
from ..legacy_keys import LEGACY_KEYS
from ..mapping_options import IN_FILES, MAPPINGS
from .arguments import TrainParser
from .value_forms import Schema, form_of, within_bounds

_TITLE = "Configuration of trl-dpo-ext"
_ABOUT = (
    "Options of `trl-dpo-ext train --config`. Written by `make docs`. Losses and hyperparameters of plug-ins are not "
    "in it, and the command checks more: which options go together."
)


_SHARED = {
    "switch": form_of(bool),
    "optional_switch": form_of(bool | None),
    "number": form_of(float),
    "optional_number": form_of(float | None),
    "whole_number": form_of(int),
    "optional_whole_number": form_of(int | None),
}


def as_json() -> str:
    """Return the text of the schema's file."""
    return json.dumps(configuration_schema(), indent=1, ensure_ascii=False) + "\n"


def configuration_schema() -> Schema:
    """Return the schema: every option, the outdated ones as errors, and no other key."""
    parser = TrainParser()
    texts = {action.dest: action.help for action in reversed(parser._actions)}
    owned = owned_hyperparameters()
    special = _special_forms(parser.forms["stop_on"])
    shared = {f"#/definitions/{name}": form for name, form in _SHARED.items()}
    properties: Schema = {"env": _described("Environment variables that are set before the run.", {"type": "object"})}
    for name, form in sorted(parser.forms.items()):
        form = special.get(name, form)
        if name in owned:
            form = within_bounds(form, owned[name][0])
        same = next((place for place, known in shared.items() if known == form), None)
        form = {"allOf": [{"$ref": same}]} if same else form  # beside $ref, draft 7 ignores every other word
        properties[name] = _described(_plain(texts.get(name)), form, parser.defaults.get(name))
    outdated = {name: _outdated(name, text) for name, text in sorted(LEGACY_KEYS.items()) if name not in properties}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": _TITLE,
        "description": _ABOUT,
        "type": "object",
        "properties": {**properties, **outdated},
        "additionalProperties": False,
        "definitions": {**_SHARED, **_losses()},
    }


def _described(text: str, form: Schema, default: Any = None) -> Schema:
    known = {"description": text} if text else {}
    simple = isinstance(default, (bool, int, float, str)) and not isinstance(default, tuple)
    return {**known, **form, **({"default": default} if simple else {})}


def _outdated(name: str, text: str) -> Schema:
    return {"description": f"{name} {text}.", "deprecated": True, "doNotSuggest": True, "not": {}}


def _plain(text: str | None) -> str:
    return " ".join((text or "").replace("%%", "%").split())


def _special_forms(names: Schema) -> dict[str, Schema]:
    """The forms of options that this package reads itself."""
    number_texts = {"type": "string", "pattern": r"^\s*(\w+=[^=]+|\{.*\})\s*$"}
    pairs = {"type": "string", "pattern": r"^\s*([^=\s]+=[^=]+|\{.*\}|\[.*\])\s*$"}
    null = {"type": "null"}
    mapping = {
        name: {"anyOf": [{"type": "object"}, null, _text_of_a_mapping(may_be_a_file=name in IN_FILES)]}
        for name in MAPPINGS
    }
    columns = {"type": "object", "additionalProperties": {"type": ["string", "array"], "items": {"type": "string"}}}
    thresholds = {"type": "object", "additionalProperties": form_of(float)}
    return mapping | {
        "loss_type": _loss_type(),
        "dataset_columns": {"anyOf": [columns, {"type": "array", "items": pairs}, pairs, null]},
        "watch_thresholds": {
            "anyOf": [thresholds, {"type": "array", "items": number_texts}, number_texts, null],
        },
        "stop_on": names,
        "ignore_alarms": names,
        "optim_args": {"type": ["string", "object", "null"]},
    }


def _text_of_a_mapping(may_be_a_file: bool) -> Schema:
    """JSON text, the word for nothing, or the name of a file."""
    return {"type": "string"} if may_be_a_file else {"type": "string", "pattern": r"^\s*(\{.*\}|[Nn]one|null)?\s*$"}


def _loss_type() -> Schema:
    one = [{"$ref": "#/definitions/loss"}, {"$ref": "#/definitions/loss_with_hyperparameters"}]
    json_text = {"type": "string", "pattern": r"^\s*[\[{].*[\]}]\s*$"}
    return {"anyOf": [*one, {"type": "array", "items": {"anyOf": one}, "minItems": 1}, json_text]}


def _losses() -> dict[str, Schema]:
    """The forms of one loss: its name, with or without hyperparameters, and a mapping."""
    losses = [variant for variant in list_losses() if variant.function.__module__.startswith("trl_dpo_ext.")]
    names = sorted(name for variant in losses for name in (variant.name, *variant.aliases))
    inline = {"type": "string", "pattern": rf"^({'|'.join(names)}):.+$", "description": "name:hyperparameter=value"}
    by_trl = {"type": "string", "pattern": f"^{HOST_PREFIX}.+$", "description": "a loss by TRL's own code"}
    mapping = {
        "type": "object",
        "properties": {name: _hyperparameters(get_loss(name)) for name in names},
        "additionalProperties": False,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {"loss": {"anyOf": [{"enum": names}, inline, by_trl]}, "loss_with_hyperparameters": mapping}


def _hyperparameters(variant: LossVariant) -> Schema:
    properties = {
        name: {"$ref": f"#/properties/{one.name}"}
        for one in variant.hyperparameters
        for name in (one.name, one.name.removeprefix(f"{variant.name}_"))
    }
    return {"type": ["object", "null"], "properties": properties, "additionalProperties": False}
