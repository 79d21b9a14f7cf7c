"""Parses a mixture of losses and collects every problem.

A `LossSpec` names each loss: `dpop`, or with hyperparameters for this term only `cdpo:beta=1.0,label_smoothing=0.1`, so
that one mixture can hold two betas. `trl:<name>` leaves a loss to TRL's own code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from .hyperparameters import DeclaredHyper
from .loss_spec import HOST_PREFIX, LossSpec
from .mixture import LossMixture, Term
from .registry import get_loss, list_losses
from .variant import LossVariant


@dataclass(slots=True)
class MixtureParser:
    """Builds a mixture from specs, weights and flag values, collecting every problem instead of raising the first."""

    specs: Sequence[str]
    """Losses by name; each is read as a `LossSpec`."""
    weights: Sequence[float] | None
    values: Mapping[str, Any]
    """Flag values by hyperparameter name: shared ones always, owned ones None where not set."""
    shared_defaults: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)

    def parse(self, reference_free: bool = False) -> LossMixture | None:
        """Return the mixture, or None after adding to `problems` why the specs give none."""
        weights = self._weights()
        host, terms = [], []
        for spec, weight in zip(map(LossSpec, self.specs), weights, strict=True):
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
        labels = [v.name if names.count(v.name) == 1 else str(spec) for v, _, _, spec in terms]
        return LossMixture(
            terms=tuple(
                Term(variant, weight, hyper, label, variant.make())
                for (variant, weight, hyper, _), label in zip(terms, labels, strict=True)
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
        wrong = [w for w in self.weights if isinstance(w, bool) or not isinstance(w, Real) or not math.isfinite(w)]
        if wrong:
            self.problems.append(f"loss_weights must be finite numbers; got {', '.join(map(repr, wrong))}.")
            return [1.0] * len(self.specs)
        if self.weights and not any(self.weights):
            self.problems.append(
                f"Nothing would train: all loss_weights are 0 ({', '.join(self.specs)}). Set one above 0."
            )
        return list(self.weights)

    def _term(self, spec: LossSpec, weight: float) -> list[tuple[LossVariant, float, dict[str, Any], LossSpec]]:
        try:
            variant = get_loss(spec.name)
        except ValueError as error:
            self.problems.append(str(error))
            return []
        hyper = {p.name: self.values[p.name] for p in variant.hyperparameters if self.values.get(p.name) is not None}
        for name, value in spec.hyper.items():
            parameter = _parameter(variant, name)
            if parameter is None:
                self._report_assignment(variant, spec, f"{name}={value}")
            else:
                hyper[parameter.name] = _convert(parameter, value)
        for assignment in spec.malformed:
            self._report_assignment(variant, spec, assignment)
        self.problems += variant.check(hyper)
        complete = {p.name: hyper.get(p.name, p.default) for p in variant.hyperparameters}
        return [(variant, weight, complete, spec)]

    def _report_assignment(self, variant: LossVariant, spec: LossSpec, assignment: str) -> None:
        has = ", ".join(p.name for p in variant.hyperparameters) or "none"
        self.problems.append(f"{assignment!r} in loss_type {str(spec)!r}: write name=value; {variant.name} has {has}.")

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


def _parameter(variant: LossVariant, name: str) -> DeclaredHyper | None:
    """Return the hyperparameter of that name; an owned one may be named without its variant's prefix."""
    short = {p.name.removeprefix(f"{variant.name}_"): p for p in variant.owned}
    return {p.name: p for p in variant.hyperparameters}.get(name) or short.get(name)


def _owned_by(name: str, owners: Sequence[str]) -> str:
    if not owners:
        return f"remove {name}."
    listed = ", ".join(owners[:6]) + (", ..." if len(owners) > 6 else "")
    extra = " For conservative DPO choose cdpo." if name == "label_smoothing" else ""
    return f"it applies to {listed}.{extra}"


def _convert(parameter: DeclaredHyper, value: Any) -> Any:
    """Return a spec's value in the parameter's type; what does not convert is left to the range check."""
    if type(value) is int and parameter.type is float:
        return float(value)
    return _from_text(parameter, value) if isinstance(value, str) else value


def _from_text(parameter: DeclaredHyper, text: str) -> Any:
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
