"""The forms that the values of a configuration file may have, as JSON Schema, derived from the types of the options."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, Literal, Union

from ..core.hyperparameters import DeclaredHyper
from ..mapping_options import MAPPINGS

Schema = dict[str, Any]

_NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"
_WHOLE = r"[+-]?\d+"
_WORDS = ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0")
_NONE = ("none", "null")
_READS_NO = "YAML reads no, yes, on, and off without quotes as true or false"
# More than their types say, because what reads them takes more.
_WIDER: Mapping[str, Schema] = {
    "fsdp": {"type": ["boolean", "string", "array", "null"]},
    "watch_kl": {"type": ["string", "boolean"]},  # off, which YAML reads as false
    "list_pairs": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]},  # a word, or a number of pairs
    "debug": {"type": ["string", "array", "null"], "items": {"type": "string"}},
}
_UNSET = frozenset({"watch"})
"""Options that are None by default, although their type does not say so."""
OWN_READERS = frozenset(
    {*MAPPINGS, "loss_type", "dataset_columns", "watch_thresholds", "stop_on", "ignore_alarms", "optim_args"}
)
"""Options whose values this package reads itself, in more forms than their types say; it finds what is wrong there."""


def form_of(kind: Any, name: str = "", choices: tuple[Any, ...] | None = None) -> Schema:
    """Return the form of an option's values; {} for one that is not limited.

    Args:
        kind: the type that the option is declared with.
        name: of the option.
        choices: the values that it is limited to, if its type does not say.
    """
    if name in _WIDER:
        return dict(_WIDER[name])
    kind = kind | None if name in _UNSET else kind
    arms = typing.get_args(kind) if typing.get_origin(kind) in (Union, types.UnionType) else (kind,)
    optional = type(None) in arms
    enums = [arm for arm in arms if isinstance(arm, type) and issubclass(arm, Enum)]
    if enums:
        arms = enums  # `Enum | str` takes the texts of its members alone
    forms: list[Schema] = [form for arm in arms if arm is not type(None) for form in _forms(arm, optional)]
    if choices and str in arms:
        forms = [{"enum": list(choices)}]
    if {} in forms:
        return {}
    if optional:
        forms.append({"type": "null"})
    return forms[0] if len(forms) == 1 else {"anyOf": forms}


def _forms(kind: Any, optional: bool) -> list[Schema]:
    origin = typing.get_origin(kind) or kind
    none = f"|{'|'.join(_any_case(word) for word in _NONE)}" if optional else ""
    if origin is bool:
        return [
            {"type": "boolean"},
            {"enum": [0, 1]},
            {"type": "string", "pattern": f"^({'|'.join(_any_case(word) for word in _WORDS)})$"},
        ]
    if origin is int:
        return [{"type": "integer"}, {"type": "string", "pattern": f"^({_WHOLE}{none})$"}]
    if origin is float:
        return [{"type": "number"}, {"type": "string", "pattern": f"^({_NUMBER}{none})$"}]
    if origin is str:
        return [{"type": "string"}]
    if origin is Literal:
        return [{"enum": list(typing.get_args(kind))}]
    if isinstance(origin, type) and issubclass(origin, Enum):
        return [{"enum": [member.value for member in origin]}]
    if origin is dict or origin is Mapping:
        return [{"type": "object"}]
    if origin is list:
        return _list_forms(*typing.get_args(kind))
    return [{}]


def _list_forms(item: Any = Any) -> list[Schema]:
    if dataclasses.is_dataclass(item):
        hints = typing.get_type_hints(item)
        required = [field.name for field in dataclasses.fields(item) if field.default is dataclasses.MISSING]
        entry = {
            "type": "object",
            "properties": {name: form_of(hint) for name, hint in hints.items()},
            "required": required,
            "additionalProperties": False,
        }
        return [{"type": "array", "items": entry}]
    forms = [{"type": "array", "items": form_of(item)}]
    return [*forms, {"type": "string"}] if item is str else forms  # one name may stand without brackets


def _any_case(word: str) -> str:
    return "".join(f"[{char.upper()}{char}]" if char.isalpha() else char for char in word)


def within_bounds(form: Schema, hyper: DeclaredHyper) -> Schema:
    """Return the form of a hyperparameter, limited to what its declaration allows."""
    if hyper.choices:
        return {"enum": [*hyper.choices, None]}
    bounds = {
        "exclusiveMinimum": hyper.hyper.gt,
        "minimum": hyper.hyper.ge,
        "exclusiveMaximum": hyper.hyper.lt,
        "maximum": hyper.hyper.le,
    }
    limits = {key: bound for key, bound in bounds.items() if bound is not None}
    return {**form, "anyOf": [f | (limits if f.get("type") in ("number", "integer") else {}) for f in form["anyOf"]]}


def fits(value: Any, form: Schema) -> bool:
    """Return whether a value, as YAML reads it, has a form; for the words of JSON Schema that `form_of` writes."""
    if "anyOf" in form and not any(fits(value, each) for each in form["anyOf"]):
        return False
    if "enum" in form and not any(value == each and type(value) is type(each) for each in form["enum"]):
        return False
    kinds = form.get("type")
    if kinds is not None and not any(_is(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return False
    if "pattern" in form and isinstance(value, str) and not re.search(form["pattern"], value.strip()):
        return False
    if isinstance(value, list):
        return all(fits(each, form.get("items", {})) for each in value)
    if isinstance(value, dict) and "properties" in form:
        known = form["properties"]
        return {*form["required"]} <= {*value} <= {*known} and all(
            fits(each, known[key]) for key, each in value.items()
        )
    return True


_KINDS: Mapping[str, Any] = {
    "array": list,
    "boolean": bool,
    "integer": int,
    "null": type(None),
    "number": (int, float),
    "object": dict,
    "string": str,
}


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))


_NAMES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "null": "empty",
    "number": "a number",
    "object": "a mapping",
    "string": "text",
}


def problem_of(name: str, value: Any, form: Schema) -> str | None:
    """Return what is wrong with a value of a configuration file, or None."""
    if fits(value, form):
        return None
    hint = ""
    if isinstance(value, (bool, int, float)) and (_takes(form, "string") or "enum" in form):
        hint = f" {_READS_NO}: write quotes around it." if isinstance(value, bool) else " Write quotes around it."
    return f"{name} must be {_words(form)}; got {value!r} in the configuration file.{hint}"


def _takes(form: Schema, kind: str) -> bool:
    kinds = [form.get("type")] if isinstance(form.get("type"), str) else form.get("type") or []
    plain = kind in kinds and "pattern" not in form
    return plain or any(_takes(each, kind) for each in form.get("anyOf", ()))


def _words(form: Schema) -> str:
    """A form in words, without the texts that stand for another kind."""
    parts = []
    for each in form.get("anyOf", [form]):
        kinds = each.get("type")
        if "pattern" in each or each.get("enum") == [0, 1]:
            continue
        if "enum" in each:
            parts.append(f"one of {', '.join('empty' if value is None else str(value) for value in each['enum'])}")
        elif kinds == "array" and each.get("items", {}).get("type") == "object":
            parts.append(f"a list of mappings with the keys {', '.join(each['items']['properties'])}")
        else:
            parts += [_NAMES[kind] for kind in ([kinds] if isinstance(kinds, str) else kinds)]
    return " or ".join(dict.fromkeys(parts))
