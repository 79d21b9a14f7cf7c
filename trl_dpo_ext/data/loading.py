"""Loading of preference datasets by hub id, folder or file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from transformers import TrainingArguments
from trl import DatasetMixtureConfig, ScriptArguments, get_dataset

from ..errors import InputError
from .dataset_columns import map_columns, sample_mapped
from .lists.choice import holds_lists, layout_of
from .lists.layouts import content_key

_FILE_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def load_preferences(
    script: ScriptArguments, mixture: DatasetMixtureConfig, args: TrainingArguments
) -> tuple[Any, Any]:
    """Load the train split, and the evaluation split if the run evaluates.

    Args:
        script: names the dataset and its splits.
        mixture: lists several datasets (`datasets:` in the YAML), or the share of rows to hold out.
        args: says whether the run evaluates, and seeds the split.

    Returns:
        The training dataset and the evaluation dataset; the latter is None if the run does not evaluate.

    Raises:
        InputError: no dataset is named, it cannot be loaded, or it lacks a split.
    """
    splits = load_splits(script, mixture, args)
    wanted = [("dataset_train_split", script.dataset_train_split)]
    if args.eval_strategy != "no":
        wanted.append(("dataset_test_split", script.dataset_test_split))
    problems = [
        f"The dataset has no split {split!r}; it has {', '.join(splits)}. Set --{flag}"
        + (", or --test_split_size to hold out some rows." if flag == "dataset_test_split" else ".")
        for flag, split in wanted
        if split not in splits
    ]
    if problems:
        raise InputError(*problems)
    return splits[wanted[0][1]], splits[wanted[1][1]] if len(wanted) > 1 else None


def load_splits(script: ScriptArguments, mixture: DatasetMixtureConfig, args: TrainingArguments) -> Any:
    """Load every split of a dataset, as a mapping from its name; the arguments are those of `load_preferences`."""
    if mixture.datasets:
        return get_dataset(mixture)
    if not script.dataset_name:
        raise InputError("No dataset: set --dataset_name (a hub id, a folder or a file), or `datasets:` in the YAML.")
    splits: Any = _load_named(script)
    if mixture.test_split_size is None or script.dataset_test_split in splits:
        return splits
    if script.dataset_train_split not in splits:
        return splits  # the caller reports it
    train = splits[script.dataset_train_split]
    if script.dataset_streaming:
        raise InputError(
            f"--test_split_size {mixture.test_split_size} cannot be used with --dataset_streaming: a stream has no "
            "length to hold out a share of. Set --dataset_test_split to a split of the dataset, or remove one of them."
        )
    size, rows = mixture.test_split_size, len(train)
    if size >= 1 and size == int(size):  # the command line gives every number as a float
        size = int(size)
    if not 0 < size < (1 if isinstance(size, float) else rows):
        raise InputError(
            f"--test_split_size {size} holds out no rows, or all of them. Choose a share between 0 and 1, or a number "
            f"of rows below {rows}."
        )
    prompts = _prompts_of_lists(train, args)
    if prompts is None:
        return train.train_test_split(test_size=size, seed=args.seed)
    members: dict[str, list[int]] = {}
    for at, prompt in enumerate(prompts):
        members.setdefault(content_key(prompt), []).append(at)
    lists = Dataset.from_dict({"rows": list(members.values())})
    parts = lists.train_test_split(test_size=size, seed=args.seed)
    return DatasetDict(
        {name: train.select([at for rows in part["rows"] for at in rows]) for name, part in parts.items()}
    )


def _prompts_of_lists(dataset: Dataset, args: Any) -> list[Any] | None:
    """The prompt of each row if several rows become one list, which a split must not tear apart; None otherwise."""
    mapping = getattr(args, "dataset_columns", None) or {}
    rows = sample_mapped(dataset, mapping)
    layout = layout_of(rows) if holds_lists(rows, args) else None
    if not getattr(args, "gather_lists", False) and (layout is None or layout.read is not None):
        return None
    try:
        prompts = map_columns(dataset, "", mapping)["prompt"][:]
    except (InputError, KeyError):  # what is wrong is told later
        return None
    return prompts if len(prompts) == len(dataset) else None


def _load_named(script: ScriptArguments) -> DatasetDict | IterableDatasetDict:
    name = str(script.dataset_name)
    path = Path(name).expanduser()
    builder = _FILE_BUILDERS.get(path.suffix)
    _check_path(name, path, builder)
    streaming: Any = {"streaming": script.dataset_streaming}
    try:
        if path.is_file():
            return load_dataset(str(builder), data_files=str(path), **streaming)
        if (path / "dataset_dict.json").is_file():
            return load_from_disk(str(path))  # type: ignore[return-value]
        return load_dataset(name, name=script.dataset_config, **streaming)
    except (OSError, ValueError, DatasetsError) as error:  # missing, unreadable, or no network
        cause = f" ({error.__cause__})" if error.__cause__ is not None else ""  # datasets says there what is wrong
        raise InputError(f"Dataset {name} could not be loaded: {error}{cause}") from error


def _check_path(name: str, path: Path, builder: str | None) -> None:
    if path.is_file() and builder is None:
        raise InputError(f"--dataset_name {name}: a dataset file must end in {', '.join(_FILE_BUILDERS)}.")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"--dataset_name {name}: the file is empty. Write the rows again.")
    if not path.exists() and (builder or name.startswith((".", "/", "~"))):
        raise InputError(f"--dataset_name {name}: no such file or folder. Check the path.")
