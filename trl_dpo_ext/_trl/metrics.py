"""Metrics: where TRL keeps what it logs of each batch, and what each of them is a mean over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from .models import ModelSeams
from .patching import temporarily

TOKEN_METRICS = {
    "entropy": ("chosen", "rejected"),
    "logits/chosen": ("chosen",),
    "logits/rejected": ("rejected",),
    "mean_token_accuracy": ("chosen",),
}
"""Seam: TRL's metrics that are means over completion tokens, and the sides whose tokens they count."""

PAIR_METRICS = ("rewards/", "logps/", "loss/")
"""Seam: how TRL's names of metrics begin that are means over the pairs of a batch; and ours."""

COUNTERS = ("num_tokens",)
"""Seam: TRL's metrics that are no means, of which the last value counts."""


LOGGED = (
    "loss", *TOKEN_METRICS, "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins",
    "logps/chosen", "logps/rejected", *COUNTERS, "aux_loss", "runtime", "samples_per_second", "steps_per_second",
)  # fmt: skip
"""Seam: what an evaluation of TRL's logs, without the prefix."""


class MetricSeams(ModelSeams):
    """What a trainer logs.

    Seam: `_metrics[mode][name]` is a list of one value per batch, which `log` averages and clears; in evaluation `log`
    puts "eval_" in front of the names, whatever the prefix of the evaluation is.
    """

    @property
    def is_training(self) -> bool:
        """Whether a loss is being trained on rather than evaluated.

        Seam: TRL tells the two apart by the policy's `training` flag.
        """
        return self.trainer.model.training

    def add_metric(self, name: str, value: float) -> None:
        """Log a value, averaged over the batches between two log lines."""
        self.trainer._metrics[self._mode][name].append(value)

    def log_apart(self, values: dict[str, float]) -> None:
        """Log a line of its own, and leave what training has not logged yet to the next line of training.

        Seam: `log` takes and clears the metrics of evaluation where the policy's `training` flag is off; after an
        evaluation there are none.
        """
        with temporarily(self.trainer.model, training=False):
            self.trainer.log(values)

    def replace_metric(self, name: str, value: float) -> None:
        """Replace what TRL has just logged for this batch."""
        self.trainer._metrics[self._mode][name][-1] = value

    def uncount_tokens(self, tokens: int) -> None:
        """Take tokens of the batch, of all processes, out of the number of tokens that TRL has trained on.

        Seam: `_total_train_tokens` adds up the tokens of training batches, divided by the processes that share one
        (`_tp_size`), and is logged as `num_tokens`.
        """
        if self.is_training:
            self.trainer._total_train_tokens -= tokens // (self.trainer._tp_size or 1)
        self.trainer._metrics[self._mode]["num_tokens"] = [self.trainer._total_train_tokens]

    @contextmanager
    def separate_evaluation(self) -> Iterator[None]:
        """Keep what an evaluation logs apart from what was or will be logged outside of it.

        `predict` never logs and so leaves its values to the next evaluation, as does one that an exception ends.
        """
        self.take_evaluated()
        try:
            yield
        finally:
            self.take_evaluated()

    def take_evaluated(self) -> dict[str, float]:
        """Remove what was logged of the evaluation batch just done, and return it."""
        metrics = self.trainer._metrics["eval"]
        taken = {name: values[-1] for name, values in metrics.items() if values}
        metrics.clear()
        return taken

    def trim_gathered(self, cut: Callable[[torch.Tensor], torch.Tensor]) -> AbstractContextManager[None]:
        """Pass what TRL gathers over processes through `cut`.

        Seam: what TRL logs per pair is gathered by `accelerator.gather`.
        """
        accelerator = self.trainer.accelerator
        gather = accelerator.gather
        return temporarily(accelerator, gather=lambda values: cut(gather(values)))

    @property
    def _mode(self) -> str:
        return "train" if self.is_training else "eval"
