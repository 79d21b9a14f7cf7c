"""How a run was started: its command without secrets and paths, its recipe, and the names of its data."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..recipe_registry import read_recipe, recipes_folder
from .names import Named, last_part, named, without_paths

_SECRET = re.compile(r"token|key|secret|passw|credential|auth", re.IGNORECASE)
_HARMLESS = re.compile(
    r"(max|num|average)_\w*tokens\w*|(pad|eos|bos|unk|image)_token|\w*keys_to_ignore\w*", re.IGNORECASE
)
_SECRET_VALUE = re.compile(r"\b(?:hf|api_org|sk|ghp|gho|glpat|github_pat)[_-][A-Za-z0-9_-]{8,}|(?<=://)[^/\s@]+@")
HIDDEN = "***"
_WIDTH = 100


@dataclass(frozen=True)
class Origin:
    """What the command line knows of a run and its trainer does not."""

    command: str
    """Ready to be pasted, with secrets and paths replaced."""
    recipe: str | None = None
    datasets: tuple[Named, ...] = ()

    @classmethod
    def of_command(cls, argv: Sequence[str], arguments: Any, environment: Mapping[str, str]) -> Origin:
        """Describe `trl-dpo-ext train` with these arguments.

        Args:
            argv: behind `train`.
            arguments: what they were parsed to: `script`, `data` and `recipe_file`.
            environment: of this process, which tells its launcher.
        """
        line = [*launcher(environment), "train", *public_arguments(argv)]
        recipe = arguments.recipe_file
        return cls(shell_command(line), recipe_name(recipe) if recipe else None, dataset_names(arguments))


def launcher(environment: Mapping[str, str]) -> list[str]:
    """The command that started this process, as far as its environment tells."""
    processes = ["--num_processes", environment["WORLD_SIZE"]] if environment.get("WORLD_SIZE") else []
    if any(name.startswith("ACCELERATE_") for name in environment):
        return ["accelerate", "launch", *processes, "-m", "trl_dpo_ext"]
    if "TORCHELASTIC_RUN_ID" in environment or "LOCAL_RANK" in environment:
        local = environment.get("LOCAL_WORLD_SIZE", environment.get("WORLD_SIZE", "1"))
        return ["torchrun", "--nproc_per_node", local, "-m", "trl_dpo_ext"]
    return ["trl-dpo-ext"]


def public_arguments(argv: Sequence[str]) -> list[str]:
    """The arguments without secrets and without this machine's paths."""
    public, flag = [], ""
    for argument in argv:
        if argument.startswith("--"):
            flag, equals, value = argument.removeprefix("--").partition("=")
            public.append(f"--{flag}{equals}{public_value(flag, value)}")
        elif re.fullmatch(r"-[A-Za-z]", argument):
            flag = argument
            public.append(argument)
        else:
            public.append(public_value(flag, argument))
    return public


def public_value(name: str, value: Any) -> Any:
    """A flag's value as it may be shown, without secrets and paths; JSON is read, and each of its keys looked at."""
    if isinstance(value, dict):
        return {key: public_value(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [public_value(name, inner) for inner in value]
    if not isinstance(value, str) or not value:
        return HIDDEN if is_secret(name) and value not in ("", None) else value
    if is_secret(name):
        return HIDDEN
    if value[0] in "{[":
        try:
            return json.dumps(public_value(name, json.loads(value)))
        except ValueError:  # no JSON
            return HIDDEN if _SECRET.search(value) else without_paths(value)
    value = _SECRET_VALUE.sub(lambda found: HIDDEN + ("@" if found[0].endswith("@") else ""), value)
    return last_part(value) if _is_local(value) else without_paths(value)


def is_secret(name: str) -> bool:
    """Whether a flag of that name may hold a secret, such as `hub_token`."""
    return bool(_SECRET.search(name)) and not _HARMLESS.search(name.replace("-", "_"))


def _is_local(value: str) -> bool:
    if "://" in value:
        return value.startswith("file://")
    return bool(re.match(r"[/~]|\.\.?[/\\]|[A-Za-z]:[\\/]", value)) or ("/" in value and Path(value).exists())


def shell_command(words: Sequence[str]) -> str:
    """The words as a command for a shell; a long one has one flag per line."""
    lines = [""]
    for word in words:
        if word.startswith("--"):
            lines.append("")
        lines[-1] += (" " if lines[-1] else "") + shlex.quote(word)
    on_one = " ".join(lines)
    return on_one if len(on_one) <= _WIDTH else " \\\n    ".join(lines)


def recipe_name(file: Path) -> str:
    """The name of a shipped recipe; the file name of any other, with its title if it has a recipe's header."""
    recipe = read_recipe(file)
    with contextlib.suppress(InputError):  # installed without recipes
        if file.resolve().is_relative_to(recipes_folder().resolve()):
            return recipe.name
    return f"{file.name} ({recipe.title})" if recipe.header else file.name


def dataset_names(arguments: Any) -> tuple[Named, ...]:
    """The datasets that the flags or the YAML file name, each once."""
    script, mixture = arguments.script, arguments.data
    if not mixture.datasets:
        details = _details(script.dataset_config, script.dataset_train_split)
        one = named(script.dataset_name, "dataset", details)
        return (one,) if one else ()
    found = []
    for part in mixture.datasets:
        details = _details(part.name, part.split)
        files = part.data_files if isinstance(part.data_files, (list, tuple)) else [part.data_files]
        path = named(part.path, "dataset", details)
        # `path: json` names a reader, and `data_files` the data.
        if path is not None and not path.on_hub and any(files):
            found += [named(last_part(str(file)), "dataset", details) for file in files if file]
        else:
            found.append(path)
    return tuple(dict.fromkeys(one for one in found if one))


def _details(config: str | None, split: str | None) -> str:
    parts = [f"config `{config}`" if config else "", f"split `{split}`" if split and split != "train" else ""]
    return ", ".join(part for part in parts if part)
