"""Weights that a checkpoint holds under other names than those of the model's parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from .patching import temporarily


@contextlib.contextmanager
def loading_saved_names(model: Any, checkpoint: str | Path) -> Iterator[None]:
    """Inside, `load_state_dict` takes weights under the names by which `save_pretrained` saves them.

    Seam: `save_pretrained` gives the weights of many models the names, and the shapes, of published checkpoints, as for
    Llava or for the experts of Mixtral. On resume transformers passes them to `load_state_dict(state_dict, False)` of
    the model, which leaves out every name that it does not know, so that the run would go on from its initial weights;
    `from_pretrained` knows both.

    Args:
        model: the policy, which is not wrapped.
        checkpoint: the folder that the weights are loaded from.
    """
    if not isinstance(model, PreTrainedModel):
        yield
        return
    load, own = model.load_state_dict, set(model.state_dict())
    widest = max(
        (each.dtype for each in model.parameters() if each.is_floating_point()), key=lambda each: each.itemsize
    )
    whole: dict[str, Any] = {}

    def load_either(state_dict: Mapping[str, Any], *args: Any, **keywords: Any) -> Any:
        if not {*state_dict} <= own:
            if not whole:  # once for all files of a sharded checkpoint
                whole.update(type(model).from_pretrained(checkpoint, dtype=widest).state_dict())
            state_dict = whole
        return load(state_dict, *args, **keywords)

    with temporarily(model, load_state_dict=load_either):
        yield
