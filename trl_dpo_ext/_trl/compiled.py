"""Models that `torch.compile` has wrapped or marked, which ignore hooks that are added after the first call."""

from __future__ import annotations

from typing import Any

from accelerate.utils import is_compiled_module


def without_compilation(model: Any) -> Any:
    """The model to call in place of one that `torch.compile(model)` returned, so that nothing is compiled.

    Seam: a compiled module holds the original as `_orig_mod`, which is called as it was before. TRL gives its head to
    what it is handed by replacing `forward`: a policy that was compiled before has it on the wrapper, and is not
    compiled any more.
    """
    if not is_compiled_module(model):
        return model
    return model if getattr(vars(model).get("forward"), "__self__", None) is model else model._orig_mod


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
