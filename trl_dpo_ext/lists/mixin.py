"""`ListMixin`: what a trainer does on lists in place of what it does on pairs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import _trl
from ..core.columns import Column
from ..core.list_pairs import parse_list_pairs
from ..core.lists import Lists
from ..core.mixture import LossMixture
from ..data.columns import ColumnCollator, loss_columns
from ..data.lists.collator import ListCollator
from ..data.lists.pair_rows import LIST_ROW, LIST_SCORES
from ..data.lists.refusals import list_columns, list_run_problems, without_scores
from ..distributed.eval_padding import EvalPadding
from ..errors import InputError
from ..evaluation import BatchCounts, EvaluationMixin
from ..forward.list_rows import LIST_IDS, ListRows
from ..forward.outputs import ForwardOutputs, PairBatch, build_answers
from .measures import OWN_METRICS, end_pairs, ends, list_sums, means

LIST_COLUMNS = (LIST_IDS, LIST_SCORES, LIST_ROW)
"""Columns of tokenized lists that the collator reads."""


class ListMixin(EvaluationMixin):
    """Overrides of a trainer on batches of lists, to inherit from in front of those that evaluate."""

    compared_columns = (LIST_IDS, LIST_SCORES)

    if TYPE_CHECKING:
        args: Any
        _gather: Any
        _log_terms: Any
        watch_batch: Any

    def batch_collator(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """The collator of the trainer, wrapped so that batches hold lists and the columns that losses read."""
        collator = ListCollator(self.data_collator) if self.of_lists else self.data_collator
        return ColumnCollator(collator, self.extra_columns) if self.extra_columns else collator

    def columns_of(self, mixture: LossMixture) -> dict[str, Column]:
        """The dataset columns that losses read of the trainer's data.

        Raises:
            InputError: the trainer has lists, and the losses cannot train on them.
        """
        if not self.of_lists:
            return loss_columns(self.args, mixture)
        problems = list_run_problems(self.args, mixture, self.of_lists, self.compute_metrics is not None)
        if problems:
            raise InputError(*problems)
        return without_scores(list_columns(self.args, mixture))

    def list_loss(self, outputs: ForwardOutputs, batch: PairBatch, padding: EvalPadding) -> torch.Tensor | float:
        """The mixture's loss on a batch of lists, a scalar; it is logged."""
        assert batch.lists is not None
        rows = batch.lists.first(padding.local_real)
        lists = self._lists(outputs, batch, rows, padding)
        weights = lists.columns[self.args.weight_column] if self.args.weight_column else None
        which = parse_list_pairs(self.args.list_pairs)
        draw = self._draw(rows) if isinstance(which, int) else None
        loss, per_term = self.mixture.on_lists(lists, which, weights, draw, self.args.list_reduction)
        sums = self._log_lists(outputs, lists, rows, batch)
        self._count_lists(lists, weights, sums)
        self._log_terms(per_term, padding.share)
        self._watch_lists(outputs, batch, padding, loss)
        return loss

    def uncounted_rows(self, batch: PairBatch, padding: EvalPadding) -> torch.Tensor | None:
        """The rows of a batch whose tokens TRL is not to count, (rows,) bool: repeated pairs, lists and answers."""
        if batch.lists is None:
            return padding.repeated_rows(batch.mask)
        return batch.lists.first(padding.local_real).others(len(batch.mask))

    def predict(self, test_dataset: Any, *positional: Any, **keywords: Any) -> Any:
        """Predict on pairs; see `EvaluationMixin.predict`."""
        if self.of_lists:
            raise InputError("predict gives the logits of pairs, and this trainer trains on lists. Call evaluate.")
        return super().predict(test_dataset, *positional, **keywords)

    def _lists(self, outputs: ForwardOutputs, batch: PairBatch, rows: ListRows, padding: EvalPadding) -> Lists:
        return Lists(
            build_answers(outputs, self.mixture, self.args, rows),
            rows.prompt,
            rows.scores,
            {name: padding.real(column) for name, column in batch.columns.items()},
            gather=self._gather,
            training=self.host.is_training,
            rank=self.accelerator.process_index,
            progress=self.state.global_step / max(self.state.max_steps, 1),
        )

    def _draw(self, rows: ListRows) -> list[torch.Generator]:
        """What draws the pairs of each list, whatever stands beside it in a batch.

        In training by seed, step, and number of the list, so that a resumed run draws the same pairs; in evaluation by
        seed and number, so that every evaluation is on the same pairs.
        """
        step = self.state.global_step + 1 if self.host.is_training else 0
        numbers = rows.numbers.tolist()
        seeds = [np.random.SeedSequence([self.args.seed, step, number]).generate_state(1)[0] for number in numbers]
        return [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def _rewards_of(self, lists: Lists) -> torch.Tensor:
        """The rewards of all answers, (answers,)."""
        own = self.mixture.answer_rewards(lists.answers)
        return self.args.beta * lists.answers.logratio.detach() if own is None else own

    def _log_lists(
        self, outputs: ForwardOutputs, lists: Lists, rows: ListRows, batch: PairBatch
    ) -> Mapping[str, torch.Tensor]:
        """Log by TRL's names what TRL has logged of pairs of answers; return the numbers of tokens by side."""
        fields = {name: outputs.tokens(name).detach()[rows.answers] for name in ("mean_logits", "is_top1")}
        sums = list_sums(lists, self._rewards_of(lists), fields)
        fed = batch.inputs["attention_mask"]
        repeated = (fed.sum() - fed[batch.lists.answers].sum()).float()  # type: ignore[union-attr]
        local = torch.cat([sums.vector, repeated.unsqueeze(0)])
        everywhere = self._gather(local.unsqueeze(0)).double().sum(dim=0)
        for name, value in means(everywhere[:-1]).items():
            log = self.host.add_metric if name in OWN_METRICS else self.host.replace_metric
            log(name, value)
        self.host.uncount_tokens(int(everywhere[-1]))
        return sums.tokens

    def _count_lists(self, lists: Lists, weights: torch.Tensor | None, tokens: Mapping[str, torch.Tensor]) -> None:
        """Count the lists of an evaluation batch."""
        if self.evaluated is None or lists.training:
            return
        weight = torch.tensor(float(lists.prompts), device=lists.scores.device) if weights is None else weights.sum()
        local = torch.stack([weight.new_tensor(lists.prompts), weight, tokens["chosen"], tokens["rejected"]]).float()
        prompts, weight_, chosen, rejected = self._gather(local.unsqueeze(0)).double().sum(dim=0).tolist()
        self.evaluated.batch = BatchCounts(prompts, {"chosen": chosen, "rejected": rejected}, weight_, {})

    def _watch_lists(
        self, outputs: ForwardOutputs, batch: PairBatch, padding: EvalPadding, loss: torch.Tensor | float
    ) -> None:
        """Show the best and the worst answer of each list to what watches a run."""
        if self.watch is None:  # type: ignore[attr-defined]
            return
        assert batch.lists is not None
        lists = self._lists(outputs, batch, batch.lists, padding)
        index = ends(lists)
        rows = batch.lists.answers[torch.cat(index)]
        inputs = {name: batch.inputs[name][rows] for name in ("input_ids", "attention_mask", _trl.COMPLETION_MASK)}
        self.watch_batch(end_pairs(lists, index), loss, dataclasses.replace(batch, inputs=inputs), padding)
