"""Registry of loss variants: `register_loss` declares one, `get_loss` and `list_losses` find them.

Flags, validation, tables and parametrized tests all derive from the declaration.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from .columns import Column
from .hyperparameters import DeclaredHyper, read_hyperparameters
from .pairs import Need, Pairs
from .verification import EXPERIMENTAL, Verification, unknown_grade

PLUGIN_GROUP = "trl_dpo_ext.losses"

Reward = Callable[..., torch.Tensor]
"""`reward(side, **hyperparameters) -> (pairs,)`: the reward a variant implies for one side."""

TokenSums = Callable[..., torch.Tensor]
"""`sums(pairs, **hyperparameters) -> (pairs,)`: what a variant averages over the chosen tokens of its batch, summed by
pair."""

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
    columns: Mapping[str, Column]
    """Dataset columns it reads, with their meaning and bounds."""
    independent_pairs: bool
    """The value of a pair depends on that pair alone."""
    order_preserving: bool
    """Value i belongs to pair i. A loss that sorts its batch does not preserve the order and takes no pair weights."""
    f_divergence: bool
    """Reads the score of an f-divergence instead of the plain log-ratio."""
    shift_invariant: bool
    """A shift of the reference log-probs that both sides share, per completion or per token, does not change it."""
    hyperparameters: tuple[DeclaredHyper, ...]
    aliases: tuple[str, ...]
    verification: Verification
    reward: Reward | None
    token_sums: TokenSums | None
    """For a variant with a part that is a mean over the chosen tokens of the batch, the same for every pair."""
    from_trl: bool

    @property
    def stateful(self) -> bool:
        """Return True if it keeps a running state; `make` creates a fresh one for every run."""
        return Need.STATE in self.needs

    @property
    def needs_reference(self) -> bool:
        """Return True if it reads anything of a reference model."""
        return bool(self.needs.of_reference)

    @property
    def experimental(self) -> bool:
        """Return True if neither its paper nor its authors' code was seen."""
        return self.verification in EXPERIMENTAL

    @property
    def doc(self) -> str:
        """Full docstring: what it does, formula, when to use it, notes."""
        return inspect.getdoc(self.function) or ""

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return self.doc.split("\n", 1)[0]

    @property
    def owned(self) -> tuple[DeclaredHyper, ...]:
        """Hyperparameters that belong to the variant and become flags."""
        return tuple(parameter for parameter in self.hyperparameters if not parameter.shared)

    def make(self) -> Callable[..., torch.Tensor]:
        """Return the loss as a function of pairs; for a stateful variant, a new instance with a fresh state."""
        return self.function() if self.stateful else self.function

    def __call__(self, pairs: Pairs, **hyper: Any) -> torch.Tensor:
        """Compute one value per pair, shape (pairs,), in the dtype of the log-probs.

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
        """Return every problem of these hyperparameters: missing, unknown, out of range, or mutually exclusive."""
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
                problems.append(f"{name} and {other.name} are mutually exclusive for loss_type {self.name!r}.")
        return problems


_variants: dict[str, LossVariant] = {}
_aliases: dict[str, str] = {}


def register_loss(
    *,
    paper: str | None,
    verification: Verification | None = None,
    needs: Need = Need.NONE,
    columns: Mapping[str, Column] = MappingProxyType({}),
    independent_pairs: bool = True,
    order_preserving: bool = True,
    f_divergence: bool = False,
    shift_invariant: bool = False,
    name: str | None = None,
    prefix: str | None = None,
    aliases: Iterable[str] = (),
    reward: Reward | None = None,
    token_sums: TokenSums | None = None,
    from_trl: bool = False,
) -> Callable[[LossFunction], LossFunction]:
    """Declare the decorated function (or stateful class) as a loss variant.

    Args:
        paper: arXiv id or URL of the source; None if there is no publication.
        verification: how the formula was verified. Must be given: "authors" and "framework" mean that their code ran
            and gave the same values, "paper" that it was read, "third_party" and "unverified" less than that.
        needs: what the function reads; checked by the test-suite against what it really reads.
        columns: dataset columns it reads from `pairs.columns`, each with its meaning and bounds.
        independent_pairs: whether a pair's value depends on that pair alone.
        order_preserving: whether value i belongs to pair i.
        f_divergence: whether it reads the score and so takes `f_divergence_type`.
        shift_invariant: whether a shift of the reference that both sides share cancels in it. Implied by
            `f_divergence` and by needing no reference.
        name: the name in `loss_type`; the function's name by default.
        prefix: what owned hyperparameters start with; the variant's name by default. Variants of one family may share.
        aliases: other names of the same loss.
        reward: `reward(side, **hyper)`, logged instead of beta times the log-ratio where no reference is used.
        token_sums: `sums(pairs, **hyper)`, (pairs,), if the value of every pair contains a mean over all chosen tokens
            of the batch: the total of these sums over the number of tokens. Evaluation then takes that mean over the
            tokens of the whole dataset. It is given the value of every hyperparameter.
        from_trl: the name and the formula are TRL's own.

    Raises:
        TypeError: the declaration is not of the expected form.
        ValueError: the name is taken.
    """

    def declare(function: Any) -> Any:
        own_name = name or function.__name__
        stateful = isinstance(function, type)
        try:
            _check_declaration(stateful, needs, columns, verification)
            signature = function.__call__ if stateful else function
            hyperparameters = read_hyperparameters(signature, prefix or own_name)
        except TypeError as error:
            raise TypeError(f"loss variant {own_name!r}: {error}") from None
        _add(
            LossVariant(
                name=own_name,
                function=function,
                paper=paper,
                needs=needs,
                columns=dict(columns),
                independent_pairs=independent_pairs,
                order_preserving=order_preserving,
                f_divergence=f_divergence,
                shift_invariant=shift_invariant or f_divergence or not needs.of_reference,
                hyperparameters=hyperparameters,
                aliases=tuple(aliases),
                verification=verification,  # type: ignore[arg-type]  # None was refused above
                reward=reward,
                token_sums=token_sums,
                from_trl=from_trl,
            )
        )
        return function

    return declare


def _check_declaration(stateful: bool, needs: Need, columns: Mapping[str, Column], verification: object) -> None:
    if stateful != (Need.STATE in needs):
        raise TypeError("a class must declare Need.STATE, and a plain function must not.")
    for column, meaning in columns.items():
        if not isinstance(meaning, Column):
            raise TypeError(f"columns[{column!r}] must be a Column(help, ...); got {type(meaning).__name__}.")
    problem = unknown_grade(verification)
    if problem:
        raise TypeError(problem)


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


def list_losses(
    *, needs_reference: bool | None = None, verification: Verification | Collection[Verification] | None = None
) -> list[LossVariant]:
    """Return the declared variants, ours and those of installed plugins, sorted by name.

    Args:
        needs_reference: only those that need (True) or do not need (False) a reference model's log-probs.
        verification: only those of this grade, or of one of these grades.

    Raises:
        ValueError: a grade is unknown; the message lists them.

    Example:
        >>> from trl_dpo_ext import list_losses
        >>> [variant.name for variant in list_losses(needs_reference=False, verification="framework")]
        ['alphapo', 'cpo', 'orpo', 'sft']
    """
    grades = [verification] if isinstance(verification, str) else verification
    for problem in filter(None, map(unknown_grade, grades or ())):
        raise ValueError(problem)
    _load_plugins()
    return [
        variant
        for _, variant in sorted(_variants.items())
        if needs_reference in (None, variant.needs_reference) and (grades is None or variant.verification in grades)
    ]


def get_loss(name: str) -> LossVariant:
    """Return the variant of that name or alias.

    Raises:
        ValueError: no variant has that name; the message suggests the closest one.
    """
    _load_plugins()
    variant = _variants.get(_aliases.get(name, name))
    if variant is None:
        near = difflib.get_close_matches(name, [*_variants, *_aliases], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown loss_type {name!r}.{hint} Run `trl-dpo-ext losses` to list them.")
    return variant
