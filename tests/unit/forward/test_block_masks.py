"""The mask of flex_attention is made from where nodes stand, and is what asking every pair of tokens gives."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers.integrations.flex_attention import WrappedFlexAttention
from trl.trainer.utils import add_fused_lm_head

from tests.support import architectures
from trl_dpo_ext._trl import flex_graphs
from trl_dpo_ext._trl.flex_graphs import num_graphs
from trl_dpo_ext.forward import block_masks
from trl_dpo_ext.forward.block_masks import block_mask
from trl_dpo_ext.forward.packed_model import PackedModel, PairPacker
from trl_dpo_ext.forward.packing import pack
from trl_dpo_ext.forward.run_rows import sequence_logps
from trl_dpo_ext.forward.trees import Trees

from .cases import batch

CPU = torch.device("cpu")


def random_trees(seed: int) -> Trees:
    draw = random.Random(seed)
    nodes = draw.randint(1, 8)
    parents = [-1]
    while len(parents) < nodes:  # depth first: a node continues one of those on the way to the last
        way = [-1, node := len(parents) - 1]
        while (node := parents[node]) >= 0:
            way.append(node)
        parents.append(draw.choice(way))
    lengths = [draw.choice([0, 1, 2, 40, 127, 128, 129, 280]) for _ in parents]
    return Trees([max(lengths[0], 1), *lengths[1:]], parents)


@pytest.mark.parametrize(
    "reach", [(None, None), (1, None), (130, None), (1000, None), (None, 7), (None, 256), (200, 256)]
)
def test_blocks_are_those_that_hold_what_tokens_see(reach) -> None:
    in_part = 0
    for seed in range(8):
        trees = random_trees(seed)
        mask = block_mask(trees, reach, CPU)
        asked = create_block_mask(mask.mask_mod, None, None, trees.width, trees.width, device=CPU)
        for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
            assert torch.equal(getattr(mask, name), getattr(asked, name)), (seed, name)
        for counts, indices in (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices")):
            for row, count in enumerate(getattr(mask, counts).flatten().tolist()):
                ours, theirs = (getattr(each, indices)[0, 0, row, :count].tolist() for each in (mask, asked))
                assert ours == theirs, (seed, indices, row)
        assert mask.shape == asked.shape
        in_part += int(mask.kv_num_blocks.sum())
    assert in_part > 8


def test_what_a_token_sees_is_its_sequence() -> None:
    for seed in range(8):
        trees = random_trees(seed)
        sees = block_mask(trees, (None, None), CPU).mask_mod
        place = torch.arange(trees.width)
        seen = sees(None, None, place[:, None], place[None])
        for places in map(torch.from_numpy, filter(len, trees.sequences)):
            assert torch.equal(seen[places].nonzero()[:, 1], torch.cat([places[: n + 1] for n in range(len(places))]))


def test_no_tensor_of_the_width_of_the_row_squared_is_made() -> None:
    pairs = range(20)
    trees = Trees([1000, 3000, 3000] * len(pairs), [node for pair in pairs for node in (-1, 3 * pair, 3 * pair)])
    tracemalloc.start()  # sees the arrays of numpy
    with torch.profiler.profile(profile_memory=True) as profile:
        mask = block_mask(trees, (4096, None), CPU)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    sizes = [event.cpu_memory_usage for event in profile.events() or ()]
    assert mask.shape[-1] == trees.width == 140_000
    assert 0 < max(sizes) < trees.width**2 // 100
    assert 0 < peak < trees.width**2 // 100


def test_policy_and_reference_are_given_one_mask() -> None:
    trees = Trees([300, 20, 30], [-1, 0, 0])
    filled = trees.filled(512)
    assert trees.filled(512) is filled
    assert block_mask(filled, (None, None), CPU) is block_mask(filled, (None, None), CPU)
    assert block_mask(filled, (64, None), CPU) is not block_mask(filled, (None, None), CPU)


@pytest.mark.parametrize(("width", "fed"), [(1, 256), (128, 256), (256, 256), (257, 384), (1000, 1024)])
def test_rows_are_whole_blocks_and_two_at_least(width: int, fed: int) -> None:
    assert block_masks.fed_width(width) == fed


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Low; flex_attention is traced and guarded as ever, and its graphs run as they are, since compiling them is slow."""
    torch._dynamo.reset()
    compiled = torch.compile(flex_attention, backend="eager")
    monkeypatch.setattr(WrappedFlexAttention, "__new__", lambda cls, training: lambda: compiled)
    with torch._dynamo.config.patch(recompile_limit=3):
        yield 3
    torch._dynamo.reset()


def steps(model: Any, pairs: int) -> torch.Tensor:
    """Policy and reference on a batch; the policy has no parameters that train, since a CPU has no gradient of it."""
    given = batch(*(([5 + (7 * n + k * k) % 50 for k in range(40)], [21 + n, 22, 2], [31, 2]) for n in range(pairs)))
    packed = PackedModel(model, model, PairPacker(True))
    policy = packed(**given, fused_lm_head=True).log_probs
    with torch.no_grad():
        reference = packed(**given, fused_lm_head=True).log_probs
    assert torch.equal(policy, reference)
    return policy


def flex_model(case: str) -> Any:
    name, settings = architectures.EXACT[case]
    model = architectures.construct(name, {**settings, "attn_implementation": "flex_attention"})
    add_fused_lm_head(model)
    return model.requires_grad_(False)


@pytest.mark.slow
def test_new_widths_need_no_new_kernels(limit: int) -> None:
    model = flex_model("gemma3")  # layers of two kinds
    for pairs in (2, 6):
        steps(model, pairs)
    # Each kind of layer, with gradients and without, at the first width and for all others.
    assert num_graphs() == 8 > limit
    for pairs in (1, 9):
        steps(model, pairs)
    assert num_graphs() == 8


def test_the_limit_of_kernels_is_a_warning(monkeypatch, limit: int) -> None:
    monkeypatch.setattr(flex_graphs, "LEAST_LIMIT", limit)
    model = flex_model("llama")
    steps(model, 2)  # with gradients and without
    with pytest.warns(UserWarning, match="compiled 3 times, which is torch's limit.*--attn_implementation sdpa"):
        steps(model, 6)


def test_rows_of_the_reference_pass_are_filled_up_and_score_as_under_sdpa(limit: int) -> None:
    plain, flex = architectures.build("gemma3"), flex_model("gemma3")
    add_fused_lm_head(plain)
    with torch.no_grad():
        for answers in (10, 40, 30):
            prompts = [[5 + (7 * n + k * k) % 50 for k in range(12 + n)] for n in range(answers)]
            fed = [np.array([*prompt, 21, 31]) for prompt in prompts]
            labels, starts = [np.array([21, 31, 2])] * answers, [len(prompt) - 1 for prompt in prompts]
            rows = pack(fed, None)
            assert rows.input_ids.size % 128
            found, expected = (sequence_logps(each, each, rows, labels, starts) for each in (flex, plain))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert num_graphs() == 4 > limit
