"""Losses under the names of other tools, as losses of ours with the same value and gradient."""

from __future__ import annotations

from typing import Any

from .draft import Draft


def put_loss(draft: Draft, name: str, *, beta: Any = None, gamma: Any = None, likelihood: Any = None) -> None:
    """Set the loss with its hyperparameters.

    Args:
        draft: what to set it in.
        name: of the loss here.
        beta: the one number that tools call beta, whatever the loss calls it.
        gamma: SimPO's target margin.
        likelihood: weight of the likelihood of the chosen answer beside the loss, averaged over the tokens of the
            batch, as TRL's `rpo_alpha` and `cpo_alpha` are.
    """
    if likelihood and name != "cpo":
        draft.put("loss_type", [name, "sft"])
        draft.put("loss_weights", [1.0, likelihood], "the second one is the weight of the chosen answer's likelihood")
    else:
        draft.put("loss_type", name)
    if name == "cpo" and likelihood is not None:
        draft.put("cpo_alpha", likelihood)
    if beta is not None:
        draft.put({"simpo": "simpo_beta", "orpo": "orpo_lambda"}.get(name, "beta"), beta)
    if name == "simpo" and gamma is not None:
        draft.put("simpo_gamma", gamma)


def put_smoothing(draft: Draft, smoothing: Any) -> None:
    """Set DPO with label smoothing, which is `cdpo` here: TRL's `sigmoid` ignores label_smoothing today."""
    if smoothing and draft.keys.get("loss_type") == "sigmoid":
        draft.put("loss_type", "cdpo", "DPO with label smoothing")
        draft.put("label_smoothing", smoothing)
        draft.differs("Label smoothing is applied; with TRL's `sigmoid`, newer versions ignore it.")
