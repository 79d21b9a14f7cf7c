"""Command-line arguments of `train`, `precompute` and `estimate`: flags and a YAML file, parsed by TRL's parser."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml
from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments, TrlParser, get_peft_config

from ..config import DPOExtConfig, owned_hyperparameters
from ..errors import InputError
from ..legacy_keys import unknown_key_problems
from ..recipe_registry import find_config


@dataclass(frozen=True, slots=True)
class Arguments:
    """The parsed arguments of a run."""

    script: ScriptArguments
    args: DPOExtConfig
    model: ModelConfig
    data: DatasetMixtureConfig
    recipe_file: Path | None
    """The file that `--config` names."""


class TrainParser(TrlParser):
    """TRL's parser made strict: every unknown flag or key is an error, and all of them are listed."""

    def __init__(self, prog: str | None = None) -> None:
        types: Any = (ScriptArguments, DPOExtConfig, ModelConfig, DatasetMixtureConfig)
        super().__init__(types, prog=prog, allow_abbrev=False, formatter_class=_HelpFormatter)
        self._group_by_variant()

    def _group_by_variant(self) -> None:
        """Show each variant's flags under a separate heading in --help."""
        groups: dict[str, Any] = {}
        for name, (_, variants) in owned_hyperparameters().items():
            title = f"loss variant {', '.join(variants)}"
            if title not in groups:
                groups[title] = self.add_argument_group(title)
            action = next(action for action in self._actions if action.dest == name)
            self._optionals._group_actions.remove(action)
            groups[title]._group_actions.append(action)

    def error(self, message: str) -> NoReturn:
        """Raise the error without argparse's usage text, which would list several hundred flags."""
        raise InputError(f"{message} (see --help)")

    def parse(self, argv: Sequence[str]) -> Arguments:
        """Parse flags and the YAML file of `--config`; flags override the file.

        Raises:
            InputError: listing every unknown key and flag, or every problem with the losses.
        """
        given, flags = _split_config(argv)
        file = find_config(given) if given is not None else None
        keys = _read_keys(file) if file else {}
        problems = self._unknown_arguments(keys, flags)
        if problems:
            raise InputError(*problems)
        try:
            parsed: Any = self.parse_args_and_config([*(["--config", str(file)] if file else []), *flags])
        except InputError:
            raise
        except ValueError as error:  # raised by transformers' configuration classes
            raise InputError(str(error)) from error
        return Arguments(*parsed, recipe_file=file)

    def _unknown_arguments(self, keys: dict[str, Any], flags: Sequence[str]) -> list[str]:
        known = {action.dest for action in self._actions}
        _, unknown = self.parse_known_args(flags)
        names = [flag.split("=")[0].removeprefix("--").replace("-", "_") for flag in unknown if flag.startswith("--")]
        problems = unknown_key_problems(keys, known | {"env"}) + unknown_key_problems(names, known)
        if unknown and not names:
            problems.append(f"Unexpected arguments: {' '.join(unknown)}.")
        return problems


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        # A variant's flag is None until set; its help text already names the published default.
        return action.help if action.dest in owned_hyperparameters() else super()._get_help_string(action)


class _ConfigParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}: pass a YAML file or the name of a recipe.")


def _split_config(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the value of `--config`, or None, and all other arguments."""
    parser = _ConfigParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    known, flags = parser.parse_known_args(argv)
    return known.config, flags


def _read_keys(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"--config {file}: no such file or recipe. Run `trl-dpo-ext recipes` to list recipes.")
    try:
        keys = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{file} is not valid YAML: {error}") from None
    if not isinstance(keys, dict):
        raise InputError(f"{file} must hold a YAML mapping of keys to values.")
    return keys


def parse_for_another_machine(argv: Sequence[str]) -> Arguments:
    """Parse the flags of a run on another machine: bf16 is accepted even if this machine has no GPU for it."""
    return TrainParser().parse([*argv, "--use_cpu", "true"])


def adapter_config(model: ModelConfig) -> Any:
    """Return the PEFT configuration that the flags describe, or None."""
    config: Any = get_peft_config(model)
    target = getattr(config, "target_modules", None)
    if isinstance(target, str) and target.isidentifier():
        # TRL unpacks a list of one name, and PEFT would match the string against full module paths.
        config.target_modules = {target}
    return config
