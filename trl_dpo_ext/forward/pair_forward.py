"""How the models of a run are called on batches of pairs: as TRL calls them, or with shared prompts and packed rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..errors import InputError
from .compatibility import packing_problems
from .equivalence_check import check_first_batch
from .packed_model import PackedModel, PairPacker


class PairForward:
    """The forward that the options ask for.

    Args:
        share: `share_prompt`, a packed row in which what both sequences of a pair begin with stands once.
        pack: `padding_free`, a packed row.
        verify: whether the first batch is to be compared with the plain forward.
    """

    def __init__(self, share: bool, pack: bool, verify: bool) -> None:
        self.share, self.pack = share, pack
        self._packer = PairPacker(share)
        self.to_verify = verify and self.active

    @property
    def active(self) -> bool:
        """Whether anything differs from TRL's own forward."""
        return self.share or self.pack

    def wrap(self, model: Callable[..., Any], causal_model: Callable[[Any], Any]) -> Callable[..., Any]:
        """What to call in a model's place: the model itself, or a `PackedModel` that feeds it fewer tokens.

        Args:
            model: the model as distributed training has wrapped it.
            causal_model: finds the causal language model inside it.
        """
        return PackedModel(model, causal_model(model), self._packer) if self.active else model

    def check_supported(self, models: Mapping[str, Any], longest: int | None, other: list[str]) -> None:
        """Check that the models can be fed this way.

        Args:
            models: causal language models, or PEFT models around them, by what messages call them.
            longest: length that no sequence exceeds; None if there is no bound.
            other: further reasons against it.

        Raises:
            InputError: listing every reason.
        """
        if not self.active:
            return
        flags = " and ".join(["share_prompt"] * self.share + ["padding_free"] * self.pack)
        found = [*other, *(f"{name}: {p}" for name, model in models.items() for p in packing_problems(model, longest))]
        if found:
            raise InputError(*[f"{flags} cannot be used here. {each}. Or drop {flags}." for each in found])

    def verify_first_batch(
        self,
        models: Mapping[str, tuple[Any, Any]],
        inputs: Mapping[str, torch.Tensor],
        half: bool,
        gather: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Compare the first batch with the plain forward; see `check_first_batch`.

        `models` gives what to call and the causal model inside it, by name.
        """
        calls = {name: PackedModel(*model, self._packer) for name, model in models.items()}
        check_first_batch(calls, inputs, half, gather)
