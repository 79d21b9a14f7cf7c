"""Run in every process by the tests of corrected references: trains, and says what the terms were."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.distributed import launched
from trl_dpo_ext.reference.correction.layers import terms

IDS = torch.arange(4, 34).view(2, 15)


def train(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train with the settings of the test, of which `instance` says how the policy is given."""
    if settings.pop("instance", False):
        settings["model"] = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    run = launched.trainer(folder, settings)
    if run.ref_model is None:
        run.train()
        return {"drift": vars(run.reference.drift_monitor.measured)}
    reference = run.host.causal_model(run.ref_model)
    before = hash_of(reference)
    run.train()
    assert hash_of(reference) == before
    with torch.no_grad():
        logits = reference(input_ids=IDS).logits
    return {"drift": vars(run.reference.drift_monitor.measured), "terms": before, "logits": logits.flatten().tolist()}


def hash_of(reference: Any) -> str:
    """A hash of all terms."""
    factors = [factor for term in terms(reference) for factor in term.buffers()]
    assert len(factors) == 21
    assert all(factor.abs().sum() > 0 for factor in factors)
    return hashlib.sha256(b"".join(f.contiguous().view(torch.uint8).numpy().tobytes() for f in factors)).hexdigest()
