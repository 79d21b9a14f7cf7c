"""What the tests of the policy's start share."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from trl_dpo_ext.forward.outputs import PairBatch

from .listing import Kind

another_reference = Kind("The reference is not the policy's start")
LORA = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


LOG2 = pytest.approx(math.log(2), abs=1e-5)


STORE = {"precompute_ref_log_probs": True}


def shifted(model: Any, scale: float = 0.3) -> Any:
    """The model with other weights in memory than in its folder."""
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(scale * torch.randn_like(parameter))
    return model


def reference_logps(run: Any, model: Any, rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """What the run's reference gives for its first rows, and what a model gives by itself, each (2 x pairs,)."""
    batch = run.host.batch_of([run.train_dataset[index] for index in range(rows)])
    run.model.train()
    found = torch.cat(run.reference.logps(run.model, PairBatch.take(batch, ())).sums)
    with torch.no_grad():
        logits = model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logps = logits[:, :-1].log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    return found, (logps * batch["completion_mask"][:, 1:]).sum(dim=1)
