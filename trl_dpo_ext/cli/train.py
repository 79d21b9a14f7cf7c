"""The `train` command: flags and YAML to a finished run. Takes what TRL's own dpo script takes."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from datasets import DatasetDict, IterableDatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_dataset,
    get_peft_config,
    get_quantization_config,
)

from .. import _trl
from ..config import DPOExtConfig, owned_hyperparameters
from ..distributed.checkpoints import checkpoint_to_resume
from ..errors import InputError
from ..legacy_keys import unknown_key_problems
from ..recipe_registry import find_config
from ..trainer import DPOExtTrainer
from .run_summary import announce

_FILE_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


class TrainParser(TrlParser):
    """TRL's parser, strict: every unknown flag or key is an error, and all are listed."""

    def __init__(self, prog: str | None = None) -> None:
        types: Any = (ScriptArguments, DPOExtConfig, ModelConfig, DatasetMixtureConfig)
        super().__init__(types, prog=prog, allow_abbrev=False, formatter_class=_HelpFormatter)
        self._group_by_variant()

    def _group_by_variant(self) -> None:
        """Move each variant's flags under a heading of its own in --help."""
        groups: dict[str, Any] = {}
        for name, (_, variants) in owned_hyperparameters().items():
            title = f"loss variant {', '.join(variants)}"
            if title not in groups:
                groups[title] = self.add_argument_group(title)
            action = next(action for action in self._actions if action.dest == name)
            self._optionals._group_actions.remove(action)
            groups[title]._group_actions.append(action)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong without printing the several hundred flags there are."""
        raise InputError(f"{message} (see --help)")

    def parse(self, argv: Sequence[str]) -> tuple[ScriptArguments, DPOExtConfig, ModelConfig, DatasetMixtureConfig]:
        """The four argument groups.

        Raises:
            InputError: listing every unknown key and flag, or everything wrong with the losses.
        """
        argv = _with_config_file([part for argument in argv for part in _split_config(argument)])
        known = {action.dest for action in self._actions}
        problems = unknown_key_problems(_config_keys(argv), known | {"env"})
        _, unknown = self.parse_known_args(_without_config(argv))
        flags = [flag.split("=")[0].removeprefix("--").replace("-", "_") for flag in unknown if flag.startswith("--")]
        problems += unknown_key_problems(flags, known)
        problems += [] if flags or not unknown else [f"Unexpected arguments: {' '.join(unknown)}."]
        if problems:
            raise InputError(*problems)
        try:
            return self.parse_args_and_config(argv)  # type: ignore[return-value]
        except InputError:
            raise
        except ValueError as error:  # what transformers' own configuration refuses
            raise InputError(str(error)) from error


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        # A variant's flag is None until set; its help text already names the published default.
        return action.help if action.dest in owned_hyperparameters() else super()._get_help_string(action)


def _split_config(argument: str) -> list[str]:
    return argument.split("=", 1) if argument.startswith("--config=") else [argument]


def _without_config(argv: Sequence[str]) -> list[str]:
    index = argv.index("--config") if "--config" in argv else len(argv)
    return [*argv[:index], *argv[index + 2 :]]


def _with_config_file(argv: Sequence[str]) -> list[str]:
    """The arguments with the name of a shipped recipe replaced by its file."""
    argv = list(argv)
    if "--config" in argv[:-1]:
        at = argv.index("--config") + 1
        argv[at] = str(find_config(argv[at]))
    return argv


def _config_keys(argv: Sequence[str]) -> list[str]:
    if "--config" not in argv:
        return []
    rest = argv[argv.index("--config") + 1 :]
    file = Path(rest[0]) if rest else None
    if file is None or not file.is_file():
        raise InputError(f'--config {file or ""} is not a file, nor a recipe; "trl-dpo-ext recipes" lists those.')
    try:
        keys = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{file} is not valid YAML: {error}") from None
    if not isinstance(keys, dict):
        raise InputError(f"{file} must hold a YAML mapping of keys to values.")
    return list(keys)


def load_preferences(script: ScriptArguments, mixture: DatasetMixtureConfig, args: DPOExtConfig) -> tuple[Any, Any]:
    """The train split, and the evaluation split where the run evaluates.

    Raises:
        InputError: no dataset is named, it cannot be found, or it lacks a split.
    """
    if mixture.datasets:
        splits: Any = get_dataset(mixture)
    elif script.dataset_name:
        splits = _load_named(script)
        if mixture.test_split_size is not None and script.dataset_test_split not in splits:
            train = splits[script.dataset_train_split]
            splits = train.train_test_split(test_size=mixture.test_split_size, seed=args.seed)
    else:
        raise InputError("No dataset: give --dataset_name (a hub id, a folder or a file), or datasets: in the YAML.")
    wanted = [("dataset_train_split", script.dataset_train_split)]
    if args.eval_strategy != "no":
        wanted.append(("dataset_test_split", script.dataset_test_split))
    problems = [
        f"The dataset has no split {split!r}; it has {', '.join(splits)}. Set {flag}"
        + (", or test_split_size to hold some rows out." if flag == "dataset_test_split" else ".")
        for flag, split in wanted
        if split not in splits
    ]
    if problems:
        raise InputError(*problems)
    return splits[wanted[0][1]], splits[wanted[1][1]] if len(wanted) > 1 else None


def _load_named(script: ScriptArguments) -> DatasetDict | IterableDatasetDict:
    """A dataset by hub id, folder or file."""
    name = str(script.dataset_name)
    path = Path(name).expanduser()
    builder = _FILE_BUILDERS.get(path.suffix)
    if path.is_file() and builder is None:
        raise InputError(f"{name}: a dataset file must end in {', '.join(_FILE_BUILDERS)}.")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"{name} is empty.")
    if not path.exists() and (builder or name.startswith((".", "/", "~"))):
        raise InputError(f"There is no dataset file or folder {name}.")
    streaming: Any = {"streaming": script.dataset_streaming}
    try:
        if path.is_file():
            return load_dataset(str(builder), data_files=str(path), **streaming)
        if (path / "dataset_dict.json").is_file():
            return load_from_disk(str(path))  # type: ignore[return-value]
        return load_dataset(name, name=script.dataset_config, **streaming)
    except (OSError, ValueError, DatasetsError) as error:  # not there, not readable, or no network
        raise InputError(f"The dataset {name} could not be loaded: {error}") from error


def build_trainer(
    script: ScriptArguments, args: DPOExtConfig, model: ModelConfig, mixture: DatasetMixtureConfig
) -> DPOExtTrainer:
    """The trainer that the arguments describe, with model and data loaded."""
    if model.model_name_or_path is None:
        raise InputError("No model: give --model_name_or_path (a hub id or a folder).")
    train_dataset, eval_dataset = load_preferences(script, mixture, args)
    given = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }
    args.model_init_kwargs = {**given, **(args.model_init_kwargs or {})}  # type: ignore[dict-item]
    return DPOExtTrainer(
        model.model_name_or_path,
        args=args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        quantization_config=get_quantization_config(model),
        peft_config=adapter_config(model),
    )


def adapter_config(model: ModelConfig) -> Any:
    """The PEFT configuration that the flags describe, or None."""
    config: Any = get_peft_config(model)
    named = getattr(config, "target_modules", None)
    if isinstance(named, str) and named.isidentifier():
        # TRL takes it out of its list, and PEFT would look for paths that match it whole.
        config.target_modules = {named}
    return config


def parse_anywhere(argv: Sequence[str]) -> tuple[DPOExtConfig, ModelConfig]:
    """The flags of a run that will be started on another machine: bf16 is taken where no GPU can do it."""
    _, args, model, _ = TrainParser().parse([*argv, "--use_cpu", "true"])
    return args, model


def run(argv: Sequence[str], prog: str | None = None) -> None:
    """Train as `argv` says: parse, load, train, save."""
    script, args, model, mixture = TrainParser(prog=prog).parse(argv)
    args.resume_from_checkpoint = checkpoint_to_resume(args.resume_from_checkpoint, str(args.output_dir))
    trainer = build_trainer(script, args, model, mixture)
    announce(trainer, model, config_of(argv))
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model(args.output_dir)
    trainer.save_state()  # the log of the run, which `trl-dpo-ext report` reads
    if trainer.accelerator.is_main_process:  # of all machines, not one on each
        print(f"Saved to {args.output_dir}.", flush=True)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    trainer.end()


def run_precompute(argv: Sequence[str], prog: str | None = None) -> None:
    """Fill a store with the reference log-probs that a `train` run with the same arguments would read."""
    script, args, model, mixture = TrainParser(prog=prog).parse([*argv, "--precompute_ref_log_probs", "true"])
    if script.dataset_streaming and args.max_steps < 1:
        args.max_steps = 1  # transformers asks for a length that a stream does not have, and nothing is trained here
    policy: Any = contextlib.nullcontext()
    if args.describes_reference:  # which alone is run: the policy would only take memory
        policy, model.use_peft, model.load_in_4bit, model.load_in_8bit = _trl.stub_policy(), False, False, False
    with policy:
        trainer = build_trainer(script, args, model, mixture)
    trainer.precompute_reference()
    if trainer.accelerator.is_main_process:
        print(f"Reference: {trainer.describe_reference()}", flush=True)
    trainer.accelerator.end_training()


def config_of(argv: Sequence[str]) -> Path | None:
    """The file that `--config` names among the arguments, or None."""
    argv = _with_config_file([part for argument in argv for part in _split_config(argument)])
    return Path(argv[argv.index("--config") + 1]) if "--config" in argv[:-1] else None
