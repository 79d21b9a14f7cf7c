"""Models that `torch.compile` has wrapped or marked, which ignore hooks that are added after the first call."""

from __future__ import annotations

from typing import Any

from accelerate.utils import is_compiled_module


def without_compilation(model: Any) -> Any:
    """What `torch.compile(model)` has compiled, to be called without compilation; any other model itself.

    Seam: a compiled module holds the original as `_orig_mod`, which is called as it was before.
    """
    return model._orig_mod if is_compiled_module(model) else model


def is_compiled_by(accelerator: Any) -> bool:
    """Whether an accelerator compiles the models that it prepares; the policy is not prepared before training.

    Seam: accelerate does so if `dynamo_plugin` in its state has a backend, which `torch_compile` sets.
    """
    plugin = getattr(accelerator.state, "dynamo_plugin", None)
    return plugin is not None and plugin.backend.value.lower() != "no"


def is_compiled(module: Any) -> bool:
    """Whether a module was compiled before it was handed in, by `torch.compile(module)` or `module.compile()`.

    Seam: the latter leaves `_compiled_call_impl`.
    """
    return is_compiled_module(module) or getattr(module, "_compiled_call_impl", None) is not None
