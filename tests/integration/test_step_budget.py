"""What a training step asks of the device and how often the host waits for it, next to a step of TRL's.

The budget is in `BUDGET`. Operators are counted as they are dispatched, views apart: on small models a GPU is faster than
the host can ask for them. Attention in packed rows is one operator, as on a GPU.
"""

from __future__ import annotations

import sys
from collections import Counter
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOTrainer

from tests.support import runs, tiny
from trl_dpo_ext import DPOExtTrainer
from trl_dpo_ext.forward import tree_attention

LAYERS = 12
BUDGET = {
    # Flags: host waits beyond TRL's 21, and operators relative to TRL's 2181. A packed row needs no mask of padding, which
    # transformers reads three times; found are 2190 operators without flags and 2172 with either.
    "": (0, 1.01),
    "share_prompt": (-3, 1.01),
    "padding_free": (-3, 1.01),
    "share_prompt padding_free": (-3, 1.01),
}
BUDGET_OF_LOSSES = {
    # Operators and waits beyond those of `sigmoid` with `share_prompt`. `simpo` runs no reference, and logs its own rewards.
    "simpo": (0, 1),
    "dpop": (15, 0),
    "sampo": (45, 1),
    "tdpo2": (45, 1),
}


class Step(TorchDispatchMode):
    """Counts operators, and what would make the host wait for a GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.operators, self.waits = 0, Counter[str]()
        for name in ("tolist", "cpu", "numpy"):
            monkeypatch.setattr(torch.Tensor, name, self._counting(name, getattr(torch.Tensor, name)))

    def _counting(self, name: str, method: Any) -> Any:
        def counted(tensor: torch.Tensor, *args: Any, **keywords: Any) -> Any:
            if name != "numpy" or not self.waits["cpu"]:
                self.waits[name] += 1
            return method(tensor, *args, **keywords)

        return counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.operators += not func.is_view and name not in ("detach", "view", "_unsafe_view")
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "masked_scatter_backward"):
            self.waits[name] += 1
        if name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        ):
            self.waits["an index that is a mask"] += 1
        return func(*args, **(kwargs or {}))


def model(seed: int) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tiny.tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


class OneOperator(torch.autograd.Function):
    """As many operators as the kernel for sequences of different lengths: one, and one in the backward pass."""

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(key, value)
        return query.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:  # type: ignore[override]
        key, value = ctx.saved_tensors
        return grad, torch.zeros_like(key), torch.zeros_like(value)


@pytest.fixture(autouse=True)
def one_operator_for_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def varlen_attn(
        query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: Any, max_k: Any, *,
        scale: Any = None, window_size: Any = (-1, -1), enable_gqa: bool = False,
    ) -> Any:  # fmt: skip
        return OneOperator.apply(query, key, value)

    module: Any = ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = varlen_attn
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(torch.nn.attention, "varlen", module, raising=False)
    monkeypatch.setattr(tree_attention, "_has_varlen", lambda device: True)
    monkeypatch.setattr(tree_attention, "_VARLEN_DTYPES", (torch.float32,))


def measured(folder: Any, kind: type, **settings: Any) -> tuple[int, int]:
    """Operators and waits of the second step, forward and backward."""
    ours = {"verify_share_prompt": False, "verify_reference": False} if kind is DPOExtTrainer else {}
    run = runs.trainer(folder, kind, model(0), ref_model=model(1), gradient_checkpointing=False, **ours, **settings)
    batch = next(iter(run.get_train_dataloader()))
    run.model.train()
    run.compute_loss(run.model, dict(batch)).backward()
    with pytest.MonkeyPatch.context() as patches, Step(patches) as step:
        loss = run.compute_loss(run.model, {name: each.clone() for name, each in batch.items()})
        loss.backward()
    return step.operators, step.waits.total()


def test_a_step_stays_within_its_budget(tmp_path: Any) -> None:
    operators, waits = measured(tmp_path, DPOTrainer)
    assert operators > 100 * LAYERS
    found, over = {}, []
    for flags, (more_waits, times) in BUDGET.items():
        found[flags] = measured(tmp_path, DPOExtTrainer, **dict.fromkeys(flags.split(), True))
        if found[flags][0] > times * operators or found[flags][1] > waits + more_waits:
            over.append(flags or "no flags")
    assert not over, f"operators and waits: TRL {(operators, waits)}, ours {found}"


def test_losses_stay_within_their_budget(tmp_path: Any) -> None:
    operators, waits = measured(tmp_path, DPOExtTrainer, share_prompt=True)
    found = {name: measured(tmp_path, DPOExtTrainer, share_prompt=True, loss_type=name) for name in BUDGET_OF_LOSSES}
    more = {name: (each[0] - operators, each[1] - waits) for name, each in found.items()}
    over = [name for name, budget in BUDGET_OF_LOSSES.items() if more[name][0] > budget[0] or more[name][1] > budget[1]]
    assert not over, f"operators and waits beyond those of sigmoid: {more}"
