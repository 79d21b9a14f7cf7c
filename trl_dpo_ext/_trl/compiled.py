"""Models that `torch.compile` has wrapped or marked, which ignore hooks that are added after the first call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from accelerate.utils import is_compiled_module
from torch import nn


def without_compilation(model: Any) -> Any:
    """The model to call in place of one that `torch.compile(model)` returned, so that nothing is compiled.

    Seam: a compiled module holds the original as `_orig_mod`, which is called as it was before. TRL gives its head to
    what it is handed by replacing `forward`: a policy that was compiled before has it on the wrapper, and is not
    compiled any more.
    """
    if not is_compiled_module(model):
        return model
    return model if getattr(vars(model).get("forward"), "__self__", None) is model else model._orig_mod


@contextlib.contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Inside, modules that `module.compile()` has compiled in place are called as they were before.

    Seam: it leaves `_compiled_call_impl`, which a call runs unless it is None.
    """
    compiled = [(module, module._compiled_call_impl) for module in model.modules() if module._compiled_call_impl]
    for module, _ in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call


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
