"""Evaluation whose numbers depend on the model and the data alone, not on batches, processes, or what ran before."""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather
from transformers import EarlyStoppingCallback

from . import _trl
from .core.lists import Order
from .core.pairs import Pairs
from .core.registry import get_loss
from .data.evaluation_sets import is_unwatched, watching_problems
from .data.images import image_problems, refuse_unreadable_start
from .data.lists.collator import as_pairs
from .data.prepare import checked_datasets, named_parts
from .distributed.eval_padding import EvalPadding, RealRows
from .distributed.mixin import DistributedTrainerMixin
from .errors import InputError
from .forward.outputs import PairBatch
from .logging_setup import muted
from .reference.source import ReferenceSource

EARLY_STOPPING = "early stopping required metric_for_best_model, but did not find"
"""How a warning of transformers begins that `EarlyStoppingCallback` gives for each dataset without that metric."""


@dataclass
class WeightedMean:
    """A mean over batches, each with its weight."""

    values: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    def add(self, value: float, weight: float) -> None:
        """Add a batch's own mean, and the number of things that it is the mean of."""
        self.values.append(value)
        self.weights.append(weight)

    def result(self) -> float:
        """Return the mean; for equal weights that of the values as TRL computes it, bit for bit."""
        largest = max(self.weights)
        counted = [(v, w / largest) for v, w in zip(self.values, self.weights, strict=True) if w]
        if not counted:
            return sum(self.values) / len(self.values)
        return sum(value * weight for value, weight in counted) / sum(weight for _, weight in counted)


@dataclass(frozen=True)
class BatchCounts:
    """What an evaluation batch adds up to over all processes, each real pair counted once."""

    pairs: float
    tokens: Mapping[str, float]
    """Completion tokens by side."""
    pair_weights: float
    """Sum of the weights of pairs; their number where all weigh the same."""
    token_sums: Mapping[str, tuple[float, float]]
    """By label: the sum of what a loss averages over chosen tokens, and the sum over pairs of what it made of it."""

    @classmethod
    def gathered(
        cls, pairs: Pairs, weights: torch.Tensor | None, token_sums: Mapping[str, torch.Tensor]
    ) -> BatchCounts:
        """Count the real pairs of this process, and add up those of all in one collective."""
        lengths = [side.lengths.sum() for side in (pairs.chosen, pairs.rejected)]
        count = pairs.chosen.lengths.numel()
        weight = lengths[0].new_tensor(count, dtype=torch.float32) if weights is None else weights.sum()
        sums = [values.sum() for values in token_sums.values()]
        local = [lengths[0].new_tensor(count), *lengths, weight]
        local += [number for total in sums for number in (total, weight * total / lengths[0].clamp(min=1))]
        everywhere = gather(torch.stack([number.detach().float() for number in local]).unsqueeze(0))
        pairs_, chosen, rejected, weight_, *rest = everywhere.double().sum(dim=0).tolist()  # type: ignore[union-attr]
        by_label = dict(zip(token_sums, zip(rest[::2], rest[1::2], strict=True), strict=True))
        return cls(pairs_, {"chosen": chosen, "rejected": rejected}, weight_, by_label)


@dataclass
class Evaluated:
    """What one evaluation has seen so far."""

    batch: BatchCounts | None = None
    """The batch that is being evaluated."""
    pairs: float = 0.0
    chosen_tokens: float = 0.0
    pair_weights: float = 0.0
    means: defaultdict[str, WeightedMean] = field(default_factory=lambda: defaultdict(WeightedMean))
    counters: dict[str, float] = field(default_factory=dict)
    token_sums: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))

    def add(self, metrics: Mapping[str, float]) -> None:
        """Add the metrics of the batch, each with the number of pairs or tokens that it is the mean of."""
        batch, self.batch = self.batch, None
        if batch is None:
            return
        self.pairs += batch.pairs
        self.chosen_tokens += batch.tokens["chosen"]
        self.pair_weights += batch.pair_weights
        for label, sums in batch.token_sums.items():
            self.token_sums[label] = [total + more for total, more in zip(self.token_sums[label], sums, strict=True)]
        for name, value in metrics.items():
            if name in _trl.COUNTERS:
                self.counters[name] = value
            else:
                sides = _trl.TOKEN_METRICS.get(name)
                self.means[name].add(value, sum(batch.tokens[side] for side in sides) if sides else batch.pairs)

    def corrections(self) -> dict[str, float]:
        """What to add to a mean over pairs of losses with a mean over the tokens of a batch, by label.

        The batches' means become the one of all tokens, times the mean weight of all pairs.
        """
        return {
            label: (self.pair_weights * total / max(self.chosen_tokens, 1) - in_batches) / self.pairs
            for label, (total, in_batches) in self.token_sums.items()
        }

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the whole dataset by TRL's names."""
        found = {name: mean.result() for name, mean in self.means.items()} | self.counters
        for label, correction in self.corrections().items():
            if f"loss/{label}" in found:
                found[f"loss/{label}"] += correction
        return found


def _is_shipped(callback: Any) -> bool:
    """Whether a callback comes with a library, and adds no metrics of the user's."""
    return type(callback).__module__.split(".")[0] in ("transformers", "trl", "trl_dpo_ext", "accelerate")


class EvaluationMixin(DistributedTrainerMixin):
    """Overrides of what evaluates, to inherit from in front of TRL's trainer.

    Means over pairs or tokens are those of the whole dataset. What cannot be independent of the batches stays a mean
    over them: losses that compare the pairs of a batch, and the balancing loss of a mixture-of-experts model.
    """

    reference: ReferenceSource
    evaluated: Evaluated | None = None
    """What the evaluation that is running has seen; None outside of one."""
    of_lists: frozenset[Order] = frozenset()
    """What orders the completions of the trainer's lists; empty for pairs."""

    def evaluate(self, eval_dataset: Any = None, *positional: Any, **keywords: Any) -> dict[str, float]:
        """Evaluate on `eval_dataset`, or on the one given at construction; see TRL's `DPOTrainer.evaluate`."""
        prefix = keywords.get("metric_key_prefix", "eval")
        unwatched = is_unwatched(self.args.metric_for_best_model, self.eval_dataset, prefix)
        with muted("transformers.trainer_callback", EARLY_STOPPING) if unwatched else contextlib.nullcontext():
            return self._evaluate_checked(eval_dataset, *positional, **keywords)

    def _evaluate_checked(self, eval_dataset: Any, *positional: Any, **keywords: Any) -> dict[str, float]:
        if eval_dataset is None or isinstance(eval_dataset, str):
            return super().evaluate(eval_dataset, *positional, **keywords)  # type: ignore[arg-type]
        refuse_unreadable_start(named_parts({"eval_dataset": eval_dataset}))
        given: dict[str, Any] = {"of_lists": bool(self.of_lists), "eval_dataset": eval_dataset}
        eval_dataset = checked_datasets(self.extra_columns, self.args, **given)["eval_dataset"]
        self._check_images(eval_dataset=eval_dataset)
        if self.reference.is_stored:
            eval_dataset = self._with_reference(eval_dataset)
        with self.host.no_precompute():
            return super().evaluate(eval_dataset, *positional, **keywords)

    def predict(self, test_dataset: Any, *positional: Any, **keywords: Any) -> Any:
        """Predict on `test_dataset`, raw or prepared as `evaluate` takes it; see transformers' `Trainer.predict`."""
        if isinstance(test_dataset, Mapping):
            raise InputError(f"predict takes one dataset; call it for each of {', '.join(map(str, test_dataset))}.")
        checks = (self.extra_columns, self.args)
        test_dataset = checked_datasets(*checks, of_lists=False, test_dataset=test_dataset)["test_dataset"]
        self._check_images(test_dataset=test_dataset)
        return super().predict(self._with_reference(test_dataset), *positional, **keywords)

    def _check_images(self, **datasets: Any) -> None:
        problems = image_problems(named_parts(datasets), {}, expected=self.host.has_images)
        if problems:
            raise InputError(*problems)

    def _watching_problems(self) -> list[str]:
        """What is wrong with the metric that chooses the best model, once callbacks and losses are known."""
        callbacks = self.callback_handler.callbacks
        labels = [term.label for term in self.mixture.terms] + list(self._host_weights())
        custom = self.compute_metrics is not None or any(not _is_shipped(each) for each in callbacks)
        stops = any(isinstance(each, EarlyStoppingCallback) for each in callbacks)
        return watching_problems(self.args, None if custom else labels, self.eval_dataset, stops)

    def _with_reference(self, dataset: Any) -> Any:
        """Tokenize data, one dataset or a dictionary of them, and store its reference log-probs where that is due."""
        dataset = self.host.prepared(dataset)
        if self.reference.is_stored:
            for name, part in dataset.items() if isinstance(dataset, dict) else [("eval", dataset)]:
                self.reference.fill(as_pairs(part), name)
        return dataset

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Return the loader of an evaluation, which is kept only for the datasets of the trainer.

        Seam: with `dataloader_persistent_workers`, transformers keeps the first loader of an evaluation by the name of
        its dataset, "eval" if it has none, and evaluates on that one whatever it is given later.
        """
        key = eval_dataset if isinstance(eval_dataset, str) else "eval"
        own = self.eval_dataset if eval_dataset is None else None
        own = self.eval_dataset[key] if isinstance(eval_dataset, str) else own  # type: ignore[index]
        kept = own is not None and self._kept_loaders.setdefault(key, own) is own
        persistent = self.args.dataloader_persistent_workers and kept
        with _trl.temporarily(self.args, dataloader_persistent_workers=persistent):
            return super().get_eval_dataloader(eval_dataset)

    @functools.cached_property
    def _kept_loaders(self) -> dict[str, Any]:
        """The datasets whose loaders transformers keeps, by its names."""
        return {}

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Run an evaluation, and add what TRL logs of it to its metrics under its prefix.

        Seam: `evaluate` and `predict` both run this, and return its `metrics`, which `evaluate` logs. The loop sets
        `gather_function` back when it ends.
        """
        seen = Evaluated()
        restored = {"evaluated": seen, "gather_function": self.gather_function}
        with self.host.separate_evaluation(), _trl.temporarily(self, **restored):
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        if not seen.pairs:
            return output
        metrics, loss = output.metrics or {}, f"{metric_key_prefix}_loss"
        metrics |= {f"{metric_key_prefix}_{name}": value for name, value in seen.metrics().items()}
        if loss in metrics:
            weights = {term.label: term.weight for term in self.mixture.terms} | self._host_weights()
            metrics[loss] += sum(weights[label] * more for label, more in seen.corrections().items())
        return type(output)(output.predictions, output.label_ids, metrics, int(seen.pairs))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as TRL does, training metrics in a line of training even where a callback has just evaluated.

        Seam: `log` takes metrics of evaluation where the policy's `training` flag is off, as it is after an evaluation;
        transformers passes `start_time` with the lines of training steps alone.
        """
        line_of_training = {} if start_time is None else {"training": True}
        with _trl.temporarily(self.model, **line_of_training):
            super().log(logs, start_time)

    def prediction_step(self, model: Any, inputs: dict[str, Any], *positional: Any, **keywords: Any) -> Any:
        """Run one evaluation step, in which every pair counts once for any number of processes and batches.

        Seam: the evaluation loop calls this once per batch, and TRL's override runs `compute_loss` and logs inside it.
        """
        padding = self._padding(PairBatch.take(inputs, ()).prompts)
        with self.host.trim_gathered(padding.trim):
            result = super().prediction_step(model, inputs, *positional, **keywords)
        if self.evaluated is not None:
            self.evaluated.add(self.host.take_evaluated())
            if not self.args.eval_use_gather_object:
                self.gather_function = RealRows(self.accelerator.gather, padding)
        return result

    def _padding(self, prompts: int) -> EvalPadding:
        """Return which pairs or lists count of a batch of so many.

        Outside of an evaluation all do: what accelerate says then is about a loader that was left before its end.
        """
        evaluating = self.evaluated is not None and not self.host.is_training
        return EvalPadding.of(self.accelerator, prompts) if evaluating else EvalPadding.absent(prompts)

    def _count_evaluated(self, pairs: Pairs, weights: torch.Tensor | None) -> None:
        """Count the real pairs of an evaluation batch, and what their losses average over tokens."""
        if self.evaluated is None or pairs.training:
            return
        sums = self.mixture.token_sums(pairs)
        sums |= {label: get_loss("sft").token_sums(pairs) for label in self._host_weights()}  # type: ignore[misc]
        self.evaluated.batch = BatchCounts.gathered(pairs, weights, sums)

    def _host_weights(self) -> dict[str, float]:
        """Weights of the losses left to TRL that average over the tokens of a batch, by label."""
        named = zip(self.mixture.host_names, self.mixture.host_weights, strict=True)
        return {f"trl:{name}": weight for name, weight in named if name == "sft"}
