"""How the models of a run are called on batches of pairs: as TRL calls them, or with shared prompts and packed rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..errors import InputError
from .equivalence_check import check_first_batch
from .masks import branch_problems, packing_problems
from .packed_model import PackedModel, candidate_layouts


class PairForward:
    """The forward that the flags ask for.

    Args:
        share: `share_prompt`, one row per pair.
        pack: `padding_free`, all of a batch in one row.
        check: compare the first batch with the plain forward.
    """

    def __init__(self, share: bool, pack: bool, check: bool) -> None:
        self.share, self.pack = share, pack
        self.ways = candidate_layouts(share, pack)
        self.unchecked = check and self.active

    @property
    def active(self) -> bool:
        """Whether anything differs from TRL's own forward."""
        return self.share or self.pack

    def around(self, model: Callable[..., Any], causal: Any) -> PackedModel:
        """What to call in `model`'s place where the forward is active; `causal` is the causal model inside it."""
        return PackedModel(model, causal, self.ways)

    def check_supported(self, models: Mapping[str, Any], longest: int | None, other: list[str]) -> None:
        """Ask the models whether they can be fed this way.

        Args:
            models: causal language models, or PEFT models around them, by what messages call them.
            longest: length that no sequence exceeds; None where there is no bound.
            other: what else speaks against it.

        Raises:
            InputError: listing everything that speaks against it.
        """
        if not self.active:
            return
        find = branch_problems if self.share else packing_problems
        flags = " and ".join(["share_prompt"] * self.share + ["padding_free"] * self.pack)
        found = [*other, *(f"{name}: {p}" for name, model in models.items() for p in find(model, longest))]
        if found:
            raise InputError(*[f"{flags} cannot be used here. {each}. Or drop {flags}." for each in found])

    def verify_first_batch(
        self,
        models: Mapping[str, tuple[Any, Any]],
        inputs: Mapping[str, torch.Tensor],
        half: bool,
        gather: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """On the first call, `check_first_batch`; `models` gives what to call and the causal model inside it."""
        if self.unchecked:
            self.unchecked = False
            calls = {name: PackedModel(*model, self.ways) for name, model in models.items()}
            check_first_batch(calls, inputs, half, gather)
