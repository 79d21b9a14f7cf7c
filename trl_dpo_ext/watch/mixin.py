"""`WatchMixin`: the overrides by which a trainer is watched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from .. import _trl
from ..core.lists import Order
from ..core.mixture import LossMixture
from ..core.pairs import Pairs
from ..distributed.eval_padding import EvalPadding
from ..errors import AlarmStop
from ..estimate.initial_loss import announced_loss
from ..forward.outputs import PairBatch
from ..reference.consistency_check import policy_is_noisy
from ..reference.source import ReferenceSource
from .callback import STATE_FILE, Watch
from .sampling import Sampler


class WatchMixin(Trainer):
    """Overrides of a trainer, to inherit from in front of those that evaluate and save."""

    args: Any
    optimizer: Any
    host: _trl.Host
    mixture: LossMixture
    reference: ReferenceSource
    of_lists: frozenset[Order] = frozenset()
    watch: Watch | None = None
    """Watches the run that trains, or was trained last; None without the options of watching."""

    def train(self, *positional: Any, **keywords: Any) -> Any:
        """Train as transformers' `Trainer.train` does, watched if the options ask for it.

        Raises:
            AlarmStop: an alarm has stopped the run that wrote the checkpoint, and would stop it again.
        """
        if self.watch is not None:
            self.remove_callback(self.watch)
            self.watch = None
        if self.args.is_watched:
            self.watch = self._new_watch()
            self.watch.sampler = self.new_sampler()
            self.add_callback(self.watch)
        return super().train(*positional, **keywords)

    @property
    def stopped_by(self) -> dict[str, Any] | None:
        """The alarm that ended the last run: its `name`, `step` and `message`; None if none has."""
        return None if self.watch is None else self.watch.stopped

    @property
    def has_usable_weights(self) -> bool:
        """Whether the last run was not ended by weights that are not finite, or has loaded its best ones since."""
        best = self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None
        return self.stopped_by is None or self.stopped_by["name"] != "nan" or best

    def new_sampler(self) -> Sampler | None:
        """What samples answers while a run is watched; None for nothing."""
        return Sampler(self.host, self.args, self.reference) if self.args.is_sampled else None

    def _new_watch(self) -> Watch:
        args, policy = self.args, self.host.causal_model(self.model)
        noisy = args.use_weighting or args.weight_column or policy_is_noisy(args, policy.config)
        meant = self.mixture.needs_reference and not args.describes_reference  # for the policy's start
        of_lists = self.of_lists and (self.mixture.reads_lists or args.list_reduction != "mean")
        announced = announced_loss(self.mixture) if meant and not noisy and not of_lists else None
        fixed = self.mixture.needs_reference and self.reference.is_initial_policy and not self.reference.moves
        fixed = fixed and args.ld_alpha is None
        return Watch(self.host, self._gather, announced, fixed, self.reference.is_stored)  # type: ignore[attr-defined]

    def training_step(self, *positional: Any, **keywords: Any) -> torch.Tensor:
        """One forward and backward pass, whose loss is read before transformers hides what is not finite."""
        loss = super().training_step(*positional, **keywords)
        if self.watch is not None:
            self.watch.add_loss(loss)
        return loss

    def _get_grad_norm(self, *positional: Any, **keywords: Any) -> Any:
        """The gradient norm before clipping.

        Seam: transformers calls this once for each optimizer step, right before it, on every process.
        """
        norm = super()._get_grad_norm(*positional, **keywords)
        if self.watch is not None:
            self.watch.grad_norm = norm
            self.watch.learning_rate = max(group["lr"] for group in self.optimizer.param_groups)
        return norm

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Run an evaluation, and collect its pairs if it is the watched one."""
        if self.watch is not None:
            self.watch.evaluation_begins(metric_key_prefix)
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if self.watch is not None:
            self.watch.evaluation_ends()
        return output

    def watch_batch(self, pairs: Pairs, loss: torch.Tensor | float, batch: PairBatch, padding: EvalPadding) -> None:
        """Take what was computed for a batch."""
        if self.watch is None:
            return
        self.watch.add_batch(pairs, self._rewards(pairs), loss, batch.inputs, padding.trim)

    def _rewards(self, pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
        """The rewards of both sides, each (pairs,); NaN where no loss prefers one side, as `sft` does not."""
        losses = {term.variant.name for term in self.mixture.terms} | set(self.mixture.host_names)
        own = self.mixture.rewards(pairs)
        if own is None or losses == {"sft"}:
            scale = self.args.beta if losses != {"sft"} else float("nan")
            return scale * pairs.chosen.logratio.detach(), scale * pairs.rejected.logratio.detach()  # TRL's
        return own

    def save_extra_state(self, checkpoint: Path) -> None:
        """Write our part of a checkpoint."""
        super().save_extra_state(checkpoint)  # type: ignore[misc]
        if self.watch is not None:
            (checkpoint / STATE_FILE).write_text(json.dumps(self.watch.state_dict()))

    def load_extra_state(self, checkpoint: Path) -> None:
        """Read what `save_extra_state` wrote.

        Raises:
            AlarmStop: the alarm that has stopped the run would stop it again.
        """
        super().load_extra_state(checkpoint)  # type: ignore[misc]
        if self.watch is None:
            return
        file = checkpoint / STATE_FILE
        # That of the first process, so that all go on, or none.
        state: Mapping[str, Any] | None = _trl.gather_object(json.loads(file.read_text()) if file.is_file() else None)[
            0
        ]
        if state is not None:
            self.watch.load_state_dict(state)
            problem = self.watch.stops_again()
            if problem:
                raise AlarmStop(problem)
