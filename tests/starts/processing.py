"""A run with a given tokenizer or processor, and what it is refused for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trl.trainer import dpo_trainer

from tests.support import runs, tiny
from trl_dpo_ext import DPOExtTrainer
from trl_dpo_ext.errors import InputError

from .listing import Kind

wrong_tokenizer = Kind("The tokenizer or the model does not fit")


def build(folder: Path, model: Any, processing: Any, ref_model: Any = None, **settings: Any) -> DPOExtTrainer:
    data = settings.pop("train_dataset", None) or tiny.preferences()
    args = runs.config(folder, **settings)
    return DPOExtTrainer(model, ref_model, args=args, train_dataset=data, processing_class=processing)


def refused(folder: Path, model: Any, processing: Any, ref_model: Any = None, **settings: Any) -> list[str]:
    """The problems with which a run is refused; fails if weights are read first."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dpo_trainer, "create_model_from_path", None)
        with pytest.raises(InputError) as caught:
            build(folder, model, processing, ref_model, **settings)
    return caught.value.problems


TOKENS = len(tiny.tokenizer())
