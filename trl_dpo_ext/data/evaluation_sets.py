"""What a run's evaluation cannot give, known before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def evaluation_problems(args: Any, eval_dataset: Any) -> list[str]:
    """Return what is wrong with the options of evaluation for this data.

    Args:
        args: the run's `TrainingArguments`.
        eval_dataset: one dataset, or a dictionary of them.
    """
    problems = [_unknown_metric(args, list(eval_dataset))] if isinstance(eval_dataset, Mapping) else []
    parts = eval_dataset if isinstance(eval_dataset, Mapping) else {"": eval_dataset}
    problems += [
        _all_dropped(args, f"eval_dataset[{name!r}]" if name else "eval_dataset", parts[name]) for name in parts
    ]
    return [problem for problem in problems if problem]


def _unknown_metric(args: Any, names: list[str]) -> str:
    """Several datasets have metrics of their own, so that a metric without a dataset's name is never found."""
    metric = args.metric_for_best_model
    if metric is None or args.eval_strategy == "no":
        return ""
    full = metric if metric.startswith("eval_") else f"eval_{metric}"
    if any(full.startswith(f"eval_{name}_") for name in names):
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
