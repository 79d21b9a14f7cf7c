"""Command-line arguments of `train`, `precompute` and `estimate`: flags and a YAML file, parsed by TRL's parser."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_type_hints

from trl import (
    DatasetMixtureConfig,
    ModelConfig,
    ScriptArguments,
    TrlParser,
    get_peft_config,
    get_quantization_config,
)

from .. import _trl
from ..config import DPOExtConfig, owned_hyperparameters
from ..errors import InputError, collecting
from ..legacy_keys import unknown_key_problems
from ..mapping_options import MAPPINGS
from ..recipe_registry import find_config
from .adapters import unused_adapter_flags
from .configuration_file import contradictions, read_keys
from .value_forms import OWN_READERS, form_of, problem_of

Options = TypeVar("Options")


@dataclass(frozen=True, slots=True)
class Arguments:
    """The parsed arguments of a run."""

    script: ScriptArguments
    args: DPOExtConfig
    model: ModelConfig
    data: DatasetMixtureConfig
    recipe_file: Path | None
    """The file that `--config` names."""
    problems: tuple[str, ...] = ()
    """What is wrong with them. What could not be parsed has its default then, so that the rest can be checked."""
    is_partial: bool = False
    """Whether a part could not be read, so that what is missing may be in it."""


class TrainParser(TrlParser):
    """TRL's parser made strict: every unknown flag or key is an error, and all of them are listed."""

    def __init__(self, prog: str | None = None) -> None:
        types: Any = (ScriptArguments, DPOExtConfig, ModelConfig, DatasetMixtureConfig)
        hints = {name: hint for kind in types for name, hint in get_type_hints(kind).items()}
        super().__init__(types, prog=prog, allow_abbrev=False, formatter_class=_HelpFormatter)
        self._group_by_variant()
        for action in self._actions:
            if action.dest in MAPPINGS:
                action.type = str  # JSON, which the configuration reads
            elif action.dest == "datasets":
                action.type = _or_json(action.type)
        options = {field.name for kind in types for field in fields(kind) if field.init}
        choices = {action.dest: tuple(action.choices) for action in self._actions if action.choices}
        self.forms = {name: form_of(hints[name], name, choices.get(name)) for name in options}
        self.defaults = {action.dest: action.default for action in self._actions}
        self._wrong_values: list[str] = []
        self._misread: dict[str, str] = {}

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

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Take the default in place of a value that cannot be converted, so that every wrong value is found."""
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            self._wrong_values.append(f"{error} (see --help)")
            return self.defaults[action.dest]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            self._wrong_values.append(f"{error} (see --help)")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        before = len(self._wrong_values)
        values = super()._get_values(action, arg_strings)
        return values if len(self._wrong_values) == before else self.defaults.get(action.dest)

    def parse(self, argv: Sequence[str]) -> Arguments:
        """Parse flags and the YAML file of `--config`; flags override the file.

        Raises:
            InputError: listing every unknown key and flag, every wrong value, and every problem with the losses.
        """
        arguments = self.read(argv)
        if arguments.problems:
            raise InputError(*arguments.problems)
        return arguments

    def read(self, argv: Sequence[str]) -> Arguments:
        """Parse as `parse` does, and list problems in the result instead of raising them.

        Raises:
            InputError: the command line cannot be taken apart, because an option has too few or too many values.
        """
        given, flags = _split_config(argv)
        file, keys, problems = None, {}, []
        with collecting(problems):
            file = find_config(given) if given is not None else None
            keys = read_keys(file) if file else {}
        is_partial = bool(problems)
        file = None if is_partial else file
        problems += self._unknown_arguments(keys, flags)
        self._misread = self._misread_values(keys)
        problems += self._misread.values()
        config = ["--config", str(file)] if file else []
        argv = [*config, *flags]
        args = self._construct(DPOExtConfig, argv, problems) or self._stand_in(argv)
        script = self._construct(ScriptArguments, argv, problems)
        model = self._construct(ModelConfig, argv, problems)
        data = self._construct(DatasetMixtureConfig, argv, problems)
        is_partial |= not (script and model and data)
        problems += self._wrong_values
        problems += unused_adapter_flags(model)
        problems += contradictions(args, model, {*keys, *_names(flags)})
        return Arguments(
            script or ScriptArguments(),
            args,
            model or ModelConfig(self._parsed(argv).model_name_or_path),
            data or DatasetMixtureConfig(),
            file,
            tuple(dict.fromkeys(problems)),
            is_partial,
        )

    def set_defaults_with_config(self, **config: Any) -> list[str]:
        """Take the values of the configuration file, except those that no option can have."""
        return super().set_defaults_with_config(**{k: v for k, v in config.items() if k not in self._misread})

    def _misread_values(self, keys: dict[str, Any]) -> dict[str, str]:
        """By option, what is wrong with the type of its value in the file, which argparse takes as it is."""
        checked = {key: value for key, value in keys.items() if key in self.forms and key not in OWN_READERS}
        found = {key: problem_of(key, value, self.forms[key]) for key, value in checked.items()}
        return {key: problem for key, problem in found.items() if problem}

    def _construct(self, kind: type[Options], argv: Sequence[str], problems: list[str]) -> Options | None:
        """Parse the options of one dataclass; add its problems to a list, and return None if it has any."""
        only: Any = {"dataclass_types": [kind]}
        with collecting(problems, ValueError, ImportError, TypeError), _trl.temporarily(self, **only):
            try:
                return self.parse_args_and_config(argv, return_remaining_strings=True)[0]
            except OSError as error:
                raise InputError(f"{error.filename}: {error.strerror}.") from None
        return None

    def _stand_in(self, argv: Sequence[str]) -> DPOExtConfig:
        """A valid configuration in place of one with problems, as near to it as can be."""
        without_precision = ["--bf16", "false", "--bf16_full_eval", "false"]
        near = self._construct(DPOExtConfig, [*argv, *without_precision], [])
        if near is not None:
            return near
        parsed = self._parsed(argv)
        return DPOExtConfig(parsed.output_dir, bf16=False, report_to=parsed.report_to, seed=parsed.seed)

    def _parsed(self, argv: Sequence[str]) -> argparse.Namespace:
        """The plain values of all options, once `_construct` has read the file of `--config`."""
        return self.parse_known_args(_split_config(argv)[1])[0]

    def _unknown_arguments(self, keys: dict[str, Any], flags: Sequence[str]) -> list[str]:
        known = {action.dest for action in self._actions}
        _, unknown = self.parse_known_args(flags)
        names = _names(unknown)
        problems = unknown_key_problems(keys, known | {"env"}) + unknown_key_problems(names, known)
        if unknown and not names:
            problems.append(f"Unexpected arguments: {' '.join(unknown)}.")
        return problems


def _or_json(from_path: Any) -> Callable[[str], Any]:
    """Let one of several datasets on the command line be its keys as JSON, where TRL takes its path alone."""

    def parse(text: str) -> Any:
        if not text.lstrip().startswith(("{", "[")):
            return from_path(text)
        try:
            return replace(from_path(text), **json.loads(text))
        except (ValueError, TypeError) as error:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a dataset ({error}). Write a path, or one JSON object for each dataset, "
                """'{"path": "a", "split": "train"}' '{"path": "b"}'"""
            ) from None

    return parse


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
    parser.add_argument("--config", action="append")
    parser.set_defaults(config=None)
    known, flags = parser.parse_known_args(argv)
    if known.config is not None and len(known.config) > 1:
        raise InputError(
            f"--config is given {len(known.config)} times ({', '.join(known.config)}), and only the last would be "
            "read. Join the files, or write the other options as flags."
        )
    return known.config[0] if known.config else None, flags


def option_names() -> frozenset[str]:
    """Return the keys that the YAML file of `--config` may have."""
    return frozenset(action.dest for action in TrainParser()._actions)


def given_options(argv: Sequence[str]) -> set[str]:
    """Return the names of the options that flags and the file of `--config` set."""
    given, flags = _split_config(argv)
    keys: dict[str, Any] = {}
    with collecting([]):
        file = find_config(given) if given is not None else None
        keys = read_keys(file) if file else {}
    return {*keys, *_names(flags)}


def _names(flags: Sequence[str]) -> list[str]:
    return [flag.split("=")[0].removeprefix("--").replace("-", "_") for flag in flags if flag.startswith("--")]


def with_loading(arguments: Arguments) -> DPOExtConfig:
    """Return the configuration with the keywords that the flags of the model ask to load it with."""
    model, args = arguments.model, copy.copy(arguments.args)
    from_flags = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }
    args.model_init_kwargs = {**from_flags, **(args.model_init_kwargs or {})}  # type: ignore[dict-item]
    return args


def read_for_another_machine(argv: Sequence[str]) -> Arguments:
    """Read the flags of a run on another machine: bf16 is accepted even if this machine has no GPU for it."""
    return TrainParser().read([*argv, "--use_cpu", "true"])


def quantization_config(model: ModelConfig) -> Any:
    """Return the quantization that the flags describe, or None."""
    return get_quantization_config(model)


def adapter_config(model: ModelConfig) -> Any:
    """Return the PEFT configuration that the flags describe, or None."""
    config: Any = get_peft_config(model)
    target = getattr(config, "target_modules", None)
    if isinstance(target, str) and target.isidentifier():
        # TRL unpacks a list of one name, and PEFT would match the string against full module paths.
        config.target_modules = {target}
    return config
