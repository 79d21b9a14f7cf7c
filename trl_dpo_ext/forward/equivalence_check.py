"""Compare a model on packed rows with its plain forward, on the first batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from .. import _trl
from ..errors import InputError
from .packed_model import UNSCORED, PackedModel

# Mean difference per token, in nats, that rounding alone does not exceed: TF32 and another kernel on an accelerator,
# 8 bits of mantissa in half precision. A wrong mask shows as 0.1 to 5.
_FLOORS = {"half": 2e-2, "accelerator": 1e-3, "cpu": 1e-4}
_TIMES_NOISE = 5


def check_first_batch(
    models: Mapping[str, PackedModel],
    inputs: Mapping[str, torch.Tensor],
    half: bool,
    gather: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Compare the log-probs of each model on packed rows with those of its plain forward.

    Args:
        models: by what messages call them.
        inputs: `input_ids`, `attention_mask` and `labels`, each (2 x pairs, tokens).
        half: whether anything is computed in half precision.
        gather: values of all processes, so that all of them stop or none does.

    Raises:
        InputError: naming the model and the difference.
    """
    problems = []
    for name, model in models.items():
        with torch.no_grad(), _trl.evaluation_mode(model.causal):
            found = torch.stack(_differences(model, inputs))
        difference, noise = gather(found.unsqueeze(0)).amax(dim=0).tolist()
        kind = "half" if half else "cpu" if inputs["input_ids"].device.type == "cpu" else "accelerator"
        allowed = _FLOORS[kind] + _TIMES_NOISE * noise
        if not difference <= allowed:  # NaN is not
            problems.append(
                f"On the first batch, the {name}'s log-probs in a packed row are off by {difference:.2g} per token "
                f"(allowed: {allowed:.2g}): {type(model.causal).__name__} does not use its attention mask or positions "
                "as other models do. Drop --share_prompt and --padding_free, or set verify_share_prompt=False to train "
                "anyway."
            )
    if problems:
        raise InputError(*problems)


def _differences(model: PackedModel, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Mean absolute difference per scored token: of the packed row, and of the plain forward on half of the batch."""
    inputs = dict(inputs)
    scored = inputs["labels"][:, 1:] != UNSCORED
    pairs = scored.size(0) // 2
    plain = model.model(**inputs, fused_lm_head=True, use_cache=False).log_probs

    def mean(found: torch.Tensor, expected: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return ((found - expected).abs() * mask).sum() / mask.sum().clamp(min=1)

    packed = model(**inputs, fused_lm_head=True).log_probs
    chosen = {name: tensor[:pairs] for name, tensor in inputs.items()}
    again = model.model(**chosen, fused_lm_head=True, use_cache=False).log_probs
    return [mean(packed, plain, scored), mean(again, plain[:pairs], scored[:pairs])]
