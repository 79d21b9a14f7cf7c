"""Text without images, on models that take images: packed rows give their own log-probs and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from trl.trainer.utils import add_fused_lm_head

from tests.support import architectures, tiny, vision_families
from trl_dpo_ext.forward import packing
from trl_dpo_ext.forward.compatibility import packing_problems
from trl_dpo_ext.forward.packed_model import PackedModel, PairPacker

from .cases import FIELDS, PAIRS, output_and_gradients


@pytest.fixture(autouse=True)
def share_short_beginnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "LEAST_SHARED", 2)


@pytest.mark.parametrize("name", vision_families.FAMILIES)
def test_text_is_scored_as_in_the_plain_forward(name: str) -> None:
    with architectures.double_precision():
        model = vision_families.model(name, dtype=torch.float64).eval()
        assert int(PAIRS["input_ids"].max()) < len(tiny.tokenizer())  # the tokens of images stand behind
        assert packing_problems(model) == []
        add_fused_lm_head(model, outputs=FIELDS)
        plain, before = output_and_gradients(model, model, routed=False)
        for share in (True, False):
            output, after = output_and_gradients(model, PackedModel(model, model, PairPacker(share)), routed=False)
            for field in FIELDS:
                torch.testing.assert_close(getattr(output, field), getattr(plain, field), rtol=1e-9, atol=1e-9)
            for ours, theirs in zip(after, before, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        assert sum(bool(gradient.any()) for gradient in before) > 10


def _config(kind: str, text: dict[str, Any], **more: Any) -> Any:
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "num_attention_heads": 2}
    vision |= {"out_hidden_size": 32, "depth": 1}
    text = {**vision_families.SIZES, "vocab_size": 64, "head_dim": 8, **text}
    return getattr(transformers, kind)(vision_config={**vision, **more}, text_config=text)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            lambda: _config("PaliGemmaConfig", {"model_type": "gemma"}, model_type="siglip_vision_model"),
            "bidirectional attention",
        ),
        (lambda: _config("Qwen3_5Config", {}), "linear_attention layers"),
        (lambda: _config("Llama4Config", {"num_local_experts": 2}), "no separate backbone"),
    ],
)
def test_models_whose_text_is_not_causal_row_by_row_are_refused(config: Any, reason: str) -> None:
    with torch.device("meta"):
        model = transformers.AutoModelForImageTextToText.from_config(config())
    assert any(reason in problem for problem in packing_problems(model))
