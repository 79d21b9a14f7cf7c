"""What the command leans on inside argparse and TRL's parser: one test per fact."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from trl import TrlParser

from tests.support.seams import moved


def seam(fact: str, mend: str = "cli/arguments.py (TrainParser)") -> str:
    return moved("argparse", fact, mend)


@dataclass
class Options:
    first: int | None = field(default=None, metadata={"help": "The first."})
    second: int | None = field(default=2, metadata={"help": "The second."})


def test_every_option_is_an_action_in_a_list() -> None:
    parser = TrlParser((Options,))
    names = [action.dest for action in parser._actions]
    assert {"first", "second", "help"} <= {*names}, seam("parser._actions lists every option by its dest")


def test_an_option_can_be_moved_to_another_heading_of_the_help() -> None:
    parser = TrlParser((Options,))
    action = next(action for action in parser._actions if action.dest == "first")
    assert action in parser._optionals._group_actions, seam("options start in parser._optionals._group_actions")
    parser._optionals._group_actions.remove(action)
    parser.add_argument_group("moved")._group_actions.append(action)
    before, after = parser.format_help().split("moved:")
    options = before.split("options:")[1]
    assert "--first" in after, seam("format_help prints _group_actions of each group")
    assert "--first" not in options, seam("what is removed from _group_actions is printed under no other heading")
    (parsed,) = parser.parse_args_into_dataclasses(["--first", "7"])
    assert (parsed.first, parsed.second) == (7, 2), seam("a moved option is parsed as before")


def test_the_help_of_one_option_is_made_by_a_method() -> None:
    class Formatter(argparse.ArgumentDefaultsHelpFormatter):
        def _get_help_string(self, action: argparse.Action) -> str | None:
            return "CHANGED" if action.dest == "first" else super()._get_help_string(action)

    text = TrlParser((Options,), formatter_class=Formatter).format_help()
    assert "CHANGED" in text, seam("HelpFormatter._get_help_string(action)", "cli/arguments.py (_HelpFormatter)")
    assert "(default: 2)" in text, seam("_get_help_string adds the default", "cli/arguments.py (_HelpFormatter)")


def test_errors_go_through_a_method() -> None:
    class Parser(TrlParser):
        def error(self, message: str) -> None:  # type: ignore[override]
            raise LookupError(message)

    with pytest.raises(LookupError, match="first"):
        Parser((Options,)).parse_args_into_dataclasses(["--first", "x"])


def test_every_value_is_converted_and_checked_by_methods() -> None:
    seen = []

    class Parser(TrlParser):
        def _get_value(self, action: argparse.Action, arg_string: str) -> object:
            seen.append("_get_value")
            return super()._get_value(action, arg_string)

        def _check_value(self, action: argparse.Action, value: object) -> None:
            seen.append("_check_value")
            super()._check_value(action, value)

        def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> object:
            seen.append("_get_values")
            return super()._get_values(action, arg_strings)

    (parsed,) = Parser((Options,)).parse_args_into_dataclasses(["--first", "7"])
    assert parsed.first == 7
    assert {"_get_value", "_check_value", "_get_values"} == {*seen}, seam("values go through three methods")
    parser = TrlParser((Options,))
    action = next(action for action in parser._actions if action.dest == "first")
    with pytest.raises(argparse.ArgumentError, match="argument --first: invalid int value: 'x'"):
        parser._get_value(action, "x")


def test_the_dataclasses_to_parse_are_an_attribute() -> None:
    @dataclass
    class More:
        third: int = 3

    parser = TrlParser((Options, More))
    parser.dataclass_types = [More]
    parsed = parser.parse_args_and_config(["--third", "4", "--first", "1"], return_remaining_strings=True)
    assert parsed[0] == More(4), seam("only the dataclasses in dataclass_types are made, of all flags")


def test_unknown_flags_are_handed_back() -> None:
    _, unknown = TrlParser((Options,)).parse_known_args(["--first", "1", "--third", "3"])
    assert unknown == ["--third", "3"], seam("parse_known_args hands back what it does not know")


def test_a_file_sets_defaults_that_flags_override(tmp_path) -> None:
    (tmp_path / "options.yaml").write_text("first: 4\nsecond: 5\n")
    argv = ["--config", str(tmp_path / "options.yaml"), "--second", "6"]
    (parsed,) = TrlParser((Options,)).parse_args_and_config(argv)
    assert (parsed.first, parsed.second) == (4, 6), seam("parse_args_and_config: flags override the file")


def test_the_values_of_a_configuration_file_are_handed_over_by_a_method(tmp_path: Path) -> None:
    class Parser(TrlParser):
        def set_defaults_with_config(self, **config: Any) -> list[str]:
            return super().set_defaults_with_config(**{key: config[key] for key in config if key != "first"})

    file = tmp_path / "config.yaml"
    file.write_text("first: [7]\nsecond: [8]\n")
    (parsed,) = Parser((Options,)).parse_args_and_config(["--config", str(file)])
    assert parsed.first is None, seam("set_defaults_with_config(**config) takes the file's values")
    assert parsed.second == [8], seam("a value of the file that is no text is taken as it is")


def test_yaml_makes_every_mapping_by_one_method_of_the_loader() -> None:
    made: list[list[tuple[str, int]]] = []

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):  # type: ignore[no-untyped-def]
            made.append([(key.value, key.start_mark.line) for key, _ in node.value])
            return super().construct_mapping(node, deep)

    assert Loader("a: 1\nb: {c: 2}\na: 3\n").get_single_data() == {"a": 3, "b": {"c": 2}}
    assert made == [[("a", 0), ("b", 1), ("a", 2)], [("c", 1)]], "PyYAML has changed: mend cli/configuration_file.py"
