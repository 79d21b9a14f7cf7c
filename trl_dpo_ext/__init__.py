"""Loss variants, quantized and stored references, and launched recipes for TRL's DPO trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import losses as _losses  # noqa: F401  (importing it declares every variant)
from .core.columns import Column
from .core.hyperparameters import Beta, Hyper, LabelSmoothing
from .core.list_pairs import pairs_of
from .core.lists import Lists
from .core.mixture import LossMixture
from .core.pairs import Need, Pairs, Side, implicit_reward
from .core.registry import LossVariant, get_loss, list_losses, register_loss
from .errors import InputError
from .losses.regression import reward_quantile
from .version import __version__ as __version__

if TYPE_CHECKING:
    from .config import DPOExtConfig
    from .inspection.preferences import inspect_preferences
    from .reference.model.loading import load_reference
    from .scoring.score import rank_completions, score_preferences
    from .trainer import DPOExtTrainer

__all__ = [
    "Beta",
    "Column",
    "DPOExtConfig",
    "DPOExtTrainer",
    "Hyper",
    "InputError",
    "LabelSmoothing",
    "Lists",
    "LossMixture",
    "LossVariant",
    "Need",
    "Pairs",
    "Side",
    "get_loss",
    "implicit_reward",
    "inspect_preferences",
    "list_losses",
    "load_reference",
    "pairs_of",
    "rank_completions",
    "register_loss",
    "reward_quantile",
    "score_preferences",
]

_HOMES = {
    "DPOExtConfig": "config",
    "DPOExtTrainer": "trainer",
    "inspect_preferences": "inspection.preferences",
    "load_reference": "reference.model.loading",
    "rank_completions": "scoring.score",
    "score_preferences": "scoring.score",
}


def __getattr__(name: str) -> Any:
    # The losses need torch only; transformers and trl are imported when the trainer or its config is first asked for.
    if name in _HOMES:
        from importlib import import_module

        from .logging_setup import mute_import_messages

        mute_import_messages()
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
