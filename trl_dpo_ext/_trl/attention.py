"""The attention functions of transformers: which ones a model calls, and how to call something else in their place."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

_EAGER = "eager_attention_forward"


def replace_attention(causal: Any, replacement: type) -> None:
    """Have a model call `replacement(name, function)`, a callable object, in place of its attention function.

    The replacement stands in for every model of the process that calls the same function, so it must pass on what it is
    not meant for. Called again, it replaces only what is not a replacement yet.

    Seam: a model looks its function up at each call, in `ALL_ATTENTION_FUNCTIONS` by `config._attn_implementation`; for
    "eager", which is not registered, it takes `eager_attention_forward` of the module that defines it.
    """
    name = causal.config.get_text_config()._attn_implementation
    if name == "eager":
        for module in _eager_modules(causal):
            function = getattr(module, _EAGER)
            if not isinstance(function, replacement):
                setattr(module, _EAGER, replacement(name, function))
        return
    function = ALL_ATTENTION_FUNCTIONS[name]
    if not isinstance(function, replacement):
        ALL_ATTENTION_FUNCTIONS.register(name, replacement(name, function))


def has_interface(causal: Any) -> bool:
    """Whether a model's attention can be replaced.

    Seam: `_can_set_attn_implementation()` tells whether a class looks its attention up in `ALL_ATTENTION_FUNCTIONS`.
    """
    if not causal._can_set_attn_implementation():
        return False
    return causal.config.get_text_config()._attn_implementation != "eager" or any(True for _ in _eager_modules(causal))


def _eager_modules(causal: Any) -> Iterable[ModuleType]:
    names = dict.fromkeys(type(module).__module__ for module in causal.modules())
    return [sys.modules[name] for name in names if hasattr(sys.modules.get(name), _EAGER)]
