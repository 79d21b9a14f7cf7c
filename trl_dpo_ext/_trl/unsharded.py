"""Loading a model unsharded while FSDP or ZeRO-3 is set up to shard every model that transformers loads."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .patching import temporarily

_LEAN = "FSDP_CPU_RAM_EFFICIENT_LOADING"


@contextlib.contextmanager
def unsharded_loading() -> Iterator[None]:
    """Let transformers load all weights of a model on every process.

    Seam: transformers shards for ZeRO-3 while `deepspeed._hf_deepspeed_config_weak_ref` is set, and loads on the first
    process alone while the environment variable FSDP_CPU_RAM_EFFICIENT_LOADING is true.
    """
    from transformers.integrations import deepspeed

    lean = os.environ.get(_LEAN)
    os.environ[_LEAN] = "false"
    try:
        with temporarily(deepspeed, _hf_deepspeed_config_weak_ref=None):
            yield
    finally:
        os.environ.pop(_LEAN)
        if lean is not None:
            os.environ[_LEAN] = lean


def shards_while_loading() -> bool:
    """Return True if transformers shards the models that it loads, for ZeRO-3."""
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    return is_deepspeed_zero3_enabled()
