"""A weighted sum of loss variants, each with its own hyperparameters: parsed, checked, computed.

A loss is named by a *spec*: `dpop`, or with hyperparameters of its own `cdpo:beta=1.0,label_smoothing=0.1`, so that
one mixture can hold two betas. `trl:<name>` leaves a loss to TRL's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .hyperparameters import DeclaredHyper, Hyper
from .pairs import Need, Pairs
from .registry import LossVariant, get_loss, list_losses

HOST_PREFIX = "trl:"


@dataclass(frozen=True, slots=True)
class Term:
    """One loss of a mixture, ready to run."""

    variant: LossVariant
    weight: float
    hyper: Mapping[str, Any]
    """The value of every hyperparameter, published defaults included."""
    label: str
    """The variant's name, or its spec where a mixture holds the variant more than once."""
    loss: Callable[..., torch.Tensor]

    def describe(self) -> str:
        """Name, hyperparameters and weight in one line."""
        inside = ", ".join(f"{name}={value}" for name, value in self.hyper.items() if value is not None)
        return f"{self.weight:g} x {self.variant.name}({inside})"


@dataclass(frozen=True, slots=True)
class LossMixture:
    """The losses of a run: our terms, and the names that TRL computes itself."""

    terms: tuple[Term, ...]
    host_names: tuple[str, ...] = ()
    host_weights: tuple[float, ...] = ()
    reference_free: bool = False
    """Read every reference log-prob as zero; no reference is loaded."""

    @property
    def needs(self) -> Need:
        """What all terms together need. A loss left to TRL needs a reference."""
        needs = Need.REFERENCE if self.host_names else Need.NONE
        for term in self.terms:
            needs |= term.variant.needs
        return needs & ~needs.of_reference if self.reference_free else needs

    @property
    def needs_reference(self) -> bool:
        """Whether reference log-probs must be computed or read."""
        return bool(self.needs.of_reference)

    @property
    def columns(self) -> dict[str, Hyper]:
        """The dataset columns that the terms read."""
        return {name: meaning for term in self.terms for name, meaning in term.variant.columns.items()}

    def describe(self) -> str:
        """All terms in one line."""
        host = [f"{w:g} x {HOST_PREFIX}{n}" for n, w in zip(self.host_names, self.host_weights, strict=True)]
        return " + ".join([term.describe() for term in self.terms] + host)

    def __call__(
        self, pairs: Pairs, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | float, dict[str, torch.Tensor]]:
        """The weighted loss, a scalar, and the mean of each term before its weight, detached.

        Args:
            pairs: the batch; the mean over no pairs is 0.
            weights: one weight per pair, shape (pairs,), for every term; None weighs all pairs equally.
        """
        total: torch.Tensor | float = 0.0
        per_term = {}
        for term in self.terms:
            values = term.loss(pairs, **term.hyper)
            values = values if weights is None else values * weights
            # In evaluation a process may have been given nothing but repeated pairs, which are not in the batch.
            mean = values.mean() if values.numel() else values.sum()
            per_term[term.label] = mean.detach()
            total = total + mean * term.weight
        return total, per_term

    def rewards(self, pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The first term's own rewards of both sides, each (pairs,), where no reference defines them; else None."""
        if self.needs_reference or self.reference_free or not self.terms or self.terms[0].variant.reward is None:
            return None
        term, reward = self.terms[0], self.terms[0].variant.reward
        return reward(pairs.chosen, **term.hyper).detach(), reward(pairs.rejected, **term.hyper).detach()

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The running state of every stateful term, by label; plain numbers."""
        return {term.label: term.loss.state_dict() for term in self.terms if term.variant.stateful}  # type: ignore[attr-defined]

    def load_state_dict(self, state: Mapping[str, dict[str, Any]]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ValueError: the state is of another mixture.
        """
        stateful = {term.label: term.loss for term in self.terms if term.variant.stateful}
        if set(state) != set(stateful):
            raise ValueError(
                f"The checkpoint holds loss state of {sorted(state)}, this run's losses keep state of "
                f"{sorted(stateful)}. Resume with the same loss_type."
            )
        for label, loss in stateful.items():
            loss.load_state_dict(state[label])  # type: ignore[attr-defined]


@dataclass(slots=True)
class MixtureParser:
    """Builds a mixture from specs, weights and flag values, collecting every problem instead of raising the first."""

    specs: Sequence[str]
    weights: Sequence[float] | None
    values: Mapping[str, Any]
    """Flag values by hyperparameter name: shared ones always, owned ones None where not set."""
    shared_defaults: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)

    def parse(self, reference_free: bool = False) -> LossMixture | None:
        """The mixture, or None where `problems` says why there is none."""
        weights = self._weights()
        host, terms = [], []
        for spec, weight in zip(self.specs, weights, strict=True):
            if spec.startswith(HOST_PREFIX):
                host.append((spec.removeprefix(HOST_PREFIX), weight))
            else:
                terms += self._term(spec, weight)
        if not self.specs:
            self.problems.append("loss_type is empty; name at least one loss.")
        self._report_unused([variant for variant, _, _, _ in terms], bool(host))
        if self.problems:
            return None
        names = [variant.name for variant, _, _, _ in terms]
        return LossMixture(
            terms=tuple(
                Term(variant, weight, hyper, variant.name if names.count(variant.name) == 1 else spec, variant.make())
                for variant, weight, hyper, spec in terms
            ),
            host_names=tuple(name for name, _ in host),
            host_weights=tuple(weight for _, weight in host),
            reference_free=reference_free,
        )

    def _weights(self) -> list[float]:
        if self.weights is None:
            return [1.0] * len(self.specs)
        if len(self.weights) != len(self.specs):
            self.problems.append(
                f"loss_weights has {len(self.weights)} values for {len(self.specs)} losses ({', '.join(self.specs)}); "
                "give one weight per loss."
            )
            return [1.0] * len(self.specs)
        return list(self.weights)

    def _term(self, spec: str, weight: float) -> list[tuple[LossVariant, float, dict[str, Any], str]]:
        name, _, inline = spec.partition(":")
        try:
            variant = get_loss(name)
        except ValueError as error:
            self.problems.append(str(error))
            return []
        hyper = {p.name: self.values[p.name] for p in variant.hyperparameters if self.values.get(p.name) is not None}
        for assignment in filter(None, inline.split(",")):
            key, value = self._assignment(variant, spec, assignment)
            if key is not None:
                hyper[key] = value
        self.problems += variant.check(hyper)
        complete = {p.name: hyper.get(p.name, p.default) for p in variant.hyperparameters}
        return [(variant, weight, complete, spec)]

    def _assignment(self, variant: LossVariant, spec: str, assignment: str) -> tuple[str | None, Any]:
        """`beta=1.0` as (name, value); an owned hyperparameter may be named without its variant's prefix."""
        key, equals, text = (part.strip() for part in assignment.partition("="))
        by_name = {p.name: p for p in variant.hyperparameters}
        short = {p.name.removeprefix(f"{variant.name}_"): p for p in variant.owned}
        parameter = by_name.get(key) or short.get(key)
        if not equals or parameter is None:
            has = ", ".join(by_name) or "none"
            self.problems.append(f"{assignment!r} in loss_type {spec!r}: write name=value; {variant.name} has {has}.")
            return None, None
        return parameter.name, _convert(parameter, text)

    def _report_unused(self, variants: Sequence[LossVariant], host_losses: bool) -> None:
        used = {p.name for variant in variants for p in variant.hyperparameters}
        owners: dict[str, list[str]] = {}
        for variant in list_losses():
            for parameter in variant.hyperparameters:
                owners.setdefault(parameter.name, []).append(variant.name)
        for name, value in self.values.items():
            shared = name in self.shared_defaults
            unset = value is None or (shared and value == self.shared_defaults[name])
            # Which fields a loss left to TRL reads is TRL's business.
            if unset or name in used or (shared and host_losses):
                continue
            chosen = ", ".join(self.specs)
            self.problems.append(
                f"{name}={value} is not used by any chosen loss ({chosen}); {_owned_by(name, owners.get(name, []))}"
            )


def _owned_by(name: str, owners: Sequence[str]) -> str:
    if not owners:
        return f"remove {name}."
    listed = ", ".join(owners[:6]) + (", ..." if len(owners) > 6 else "")
    extra = " For conservative DPO choose cdpo." if name == "label_smoothing" else ""
    return f"it is for {listed}.{extra}"


def _convert(parameter: DeclaredHyper, text: str) -> Any:
    """A value written in a spec, in the parameter's type; what does not convert is left for the range check to name."""
    if text.lower() in ("none", "null"):
        return None
    if parameter.type is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if parameter.choices:
        return text
    try:
        return int(text) if parameter.type is int else float(text)
    except ValueError:
        return text
