"""Options of the data: what its columns are called, and what its rows become."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from .._trl import IMAGE_COLUMNS, REFERENCE_COLUMNS
from ..core.list_pairs import Reduction, parse_list_pairs
from ..core.registry import list_losses
from ..option_docs import document_options
from .findings import unknown_findings

if TYPE_CHECKING:

    class _DatasetColumns:
        """`dataset_columns` as type checkers see it: the constructor takes more forms than the mapping it keeps."""

        def __get__(self, config: Any, owner: Any = None) -> dict[str, str] | None: ...

        def __set__(self, config: Any, value: Mapping[str, str] | Sequence[str] | str | None) -> None: ...


ANSWER_NAMES = ("a", "b", "winner", "winner_is_b")
"""Names for two answers, and the column that says which is better."""
COLUMN_NAMES = (
    *("prompt", "chosen", "rejected", "messages", "system", "tools", "chat_template_kwargs"),
    *("completions", "scores", "ranks", "best", "completion", "score", "rank"),
    *IMAGE_COLUMNS,
    *REFERENCE_COLUMNS,
    *ANSWER_NAMES,
)
"""Names that `dataset_columns` may give to a column, besides the columns that losses read."""


@document_options
@dataclass(kw_only=True)
class DataOptions:
    """Options of `DPOExtConfig` for the columns of a dataset.

    Args:
        > Data

        dataset_columns: Columns of the dataset that have other names, as `NAME=COLUMN`, for instance `prompt=question
            chosen=answer_good`; a mapping in YAML and Python. `prompt=instruction,input` joins texts by a blank line,
            `prompt=messages.0.content` reaches into lists and structs. Two answers and a column that says which is
            better: `a=COLUMN b=COLUMN winner=COLUMN winner_is_b=VALUE`, with VALUE `positive` for signed numbers.
            Reference log-probs of your own: `ref_chosen_logps=COLUMN ref_rejected_logps=COLUMN`.
            Applied to training and evaluation data.
        texts_to_messages: Make messages of texts, the user's of prompts and the assistant's of completions, so that the
            chat template is applied; without it, texts are trained on as they are.
        ignore_findings: Findings about the data not to warn about because they are intended, such as length_bias;
            `trl-dpo-ext inspect` shows them with their names.
        gather_lists: Gather rows of pairs that share a prompt into one list of completions.
        max_completions: Completions of a list that are trained on, at most: the best, the worst, and others that
            `data_seed` draws; by default all.
        list_pairs: The pairs of a list that losses of pairs are computed on: all, best (the best completion against
            every other), best_worst, neighbors (each against those of the next lower score), or the number of pairs to
            draw for each prompt.
        list_reduction: Whether a prompt's loss is the mean or the sum of the losses of its pairs.
    """

    if TYPE_CHECKING:
        dataset_columns: _DatasetColumns = _DatasetColumns()
    else:
        dataset_columns: list[str] | None = None
    texts_to_messages: bool = False
    ignore_findings: list[str] = field(default_factory=list)
    gather_lists: bool = False
    max_completions: int | None = None
    list_pairs: str = "all"
    list_reduction: str = "mean"


def parse_dataset_columns(given: Any) -> tuple[dict[str, str] | None, list[str]]:
    """Return the option as a mapping from our names to the dataset's columns, and what is wrong with it.

    Args:
        given: a mapping, or `NAME=COLUMN` once or several times; None for no mapping.
    """
    if given is None:
        return None, []
    items = list(given.items()) if isinstance(given, Mapping) else list(_pairs(given))
    problems = [
        f"dataset_columns: {item!r} is not of the form NAME=COLUMN. Write for instance prompt=question."
        for item in items
        if not _is_pair(item)
    ]
    pairs = [(str(item[0]), str(item[1])) for item in items if _is_pair(item)]
    names = [name for name, _ in pairs]
    problems += [
        f"dataset_columns names {name!r} twice. Name it once."
        for name in sorted({n for n in names if names.count(n) > 1})
    ]
    sources = [source for name, source in pairs if name != "winner_is_b"]
    problems += [
        f"dataset_columns gives the column {source!r} two names. Name it once."
        for source in sorted({s for s in sources if sources.count(s) > 1})
    ]
    return dict(pairs), problems


def dataset_column_problems(args: Any) -> list[str]:
    """Return what is wrong with `dataset_columns` and `ignore_findings`; replaces the option by the mapping."""
    mapping, problems = parse_dataset_columns(args.dataset_columns)
    problems += unknown_findings(args.ignore_findings)
    if problems or mapping is None:
        return problems
    args.dataset_columns = mapping
    of_losses = sorted({name for variant in list_losses() for name in variant.columns})
    known = (*COLUMN_NAMES, *of_losses, *filter(None, [args.weight_column]))
    unknown = [name for name in mapping if name not in known]
    problems = [
        f"dataset_columns: {', '.join(map(repr, unknown))} is no column that this package reads; these are "
        f"{', '.join(dict.fromkeys(known))}. Write NAME=COLUMN, with the dataset's column on the right."
    ] if unknown else []  # fmt: skip
    answers = [name for name in ANSWER_NAMES if name in mapping]
    if answers and len(answers) < len(ANSWER_NAMES):
        missing = [name for name in ANSWER_NAMES if name not in mapping]
        problems.append(f"dataset_columns has {', '.join(answers)} without {', '.join(missing)}. Name all four.")
    if answers and {"chosen", "rejected"} & set(mapping):
        problems.append("dataset_columns names chosen or rejected beside a, b and winner. Name the one or the other.")
    if set(REFERENCE_COLUMNS) & set(mapping) and not args.precompute_ref_log_probs:
        problems.append(
            f"dataset_columns names {' and '.join(name for name in REFERENCE_COLUMNS if name in mapping)}, which is "
            "read with precompute_ref_log_probs=True alone. Set it, or remove the name."
        )
    return problems


def truncation_problems(args: Any) -> list[str]:
    """Return what is wrong with `truncation_mode`, which TRL reads at the first batch."""
    if args.truncation_mode in ("keep_start", "keep_end"):
        return []
    return [f"Unknown truncation_mode {args.truncation_mode!r}; one of keep_start, keep_end."]


def list_option_problems(args: Any) -> list[str]:
    """Return what is wrong with the options of lists."""
    problems = []
    try:
        parse_list_pairs(args.list_pairs)
    except ValueError as error:
        problems.append(str(error))
    if args.max_completions is not None and args.max_completions < 2:
        problems.append(f"max_completions must be 2 or more; got {args.max_completions}.")
    if args.list_reduction not in get_args(Reduction):
        problems.append(f"list_reduction must be mean or sum; got {args.list_reduction!r}.")
    return problems


def _pairs(given: str | Iterable[Any]) -> Iterable[Any]:
    for item in given.split() if isinstance(given, str) else given:
        if isinstance(item, Mapping):
            yield from item.items()
        else:
            yield tuple(item.split("=", 1)) if isinstance(item, str) and "=" in item else item


def _is_pair(item: Any) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and all(part not in ("", None) for part in item)
