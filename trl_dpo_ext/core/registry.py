"""Where loss variants are declared and found.

A declaration is all there is: flags, validation, tables and parametrized tests derive from it.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import torch

from .hyperparameters import DeclaredHyper, Hyper, read_hyperparameters
from .pairs import Need, Pairs

PLUGIN_GROUP = "trl_dpo_ext.losses"

Evidence = Literal["authors", "framework", "read", "secondary", "memory"]
"""How a formula was checked: against the authors' code as executed, against a framework's code as executed, by reading
code or paper, against secondary sources only, or from memory."""

Reward = Callable[..., torch.Tensor]
"""`reward(side, **hyperparameters) -> (pairs,)`: the reward a variant implies for one side."""

LossFunction = TypeVar("LossFunction")


@dataclass(frozen=True, slots=True)
class LossVariant:
    """One declared loss variant. Calling it gives one value per pair.

    Example:
        >>> from trl_dpo_ext import Pairs, get_loss
        >>> pairs = Pairs.from_logps(chosen=[-50.0], rejected=[-52.0], ref_chosen=[-51.0], ref_rejected=[-51.0])
        >>> get_loss("dpop")(pairs, beta=0.1, dpop_lambda=50.0)
        tensor([0.5981])
    """

    name: str
    function: Callable[..., Any]
    """`f(pairs, **hyper) -> (pairs,)`, or a class whose instances are such functions and hold a running state."""
    paper: str | None
    """arXiv id, or a URL for a formula that was published elsewhere."""
    needs: Need
    columns: Mapping[str, Hyper]
    """Dataset columns it reads, with their meaning and bounds."""
    per_pair: bool
    """The value of a pair depends on that pair alone."""
    aligned: bool
    """Value i belongs to pair i. Losses that sort their batch are not aligned and cannot be weighted per pair."""
    f_divergence: bool
    """Reads the score of an f-divergence instead of the plain log-ratio."""
    differences: bool
    """A shift of reference log-probs that both sides share, per answer or per token, does not reach it."""
    hyperparameters: tuple[DeclaredHyper, ...]
    aliases: tuple[str, ...]
    evidence: Evidence
    reward: Reward | None
    from_trl: bool

    @property
    def stateful(self) -> bool:
        """Whether it keeps a running state, and so must be made anew for every run."""
        return Need.STATE in self.needs

    @property
    def needs_reference(self) -> bool:
        """Whether it reads anything of a reference model."""
        return bool(self.needs.of_reference)

    @property
    def absolute(self) -> bool:
        """Whether it reads each side's reward by itself, so that a shift of the reference moves it."""
        return self.needs_reference and not self.differences

    @property
    def doc(self) -> str:
        """The whole docstring: what it does, formula, when to use it, notes."""
        return inspect.getdoc(self.function) or ""

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return self.doc.split("\n", 1)[0]

    @property
    def owned(self) -> tuple[DeclaredHyper, ...]:
        """The hyperparameters that become flags of their own."""
        return tuple(parameter for parameter in self.hyperparameters if not parameter.shared)

    def make(self) -> Callable[..., torch.Tensor]:
        """The loss as a function of pairs; a stateful variant starts with a fresh state at each call of this."""
        return self.function() if self.stateful else self.function

    def __call__(self, pairs: Pairs, **hyper: Any) -> torch.Tensor:
        """One value per pair, shape (pairs,), in the dtype of the log-probs.

        Raises:
            ValueError: the pairs lack something the variant needs, or a hyperparameter is missing, unknown or
                out of range.
        """
        missing = pairs.missing(self.needs, list(self.columns))
        if missing:
            raise ValueError(f"loss_type {self.name!r} needs {'; '.join(missing)}.")
        problems = self.check(hyper)
        if problems:
            raise ValueError(" ".join(problems))
        return self.make()(pairs, **hyper)

    def check(self, hyper: dict[str, Any]) -> list[str]:
        """What is wrong with these hyperparameters: missing, unknown, out of range, or excluding one another."""
        declared = {parameter.name: parameter for parameter in self.hyperparameters}
        problems = [
            f"loss_type {self.name!r} has no hyperparameter {name!r}; it has {', '.join(declared) or 'none'}."
            for name in hyper
            if name not in declared
        ]
        for name, parameter in declared.items():
            if name not in hyper:
                problems += [f"loss_type {self.name!r} needs {name}."] if parameter.shared else []
                continue
            problem = parameter.problem(hyper[name], self.name)
            problems += [problem] if problem else []
            other = declared.get(parameter.hyper.excludes or "")
            if other and hyper[name] != parameter.default and hyper.get(other.name, other.default) != other.default:
                problems.append(
                    f"{name} and {other.name} say the same thing for loss_type {self.name!r}; give one of them."
                )
        return problems


_variants: dict[str, LossVariant] = {}
_aliases: dict[str, str] = {}


def register_loss(
    *,
    paper: str | None,
    needs: Need = Need.NONE,
    columns: Mapping[str, Hyper] = MappingProxyType({}),
    per_pair: bool = True,
    aligned: bool = True,
    f_divergence: bool = False,
    differences: bool | None = None,
    name: str | None = None,
    prefix: str | None = None,
    aliases: Iterable[str] = (),
    evidence: Evidence = "authors",
    reward: Reward | None = None,
    from_trl: bool = False,
) -> Callable[[LossFunction], LossFunction]:
    """Declare the decorated function (or stateful class) as a loss variant.

    Args:
        paper: arXiv id of the source.
        needs: what the function reads; checked by the test-suite against what it really reads.
        columns: dataset columns it reads from `pairs.columns`, each with its meaning and bounds.
        per_pair: whether a pair's value depends on that pair alone.
        aligned: whether value i belongs to pair i.
        f_divergence: whether it reads the score and so takes `f_divergence_type`.
        differences: whether a shift of the reference that both sides share cancels in it; as `f_divergence` by default.
        name: the name in `loss_type`; the function's name by default.
        prefix: what owned hyperparameters start with; the variant's name by default. Variants of one family may share.
        aliases: other names of the same loss.
        evidence: how the formula was checked.
        reward: `reward(side, **hyper)`, logged instead of beta times the log-ratio where no reference is used.
        from_trl: the name and the formula are TRL's own.

    Raises:
        TypeError: the declaration is not of the expected form.
        ValueError: the name is taken.
    """

    def declare(function: Any) -> Any:
        chosen_name = name or function.__name__
        signature_of = function.__call__ if isinstance(function, type) else function
        stateful = isinstance(function, type)
        if stateful != (Need.STATE in needs):
            raise TypeError(f"{chosen_name}: a class declares Need.STATE and a plain function does not.")
        try:
            hyperparameters = read_hyperparameters(signature_of, prefix or chosen_name)
        except TypeError as error:
            raise TypeError(f"loss variant {chosen_name!r}: {error}") from None
        variant = LossVariant(
            name=chosen_name,
            function=function,
            paper=paper,
            needs=needs,
            columns=dict(columns),
            per_pair=per_pair,
            aligned=aligned,
            f_divergence=f_divergence,
            differences=f_divergence if differences is None else differences,
            hyperparameters=hyperparameters,
            aliases=tuple(aliases),
            evidence=evidence,
            reward=reward,
            from_trl=from_trl,
        )
        _add(variant)
        return function

    return declare


def _add(variant: LossVariant) -> None:
    for taken in (variant.name, *variant.aliases):
        if taken in _variants or taken in _aliases:
            other = _variants.get(taken) or _variants[_aliases[taken]]
            raise ValueError(f"loss_type {taken!r} is already declared by {other.function.__module__}.")
    for parameter in variant.owned:
        for other in _variants.values():
            twin = next((p for p in other.owned if p.name == parameter.name), None)
            if twin is not None and twin != parameter:
                raise ValueError(f"{parameter.name} is declared differently by {other.name!r} and {variant.name!r}.")
    _variants[variant.name] = variant
    _aliases.update(dict.fromkeys(variant.aliases, variant.name))


@functools.cache
def _load_plugins() -> None:
    for point in entry_points(group=PLUGIN_GROUP):
        try:
            point.load()
        except Exception as error:  # a broken plugin must not break everyone else's training run
            warnings.warn(f"Loss plugin {point.value!r} could not be loaded: {error!r}.", stacklevel=2)


def list_losses() -> list[LossVariant]:
    """Every declared variant, ours and those of installed plugins, sorted by name."""
    _load_plugins()
    return [_variants[name] for name in sorted(_variants)]


def get_loss(name: str) -> LossVariant:
    """The variant of that name or alias.

    Raises:
        ValueError: no variant has that name; the message suggests the nearest.
    """
    _load_plugins()
    variant = _variants.get(_aliases.get(name, name))
    if variant is None:
        near = difflib.get_close_matches(name, [*_variants, *_aliases], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f'Unknown loss_type {name!r}.{hint} "trl-dpo-ext losses" lists them.')
    return variant
