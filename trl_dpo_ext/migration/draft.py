"""A configuration while it is translated: what it becomes, what is left out, and what differs in effect."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError

Rule = Callable[["Draft", str, Any], None]
"""`rule(draft, key, value)` says what becomes of one key."""


@dataclass
class Draft:
    """The translation of one configuration.

    Attributes:
        given: the other tool's keys and values, without those that are null.
        datasets: LLaMA-Factory's table of datasets (`DatasetInfo`); None if it was not found.
        keys: ours, in the order in which they were put.
        comments: by our key, what a reader of it has to know.
        left_out: by the other tool's key, why nothing here takes its place.
        effects: what differs although every key was carried over.
        defaults: ours, which the other tool sets where a configuration is silent.
    """

    given: Mapping[str, Any]
    datasets: Any = None
    keys: dict[str, Any] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    effects: list[str] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)

    def put(self, key: str, value: Any, comment: str = "") -> None:
        """Set one of our keys."""
        self.keys[key] = value
        if comment:
            self.comments[key] = comment

    def drop(self, key: str, reason: str) -> None:
        """Leave one of the other tool's keys out."""
        self.left_out[key] = reason

    def differs(self, effect: str) -> None:
        """Say what differs in effect."""
        self.effects.append(effect)


@dataclass(frozen=True)
class Tool:
    """A tool whose configurations can be translated.

    Attributes:
        name: as `--from` takes it.
        title: as people write it.
        marks: keys of which at least one tells its configurations from those of other tools.
        rules: what becomes of each key.
        together: keys that `finish` reads.
        finish: translates what depends on several keys: the loss, the data, the adapter.
        defaults: our keys, and what the tool does where a configuration is silent and we would do something else.
    """

    name: str
    title: str
    marks: frozenset[str]
    rules: Mapping[str, Rule]
    together: frozenset[str]
    finish: Callable[[Draft], None]
    defaults: Mapping[str, Any] = field(default_factory=dict)


def translate(given: Mapping[str, Any], tool: Tool, known: Collection[str], datasets: Any = None) -> Draft:
    """Translate a configuration.

    Args:
        given: keys and values of the other tool.
        tool: whose they are.
        known: the keys that a configuration here may have.
        datasets: LLaMA-Factory's table of datasets, if there is one.

    Raises:
        InputError: it trains something else than preference pairs.
    """
    computed = {key: value for key, value in given.items() if _is_computed(value)}
    draft = Draft({key: value for key, value in given.items() if value is not None and key not in computed}, datasets)
    for key, value in computed.items():
        draft.drop(key, f"the script computes it ({value}): write the value")
    for key, value in draft.given.items():
        if key in tool.together:
            continue
        if key in tool.rules:
            tool.rules[key](draft, key, value)
        elif key in known:
            draft.put(key, value)
        else:
            draft.drop(key, f"is not known as an option of {tool.title}, and not one here")
    tool.finish(draft)
    draft.defaults = {key: value for key, value in tool.defaults.items() if not {key} & {*draft.keys, *draft.left_out}}
    return draft


def _is_computed(value: Any) -> bool:
    """Whether a value is left to the shell."""
    return any(isinstance(each, str) and "$" in each for each in (value if isinstance(value, list) else [value]))


def renamed(name: str, comment: str = "") -> Rule:
    """Make a rule that carries a value over under another name."""

    def rule(draft: Draft, key: str, value: Any) -> None:
        draft.put(name, value, comment)

    return rule


def gone(reason: str, unless: tuple[Any, ...] = ()) -> Rule:
    """Make a rule that leaves a key out and says why, but for values that ask for nothing."""

    def rule(draft: Draft, key: str, value: Any) -> None:
        if value not in unless and value is not False and value != "":
            draft.drop(key, reason)

    return rule


def switch(name: str, value: Any) -> Rule:
    """Make a rule that sets one of our keys where the other tool's is true."""

    def rule(draft: Draft, key: str, given: Any) -> None:
        if given:
            draft.put(name, value)

    return rule


def one_of(name: str, values: Mapping[Any, Any]) -> Rule:
    """Make a rule that carries a value over as another word for it; None as the word for leaving it out."""

    def rule(draft: Draft, key: str, value: Any) -> None:
        if value not in values:
            known = ", ".join(map(str, values))
            draft.drop(key, f"{value!r} has no counterpart here (known are {known}); set {name} by hand")
        elif values[value] is not None:
            draft.put(name, values[value])

    return rule


_LAUNCHER = "the launcher's configuration says it: see the last lines of this file"
of_the_launcher = gone(_LAUNCHER)
"""The rule of options that choose or set up an engine."""
parallelism = gone(_LAUNCHER, unless=(1,))
"""The rule of numbers of processes that share one row or one weight."""
flash_attention = switch("attn_implementation", "flash_attention_2")
by_length = switch("train_sampling_strategy", "group_by_length")


def warmup(draft: Draft, key: str, value: Any) -> None:
    """Carry a share of the steps over: a rule."""
    if value:
        draft.put("warmup_steps", value, "below 1 it is a share of the steps")


def refuse_other_training(value: Any, title: str) -> None:
    """Raise the error of a configuration that does not train pairs."""
    raise InputError(
        f"This configuration of {title} trains with {value!r}, which is not a loss of preference pairs: there is "
        "nothing to translate it into."
    )
