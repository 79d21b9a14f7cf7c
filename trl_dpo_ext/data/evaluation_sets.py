"""What a run's evaluation cannot give, known before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import _trl
from .prepare import named_parts


def evaluation_problems(args: Any, eval_dataset: Any, is_loaded: bool = True) -> list[str]:
    """Return what is wrong with the options of evaluation for this data.

    Args:
        args: the run's `TrainingArguments`.
        eval_dataset: one dataset, or a dictionary of them.
        is_loaded: whether data could be loaded, so that a missing dataset is one that was not given.
    """
    problems = [_unknown_metric(args, list(eval_dataset))] if isinstance(eval_dataset, Mapping) else []
    if is_loaded and eval_dataset is None and args.eval_strategy != "no":
        problems.append(
            f"eval_strategy={getattr(args.eval_strategy, 'value', args.eval_strategy)!r} needs an evaluation dataset. "
            "Pass eval_dataset (--test_split_size holds out some rows), or set eval_strategy='no'."
        )
    problems += [_all_dropped(args, name, part) for name, part in named_parts({"eval_dataset": eval_dataset}).items()]
    return [problem for problem in problems if problem]


def watching_problems(args: Any, labels: Sequence[str] | None, eval_dataset: Any, stops: bool) -> list[str]:
    """Return what is wrong with `metric_for_best_model`, on which transformers raises at the first save, or stop.

    Args:
        args: the run's `TrainingArguments`.
        labels: of the losses; None if the user adds metrics, by `compute_metrics` or a callback.
        eval_dataset: one dataset, or a dictionary of them.
        stops: whether `EarlyStoppingCallback` watches it.
    """
    metric = args.metric_for_best_model
    if stops and (metric is None or args.eval_strategy == "no"):
        return [
            "EarlyStoppingCallback needs evaluations and a metric. Set eval_strategy and metric_for_best_model "
            "(such as eval_loss or eval_rewards/accuracies)."
        ]
    if metric is None or labels is None or args.eval_strategy == "no":
        return []
    prefixes = [f"eval_{name}_" for name in eval_dataset] if isinstance(eval_dataset, Mapping) else ["eval_"]
    known = [*_trl.LOGGED, *(f"loss/{label}" for label in labels)]
    full = metric if metric.startswith("eval_") else f"eval_{metric}"
    if any(full == f"{prefix}{name}" for prefix in prefixes for name in known):
        return []
    if not any(full.startswith(prefix) for prefix in prefixes):
        return []  # told before
    return [
        f"metric_for_best_model={metric!r} is not a metric of this run; it has "
        f"{', '.join(f'{prefixes[0]}{name}' for name in known)}. Choose one of these."
    ]


def _unknown_metric(args: Any, names: list[str]) -> str:
    """Several datasets have metrics of their own, so that a metric without a dataset's name is never found."""
    metric = args.metric_for_best_model
    if metric is None or args.eval_strategy == "no":
        return ""
    if watched_set(metric, names) is not None:
        return ""
    return (
        f"metric_for_best_model={metric!r} does not name one of the evaluation datasets ({', '.join(names)}), each of "
        f"which has its own metrics, such as eval_{names[0]}_loss. Put the dataset's name after eval_."
    )


def _all_dropped(args: Any, label: str, dataset: Any) -> str:
    batch = args.per_device_eval_batch_size * args.world_size
    rows = len(dataset) if hasattr(dataset, "__len__") else batch
    if not args.dataloader_drop_last or rows >= batch:
        return ""
    return (
        f"{label} has {rows} rows, fewer than the {batch} of one batch over all processes, and dataloader_drop_last "
        "drops incomplete batches, so nothing would be evaluated. Decrease per_device_eval_batch_size."
    )


def is_unwatched(metric: str | None, eval_dataset: Any, prefix: str) -> bool:
    """Whether an evaluation is of one of several datasets, and not of the one whose metric chooses the best model.

    Args:
        metric: `metric_for_best_model`.
        eval_dataset: one dataset, or a dictionary of them.
        prefix: of the evaluation's metrics, such as `eval_easy`.
    """
    names = list(eval_dataset) if isinstance(eval_dataset, Mapping) and metric is not None else []
    watched = watched_set(metric, names)
    return watched is not None and prefix in [f"eval_{name}" for name in names if name != watched]


def watched_set(metric: str | None, names: list[str]) -> str | None:
    """The dataset that a metric is of; None if it names none of them."""
    if metric is None:
        return None
    full = metric if metric.startswith("eval_") else f"eval_{metric}"
    return max((name for name in names if full.startswith(f"eval_{name}_")), key=len, default=None)
