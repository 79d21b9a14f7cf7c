"""Fields for the hyperparameters of loss variants: as source for the built-in ones, at run time for plug-ins."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

from .core.hyperparameters import DeclaredHyper
from .core.registry import LossVariant, list_losses
from .option_docs import document_options, format_args

CLASS_NAME = "LossHyperparameters"

_SOURCE = '''"""Hyperparameters of the built-in loss variants as fields. Written by `make docs`; do not edit."""

from __future__ import annotations

from dataclasses import dataclass

from .option_docs import document_options


@document_options
@dataclass(kw_only=True)
class {name}:
    """Options of `DPOExtConfig`: the hyperparameters of the built-in loss variants.

    The default None means "not set": the variant uses its published default. Setting a hyperparameter that none of the
    chosen losses takes is an error.

    Args:
{args}
    """

{fields}
'''


def owned_hyperparameters() -> dict[str, tuple[DeclaredHyper, list[str]]]:
    """Return every owned hyperparameter by name, with the variants that take it."""
    return _owned_by(list_losses())


def source() -> str:
    """Return the text of `config_fields.py`. Reads the declarations alone, so that the file may be wrong or missing."""
    owned = _owned_by(variant for variant in list_losses() if _is_builtin(variant))
    fields = [f"    {name}: {parameter.type.__name__} | None = None" for name, (parameter, _) in owned.items()]
    # Indented by 4 more than the docstring's own lines.
    args = "\n".join(f"    {line}".rstrip() for line in _args(owned).splitlines())
    return _SOURCE.format(name=CLASS_NAME, args=args, fields="\n".join(fields))


def make_plugin_fields(known: Collection[str], module: str) -> type:
    """Return a dataclass with a field for every owned hyperparameter that is not in `known`.

    Args:
        known: names of the fields that exist as source.
        module: the module that the dataclass is an attribute of.
    """
    owned = {name: entry for name, entry in owned_hyperparameters().items() if name not in known}
    fields = [(name, parameter.type | None, None) for name, (parameter, _) in owned.items()]
    text = f"Hyperparameters of the loss variants of plug-ins.\n\nArgs:\n{_args(owned)}\n"
    namespace = {"__module__": module, "__doc__": text}
    return document_options(
        dataclasses.make_dataclass("PluginHyperparameters", fields, namespace=namespace, kw_only=True)
    )


def _owned_by(variants: Iterable[LossVariant]) -> dict[str, tuple[DeclaredHyper, list[str]]]:
    found: dict[str, tuple[DeclaredHyper, list[str]]] = {}
    for variant in variants:
        for parameter in variant.owned:
            found.setdefault(parameter.name, (parameter, []))[1].append(variant.name)
    return found


def _args(owned: dict[str, tuple[DeclaredHyper, list[str]]]) -> str:
    """The `Args` of a docstring, grouped by the variants that take a hyperparameter."""
    groups: dict[str, dict[str, str]] = {}
    for name, (parameter, variants) in owned.items():
        heading = f"Hyperparameters of {', '.join(f'`{variant}`' for variant in variants)}"
        groups.setdefault(heading, {})[name] = parameter.summary
    return format_args(groups)


def _is_builtin(variant: LossVariant) -> bool:
    return variant.function.__module__.split(".")[0] == __name__.split(".")[0]
