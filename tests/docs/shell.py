"""Parses the commands of documentation as the programs that they start would."""

from __future__ import annotations

import itertools
import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path

from accelerate.commands.launch import launch_command_parser

from tests.docs.blocks import ROOT
from tools.site.command_line import parser_of
from trl_dpo_ext.cli.arguments import read_for_another_machine
from trl_dpo_ext.cli.main import COMMANDS
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.recipe_registry import find_config

OF_TRAIN: dict[str, list[str]] = {"train": [], "precompute": ["--precompute_ref_log_probs", "true"]}
"""Commands that have the flags of `train` alone, with those that they set."""
AND_OF_TRAIN = {"inspect", "estimate", "score"}
"""Commands that accept the flags of `train` beside their own."""
FREE = {"cd", "export", "source", "git", "jq", "head", "cat", "ls", "mkdir", "cp", "sbatch", "pre-commit"}
"""Programs whose arguments are the reader's."""
ENDS = {"|", "&&", ";", ">", "||"}


class Shell:
    """Checks lines of a shell, and knows the files that a page has named.

    Args:
        folder: where files of the page are written.
        configuration: the file that stands for a configuration that the page does not show.
    """

    def __init__(self, folder: Path, configuration: Path) -> None:
        self._folder = folder
        self.configuration = configuration
        self.files: dict[str, Path] = {}

    def problems(self, text: str, command: str = "") -> list[str]:
        """What is wrong with the lines of a block, each of which may be flags of a command."""
        found = []
        for line in re.sub(r"\\\n", " ", text).splitlines():
            line = f"trl-dpo-ext {command} {line}" if command else line
            for words in _commands(line):
                try:
                    found += [f"{' '.join(words)}: {problem}" for problem in self._command(words)]
                except (InputError, SystemExit) as error:
                    found.append(f"{' '.join(words)}: {error}")
        return found

    def _command(self, words: list[str]) -> list[str]:
        while words and re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        if not words or words[0] in FREE:
            return []
        if words[0] == "trl-dpo-ext":
            return self._ours(words[1:])
        if words[:3] in (["python", "-m", "trl_dpo_ext"], ["torchrun", "-m", "trl_dpo_ext"]):
            return self._ours(words[3:])
        if words[:2] == ["accelerate", "launch"]:
            return self._launch(words[2:])
        if words[0] == "make":
            return _make(words[1:])
        if words[0].endswith("multi_node.sh"):  # our script: a configuration, and what accelerate launches
            return self._launch(["--config_file", *words[1:]])
        if words[0] in ("pip", "python", "python3") and "install" in words:
            return _install(words)
        if words[0] in ("python", "python3") and words[1].endswith(".py"):
            return [] if (ROOT / words[1]).is_file() or words[1] in self.files else [f"no such file: {words[1]}"]
        return ["nothing here can check this program; say why with <!-- not run: REASON -->"]

    def _ours(self, words: list[str]) -> list[str]:
        if not words or words[0] not in COMMANDS:
            return [] if words in (["--help"], ["--version"]) else [f"commands are {', '.join(COMMANDS)}"]
        name, flags = words[0], self._with_files([word for word in words[1:] if word != "..." or "--config" in words])
        if "--help" in flags:
            return []
        if name in OF_TRAIN:
            return list(read_for_another_machine([*OF_TRAIN[name], *flags]).problems)
        parser = parser_of(name)
        if name not in AND_OF_TRAIN:
            parser.parse_args(flags)
            return []
        ours, rest = parser.parse_known_args(flags)
        if name == "estimate" and ours.config:
            rest = ["--config", ours.config, *rest]
        return list(read_for_another_machine(rest).problems)

    def _launch(self, words: list[str]) -> list[str]:
        given = launch_command_parser().parse_args([re.sub(r"\$\w+", "1", word) for word in words])
        problems = []
        if given.config_file and not (ROOT / given.config_file).is_file() and given.config_file not in self.files:
            problems.append(f"no such file: {given.config_file}")
        if given.training_script != "trl_dpo_ext":
            return problems if given.training_script.endswith(".py") else [*problems, f"starts {given.training_script}"]
        return [*problems, *self._ours(given.training_script_args)]

    def _with_files(self, flags: list[str]) -> list[str]:
        """The flags with files that exist in place of those that the page shows, or has the reader write."""
        made = list(flags)
        for at, (flag, value) in enumerate(itertools.pairwise(flags), 1):
            if flag in ("--config", "--accelerate_config") and not _exists(value):
                made[at] = str(self.files.get(value, self.configuration))
        return made


def _exists(name: str) -> bool:
    if (ROOT / name).is_file():
        return True
    try:
        return find_config(name).is_file()
    except InputError:
        return False


def _commands(line: str) -> list[list[str]]:
    """The commands of a line, without its comment."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;>")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    redirected = False
    for word in lexer:
        if word in ENDS:
            redirected = word == ">"
            commands.append([])
        elif redirected:
            redirected = False
        else:
            commands[-1].append(word)
    return [command for command in commands if command]


def _make(words: list[str]) -> list[str]:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    wanted = {word for word in words if "=" not in word and not word.startswith("-")}
    return [f"no target {name}" for name in wanted - targets]


def _install(words: list[str]) -> list[str]:
    extras: Mapping[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    named = {extra for word in words for extra in re.findall(r"\[([\w,]+)\]", word)}
    return [f"no extra {extra}" for each in named for extra in each.split(",") if extra not in extras]
