"""Evaluation counts every pair once: which pairs of a padded batch are real, and what losses see of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support import runs, tiny
from tests.support.batches import SMOOTH, hypers_of, make_pairs, take
from trl_dpo_ext import list_losses
from trl_dpo_ext.core.mixture import LossMixture, Term
from trl_dpo_ext.core.registry import LossVariant
from trl_dpo_ext.distributed.eval_padding import EvalPadding, RealRows


def accelerator(rows: int, batch: int, processes: int, process: int, last: bool = True) -> SimpleNamespace:
    state = SimpleNamespace(end_of_dataloader=last, remainder=rows % (batch * processes))
    return SimpleNamespace(gradient_state=state, num_processes=processes, process_index=process)


@pytest.mark.parametrize(
    ("rows", "local_real"),
    [(31, [8, 7]), (24, [8, 0]), (18, [2, 0]), (32, [8, 8]), (17, [1, 0]), (3, [3, 0])],
)
def test_repeated_rows_stand_at_the_end_of_the_last_batch(rows: int, local_real: list[int]) -> None:
    last = [EvalPadding.of(accelerator(rows, 8, 2, process), 8) for process in range(2)]
    assert [padding.local_real for padding in last] == local_real
    assert {padding.global_real for padding in last} == {sum(local_real)}
    before = EvalPadding.of(accelerator(rows, 8, 2, 1, last=False), 8)
    assert (before.local_real, before.global_real, before.padded) == (8, 16, False)


def padding(real: int, batch: int = 2, processes: int = 3, process: int = 0) -> EvalPadding:
    return EvalPadding.of(accelerator(real, batch, processes, process), batch)


def test_the_rows_of_repeated_pairs_are_those_of_both_halves() -> None:
    mask = torch.ones(4, 7)
    found = [padding(3, process=process).repeated_rows(mask) for process in range(3)]
    assert [None if rows is None else rows.tolist() for rows in found] == [
        [False, False, False, False],
        [False, True, False, True],
        [True, True, True, True],
    ]
    assert padding(0).repeated_rows(mask) is None  # the last batch is full
    assert EvalPadding.absent(2).repeated_rows(mask) is None


# Each number is process * 10 + pair, negative for the rejected side.
ROWS = torch.tensor([0, 1, 0, -1, 10, 11, -10, -11, 20, 21, -20, -21])
PAIRS = torch.tensor([0, 1, 10, 11, 20, 21])


@pytest.mark.parametrize(
    ("gathered", "local", "kept"),
    [
        (ROWS, 4, [0, 1, 0, -1, 10, -10]),
        (PAIRS, 2, [0, 1, 10]),
        (torch.arange(3), 1, [0, 1, 2]),
        (torch.tensor(5), 0, 5),
    ],
    ids=["rows", "pairs", "one of each process", "a scalar"],
)
def test_outputs_keep_the_rows_of_real_pairs(gathered: torch.Tensor, local: int, kept: Any) -> None:
    assert padding(3).keep(gathered, local).tolist() == kept
    assert padding(0).keep(gathered, local).tolist() == gathered.tolist()


def test_of_repeated_losses_as_many_are_kept_as_there_are_pairs() -> None:
    repeated = torch.tensor([1.0] * 4 + [2.0] * 4 + [3.0] * 4)  # to a batch of four, of three processes with two pairs
    assert padding(3).keep(repeated, 4, per_pair=True).tolist() == [1.0, 1.0, 2.0]
    assert padding(0).keep(repeated, 4, per_pair=True).tolist() == [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]


def test_the_first_outputs_of_a_step_are_its_losses_and_all_others_its_rows() -> None:
    gather = RealRows(lambda values: values, padding(3, batch=4, processes=1))
    assert gather(torch.ones(8)).tolist() == [1.0] * 3  # eight losses are not two rows for each of four pairs
    nested = gather({"logits": torch.arange(8), "per pair": (torch.arange(4), torch.arange(5))})
    assert nested["logits"].tolist() == [0, 1, 2, 4, 5, 6]
    assert [values.tolist() for values in nested["per pair"]] == [[0, 1, 2], [0, 1, 2, 3, 4]]


def test_a_smaller_last_batch_of_one_process_is_not_padded() -> None:
    padding = EvalPadding.of(accelerator(31, 8, 1, 0), 7)
    pairs = make_pairs(SMOOTH)
    assert not padding.padded
    assert padding.real_pairs(pairs) is pairs


def test_what_was_gathered_is_trimmed_to_the_real_pairs() -> None:
    padding = EvalPadding.of(accelerator(6, 4, 2, 0), 4)
    assert padding.trim(torch.tensor([1, 2, 3, 4, 5, 6, 9, 9])).tolist() == [1, 2, 3, 4, 5, 6]
    assert padding.trim(torch.zeros(2)).shape == (2,)  # one value per process is left alone
    assert padding.trim(torch.zeros(())).shape == ()


# --- losses on a padded batch ---------------------------------------------------------------------------------------

VARIANTS = list_losses(reads="pairs")
OF_PROCESS = {"aot", "aot_unpaired", "sampo", "sft", "cpo", "arpo", "dpo_nll"}
"""Losses that sort the pairs of their own process, draw with its index, or average over its tokens."""


def on_padded_ranks(count: int, compute: Callable[[Any], Any]) -> list[Any]:
    """What `compute` gives on each of two processes that are fed the first `count` of eight pairs, four at a time."""
    exchange: dict[int, torch.Tensor] = {}
    barrier = threading.Barrier(2, timeout=20)

    def run(rank: int) -> Any:
        def gather(values: torch.Tensor) -> torch.Tensor:
            exchange[rank] = values.detach()
            barrier.wait()
            assert exchange[0].shape == exchange[1].shape  # or a real collective hangs
            gathered = torch.cat([exchange[0], exchange[1]])
            barrier.wait()
            return gathered

        rows = [(row if row < count else row - count) % 5 for row in range(4 * rank, 4 * rank + 4)]
        fed = make_pairs(take(SMOOTH, rows), gather=gather, rank=rank, training=False)
        return compute(EvalPadding.of(accelerator(count, 4, 2, rank), 4).real_pairs(fed))

    with ThreadPoolExecutor(2) as processes:
        return list(processes.map(run, range(2)))


def real(rows: list[int], rank: int = 0) -> Any:
    return make_pairs(take(SMOOTH, [row % 5 for row in rows]), rank=rank, training=False)


@pytest.mark.parametrize("count", [6, 3], ids=["one process is padded", "one process has no pair"])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_no_loss_sees_a_repeated_pair(variant: LossVariant, count: int) -> None:
    ranks = [range(4 * rank, min(4 * rank + 4, count)) for rank in range(2)]
    for hyper in hypers_of(variant):
        hyper = {**hyper, "aot_global": False} if "aot_global" in hyper else hyper
        found = torch.cat(on_padded_ranks(count, lambda pairs, hyper=hyper: variant.make()(pairs, **hyper)))
        if variant.name in OF_PROCESS:
            parts = [variant.make()(real(list(rows), rank), **hyper) for rank, rows in enumerate(ranks) if len(rows)]
            expected = torch.cat(parts)
        else:
            expected = variant.make()(real(list(range(count))), **hyper)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [7, 6, 5, 3])
@pytest.mark.parametrize("name", ["aot", "aot_unpaired"])
def test_ranks_over_all_processes_are_those_of_the_real_pairs(name: str, count: int) -> None:
    variant = next(variant for variant in VARIANTS if variant.name == name)
    hyper = {"beta": 0.1, "label_smoothing": 0.1}
    found = torch.cat(on_padded_ranks(count, lambda pairs: variant.make()(pairs, **hyper, aot_global=True)))
    expected = variant.make()(real(list(range(count))), **hyper)
    torch.testing.assert_close(found.sort().values, expected.sort().values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("count", [7, 4, 3])
def test_the_mean_over_processes_is_the_mean_over_the_real_pairs(count: int, weighted: bool) -> None:
    variant = next(variant for variant in VARIANTS if variant.name == "sigmoid")
    term = Term(variant, 1.0, {"beta": 0.1}, "sigmoid", variant.make())
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25, 1.5, 0.75, 4.0], dtype=torch.float64)
    parts = []
    for rank in range(2):
        padding = EvalPadding.of(accelerator(count, 4, 2, rank), 4)
        rows = list(range(4 * rank, 4 * rank + 4))
        pairs, own = padding.real_batch(real(rows, rank), weights[rows] if weighted else None)
        loss, per_term = LossMixture((term,))(pairs, own)
        loss = torch.as_tensor(loss).detach()
        assert float(loss) == float(per_term["sigmoid"])  # not NaN, which a process without a pair would spread
        parts.append(padding.share * float(loss))
    values = variant.make()(real(list(range(count))), beta=0.1)
    expected = (values * weights[:count]).mean() if weighted else values.mean()
    assert sum(parts) / 2 == pytest.approx(float(expected))


def test_evaluation_does_not_depend_on_the_size_of_batches(tmp_path) -> None:
    settings = {"loss_type": ["sigmoid", "dpop"], "eval_dataset": tiny.preferences(7), "ref_model": tiny.model(1)}
    seen = [
        runs.trainer(tmp_path, per_device_eval_batch_size=size, **{**settings, "ref_model": tiny.model(1)}).evaluate()
        for size in (1, 3, 7)
    ]
    pair_means = [key for key in seen[0] if key.startswith(("eval_loss", "eval_rewards/", "eval_logps/"))]
    assert len(pair_means) == 1 + 2 + 4 + 2
    for other in seen[1:]:
        # Sums over batches of another size are rounded in another order, and by other kernels.
        assert {key: other[key] for key in pair_means} == pytest.approx(
            {key: seen[0][key] for key in pair_means}, rel=1e-4, abs=1e-5
        )
