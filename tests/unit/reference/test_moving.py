"""Mixing a reference with the policy: exact for low-rank products, bounded in rank, saved whole or not at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import nn

from trl_dpo_ext.distributed.full_parameters import parameter_shapes, visit_parameters
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.moving import state
from trl_dpo_ext.reference.moving.mixing import mix_factors
from trl_dpo_ext.reference.moving.problems import mismatches, moving_reference_problems, split_problems

ROWS, COLUMNS, RANK = 24, 20, 2


def factors(seed: int, rank: int = RANK, rows: int = ROWS, columns: int = COLUMNS) -> Any:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rank, columns, generator=draw), torch.randn(rows, rank, generator=draw)


def product(pair: Any) -> torch.Tensor:
    a, b = pair
    return b.double() @ a.double()


def moved(alpha: float, times: int, start: Any, **sizes: int) -> tuple[Any, torch.Tensor]:
    """The reference's factors after some moves, and the product that it should have."""
    reference, expected = start, product(start)
    for seed in range(1, times + 1):
        policy = factors(seed, **sizes)
        reference = mix_factors(policy, reference, alpha)
        expected = alpha * product(policy) + (1 - alpha) * expected
    return reference, expected


@pytest.mark.parametrize("alpha", [0.05, 0.6, 0.99, 1.0])
@pytest.mark.parametrize(("times", "rows"), [(1, ROWS), (3, ROWS), (40, ROWS), (40, 8)])
@pytest.mark.parametrize("start", [factors(0), (factors(0)[0], torch.zeros(ROWS, RANK))], ids=["sft", "new"])
def test_products_are_mixed_exactly(alpha: float, times: int, rows: int, start: Any) -> None:
    a, b = start
    reference, expected = moved(alpha, times, (a, b[:rows].clone()), rows=rows)
    torch.testing.assert_close(product(reference), expected, rtol=0, atol=2e-5)


def test_averaged_factors_would_miss_it() -> None:
    """What a reader might try in this place, and what the error of it is: -a(1-a)(B-B')(A-A')."""
    (a, b), (ref_a, ref_b), alpha = factors(1), factors(2), 0.6
    averaged = product((alpha * a + (1 - alpha) * ref_a, alpha * b + (1 - alpha) * ref_b))
    exact = product(mix_factors((a, b), (ref_a, ref_b), alpha))
    error = -alpha * (1 - alpha) * product((a - ref_a, b - ref_b))
    assert error.abs().max() > 0.1
    torch.testing.assert_close(averaged - exact, error, rtol=0, atol=1e-5)
    frozen = product((a, alpha * b + (1 - alpha) * ref_b))
    torch.testing.assert_close(product(mix_factors((a, b), (a, ref_b), alpha)), frozen, rtol=0, atol=1e-5)


def test_a_hard_move_copies_bit_for_bit_and_apart() -> None:
    policy = factors(1)
    a, b = mix_factors(policy, factors(2, rank=6), 1.0)
    assert torch.equal(a, policy[0])
    assert torch.equal(b, policy[1])
    policy[0].zero_()
    assert a.any()


@pytest.mark.parametrize(
    ("alpha", "times", "rank"),
    [(0.6, 1, 2), (0.6, 4, 8), (0.6, 100, 20), (0.99, 100, 10), (0.05, 100, 20)],
    ids=["the first from nothing", "grows", "whole", "old terms are dropped", "whole, softly"],
)
def test_the_rank_is_bounded(alpha: float, times: int, rank: int) -> None:
    (a, b), _ = moved(alpha, times, (factors(0)[0], torch.zeros(ROWS, RANK)))
    assert (len(a), b.size(1)) == (rank, rank)
    assert rank <= min(ROWS, COLUMNS)


def test_the_factors_of_convolutions_are_placed_side_by_side() -> None:
    def kernels(seed: int) -> Any:
        draw = torch.Generator().manual_seed(seed)
        return torch.randn(2, 3, 5, 5, generator=draw), torch.randn(4, 2, 1, 1, generator=draw)

    def whole(pair: Any) -> torch.Tensor:
        return torch.einsum("or,rixy->oixy", pair[1][..., 0, 0], pair[0])

    policy, reference = kernels(1), kernels(2)
    mixed = mix_factors(policy, reference, 0.3)
    torch.testing.assert_close(whole(mixed), 0.3 * whole(policy) + 0.7 * whole(reference), rtol=0, atol=1e-5)


def test_factors_keep_the_dtype_of_the_reference() -> None:
    policy = tuple(factor.bfloat16() for factor in factors(1))
    for times in (1, 20):
        reference = tuple(factor.bfloat16() for factor in factors(2))
        for _ in range(times):
            reference = mix_factors(policy, reference, 0.05)
        assert {factor.dtype for factor in reference} == {torch.bfloat16}


def test_saved_weights_come_back_and_half_of_a_file_is_not_taken_for_one(tmp_path, monkeypatch) -> None:
    weights = {"a": torch.randn(3, 4).t(), "b": torch.zeros(2, dtype=torch.bfloat16)}
    state.save(tmp_path, weights, step=4)
    saved = state.SavedReference(tmp_path, {"a", "b"})
    assert all(torch.equal(saved[name], value) for name, value in weights.items())
    assert [file.name for file in tmp_path.iterdir()] == ["synced_reference.safetensors"]

    monkeypatch.setattr(state.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(OSError, match="no space"):
        state.save(other, weights)
    assert not (other / state.FILE).exists()


@pytest.mark.parametrize("names", [{"a"}, {"a", "b", "c"}, {"a", "c"}])
def test_weights_of_another_reference_are_refused(tmp_path, names: set[str]) -> None:
    state.save(tmp_path, {"a": torch.zeros(1), "b": torch.zeros(1)})
    with pytest.raises(
        InputError, match=r"holds 2 weights of another reference.*Resume with the model and the adapter"
    ):
        state.SavedReference(tmp_path, names)


def test_parameters_are_visited_under_their_plain_names_and_may_be_replaced() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.module = inner

    class Net(nn.Module):
        """Has a module that is called like a wrapper, and is none."""

        def __init__(self) -> None:
            super().__init__()
            self.module, self.head = nn.Linear(2, 2, bias=False), nn.Linear(2, 1)

    net = Net()
    wrapped = Wrapper(net)
    assert parameter_shapes(wrapped) == {"module.weight": (2, 2), "head.weight": (1, 2), "head.bias": (1,)}
    seen: dict[str, torch.Tensor] = {}
    visit_parameters(wrapped, lambda name, value: seen.update({name: value.clone()}), {"head.bias", "module.weight"})
    assert torch.equal(seen["module.weight"], net.module.weight)
    assert seen.keys() == {"head.bias", "module.weight"}
    visit_parameters(wrapped, lambda name, value: value + 1, {"head.bias"})
    assert torch.equal(net.head.bias, seen["head.bias"] + 1)
    assert torch.equal(net.module.weight, seen["module.weight"])


def test_models_of_other_shapes_are_named() -> None:
    assert not mismatches({"a": (1, 2)}, {"a": (1, 2)})
    (problem,) = mismatches({"a": (1, 2), "b": (2,)}, {"a": (1, 3)})
    assert r"2 weights differ (first: a, (1, 2) in the policy and (1, 3) in the reference)" in problem


@pytest.mark.parametrize("engine", ["fsdp by flag", "fsdp by accelerate", "zero3"])
def test_an_adapter_that_will_be_split_cannot_grow(monkeypatch, engine: str) -> None:
    zero3 = SimpleNamespace(zero_stage=3) if engine == "zero3" else None
    flag = {"fsdp_version": 2} if engine == "fsdp by flag" else None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(engine == "fsdp by accelerate").lower())
    args = SimpleNamespace(ref_model_mixup_alpha=0.6, fsdp_plugin_args=flag, deepspeed_plugin=zero3)
    adapter = peft.LoraConfig(r=2)
    (problem,) = moving_reference_problems(args, None, adapter)
    assert "cannot be used with an adapter under FSDP and ZeRO-3" in problem
    args.ref_model_mixup_alpha = 1.0
    assert not moving_reference_problems(args, None, adapter)
    args.ref_model_mixup_alpha, args.deepspeed_plugin = 0.6, SimpleNamespace(zero_stage=2)
    args.fsdp_plugin_args = None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    assert not moving_reference_problems(args, None, adapter)
    assert split_problems(True, 0.6) == [problem]
