"""Registry of loss variants: `register_loss` declares one, `get_loss` and `list_losses` find them.

Flags, validation, tables and parametrized tests all derive from the declaration.
"""

from __future__ import annotations

import difflib
import functools
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, TypeVar

from .columns import SCORE_COLUMNS, Column
from .hyperparameters import read_hyperparameters
from .lists import ORDERS, Order
from .pairs import Need
from .variant import LossVariant, Reads, Reward, ScoreBounds, TokenSums
from .verification import Verification, unknown_grade

PLUGIN_GROUP = "trl_dpo_ext.losses"

LossFunction = TypeVar("LossFunction")

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
    reads: Reads = "pairs",
    order: Order | None = None,
    score_bounds: ScoreBounds | None = None,
    fewest_pairs: int = 2,
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
        reads: "lists" for a function of `Lists`, which returns one value per prompt. It serves pairs, too, as lists of
            two answers.
        order: what a function of lists must know of the order of the answers: "best" (which are best), "ranks", or
            "scores" (how far apart they are). The last one adds `score_chosen` and `score_rejected` to `columns`, from
            where the scores of pairs come.
        score_bounds: `bounds(**hyper)`, a `Column` with the values that the scores may hold, if not all are allowed.
        fewest_pairs: pairs of a batch, over all processes, below which its statistics say so little that it is warned
            of; for a loss that declares `Need.BATCH`.

    Raises:
        TypeError: the declaration is not of the expected form.
        ValueError: the name is taken.
    """

    def declare(function: Any) -> Any:
        own_name = name or function.__name__
        stateful = isinstance(function, type)
        try:
            _check_declaration(stateful, needs, columns, verification)
            _check_order(reads, order, stateful)
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
                columns={**(SCORE_COLUMNS if order == "scores" else {}), **columns},
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
                reads=reads,
                order=order,
                score_bounds=score_bounds,
                fewest_pairs=fewest_pairs,
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


def _check_order(reads: str, order: str | None, stateful: bool) -> None:
    if reads not in ("pairs", "lists"):
        raise TypeError(f"reads must be 'pairs' or 'lists'; got {reads!r}.")
    if (reads == "lists") != (order in ORDERS):
        raise TypeError(
            f"order must be one of {', '.join(ORDERS)} for reads='lists', and unset for pairs; got {order!r}."
        )
    if reads == "lists" and stateful:
        raise TypeError("a class, which keeps a running state, must read pairs.")


def _add(variant: LossVariant) -> None:
    for taken in (variant.name, *variant.aliases):
        if taken in _variants or taken in _aliases:
            other = _variants.get(taken) or _variants[_aliases[taken]]
            raise ValueError(
                f"loss_type {taken!r} is already declared by {other.function.__module__}. Choose another name."
            )
    for parameter in variant.owned:
        for other in _variants.values():
            twin = next((p for p in other.owned if p.name == parameter.name), None)
            if twin is not None and twin != parameter:
                raise ValueError(
                    f"{parameter.name} is declared differently by {other.name!r} and "
                    f"{variant.name!r}. Name the new one after its variant."
                )
    _variants[variant.name] = variant
    _aliases.update(dict.fromkeys(variant.aliases, variant.name))


@functools.cache
def _load_plugins() -> None:
    for point in entry_points(group=PLUGIN_GROUP):
        try:
            point.load()
        except Exception as error:  # a broken plugin must not break everyone else's training run
            warnings.warn(
                f"Loss plugin {point.value!r} could not be loaded: {error!r}. Update the plug-in, or uninstall it.",
                stacklevel=2,
            )


def list_losses(
    *,
    needs_reference: bool | None = None,
    verification: Verification | Collection[Verification] | None = None,
    reads: Reads | None = None,
) -> list[LossVariant]:
    """Return the declared variants, ours and those of installed plugins, sorted by name.

    Args:
        needs_reference: only those that need (True) or do not need (False) a reference model's log-probs.
        verification: only those of this grade, or of one of these grades.
        reads: only those that read "pairs", or "lists".

    Raises:
        ValueError: a grade is unknown; the message lists them.

    Example:
        >>> from trl_dpo_ext import list_losses
        >>> [variant.name for variant in list_losses(needs_reference=False, verification="framework")]
        ['alphapo', 'cpo', 'orpo', 'pl_reference_free', 'sft', 'slic_hf']
    """
    grades = [verification] if isinstance(verification, str) else verification
    for problem in filter(None, map(unknown_grade, grades or ())):
        raise ValueError(problem)
    _load_plugins()
    return [
        variant
        for _, variant in sorted(_variants.items())
        if needs_reference in (None, variant.needs_reference)
        and (grades is None or variant.verification in grades)
        and reads in (None, variant.reads)
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
