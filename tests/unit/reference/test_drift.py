"""How far a reference is from what it stands for: what is computed of the errors of answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support import runs
from trl_dpo_ext.core import transforms
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.drift import measure

# Four rows: chosen, chosen, rejected, rejected. The last chosen token of the second pair is padding.
MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 1], [1, 1, 1]]).bool()


START = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, -1.0, 0.0], [0.0, -2.0, -2.0], [-1.0, -1.0, -1.0]])


ERROR = torch.tensor([[-0.5, -0.5, -0.5], [-0.25, -0.25, 9.0], [9.0, -1.0, -1.0], [-0.5, -0.5, 0.25]])


def errors_of_pairs(pairs: int, shift: float, noise: float, seed: int = 0) -> torch.Tensor:
    """(pairs, 2, 3): answers of 5 to 60 tokens, each token off by `shift`, each answer by `noise` per root token."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 60, (pairs, 2), generator=generator).double()
    sums = shift * tokens + noise * tokens.sqrt() * torch.randn(pairs, 2, generator=generator, dtype=torch.float64)
    return torch.stack([tokens, sums, sums.square() / tokens], dim=-1)


def test_errors_are_counted_on_completion_tokens_alone() -> None:
    errors = measure.answer_errors(START + ERROR, START, MASK)
    assert errors.shape == (2, 2, 3)
    assert errors[..., measure.TOKENS].tolist() == [[3, 2], [2, 3]]
    assert errors[..., measure.SHIFT].tolist() == [[-1.5, -2.0], [-0.5, -0.75]]
    assert errors[..., measure.SQUARES].tolist() == [[0.75, 2.0], [0.125, 0.5625]]


def test_the_summary_is_what_the_definitions_say() -> None:
    measured = measure.summarize(measure.answer_errors(START + ERROR, START, MASK), beta=0.5)
    per_token = ERROR[MASK].double()
    sequences = torch.tensor([-1.5, -2.0, -0.5, -0.75])
    margins = torch.tensor([0.5, 0.25])
    assert (measured.pairs, measured.tokens) == (2, 10)
    assert measured.token_mean == pytest.approx(per_token.mean().item())
    assert measured.token_std == pytest.approx(per_token.std(unbiased=False).item())
    assert (measured.sequence_mean, measured.sequence_std) == pytest.approx(
        (sequences.mean().item(), sequences.std().item())
    )
    assert (measured.margin_mean, measured.margin_std) == pytest.approx((margins.mean().item(), margins.std().item()))
    assert measured.metrics["reference/drift_beta_margin_std"] == pytest.approx(0.5 * margins.std().item())
    assert measured.shift_per_token is None
    assert not any("calibrated" in name for name in measured.metrics)


def test_an_exact_shift_is_found_and_a_reference_without_error_has_none() -> None:
    assert measure.shift_per_token(errors_of_pairs(16, -0.2, 0.0)) == pytest.approx(-0.2, abs=1e-12)
    assert measure.shift_per_token(errors_of_pairs(16, 0.0, 0.0)) == 0.0


def test_a_shift_that_pairs_do_not_agree_on_is_not_removed() -> None:
    means, shrunk = [], []
    for seed in range(200):
        errors = errors_of_pairs(16, 0.0, 0.5, seed)
        means.append(float(errors[..., measure.SHIFT].sum() / errors[..., measure.TOKENS].sum()))
        shrunk.append(measure.shift_per_token(errors))
    assert sum(shift == 0 for shift in shrunk) > 0.55 * len(shrunk)  # 68% of means lie within one standard error
    assert torch.tensor(shrunk).square().mean() < 0.7 * torch.tensor(means).square().mean()
    clear = measure.shift_per_token(errors_of_pairs(16, -0.2, 0.5))
    assert clear == pytest.approx(-0.2, abs=0.06)


@pytest.mark.parametrize("ld_alpha", [None, 0.3])
def test_the_shift_is_taken_from_every_token_before_tokens_are_summed(ld_alpha: float | None) -> None:
    measured = measure.summarize(errors_of_pairs(16, -0.2, 0.0), beta=0.1, calibrate=True)
    tokens = (START + ERROR) * MASK
    logps, corrected = measured.corrected(transforms.sum_logps(tokens, MASK, ld_alpha), tokens, MASK, ld_alpha)
    torch.testing.assert_close(corrected, (tokens + 0.2) * MASK)
    torch.testing.assert_close(logps, transforms.sum_logps(corrected, MASK, ld_alpha))
    assert measured.calibrated_sequence_mean == pytest.approx(0.0, abs=1e-9)


def test_log_probs_that_are_not_finite_are_an_error_with_the_fix() -> None:
    broken = START.clone()
    broken[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"not finite.*ref_compute_dtype.*bfloat16"):
        measure.summarize(measure.answer_errors(broken, START, MASK), beta=0.1)


@pytest.mark.parametrize("count", [1, 5, 8])
def test_processes_share_the_pairs_and_find_what_one_finds(count: int) -> None:
    def errors_of(rows: list[int]) -> torch.Tensor:
        return torch.tensor([[[1.0, float(row), 0.0]] * 2 for row in rows])

    alone = measure.measure(range(count), errors_of, lambda x: x, batch_size=2, rank=0, processes=1)
    parts, batches = [], []
    for rank in range(3):

        def counted(rows: list[int], rank: int = rank) -> torch.Tensor:
            batches.append(rank)
            return errors_of(rows)

        measure.measure(range(count), counted, lambda x: parts.append(x) or x, batch_size=2, rank=rank, processes=3)
    joined = measure.measure(range(count), errors_of, lambda _: torch.cat(parts), batch_size=2, rank=0, processes=3)
    assert torch.equal(joined, alone)
    assert alone[:, 0, 1].tolist() == list(range(count))
    assert len({batches.count(rank) for rank in range(3)}) == 1  # as many forwards each: none waits for ever


def test_the_largest_beta_of_the_losses_counts(tmp_path) -> None:
    def beta(**settings: Any) -> float:
        args = runs.config(tmp_path, **settings)
        return measure.max_beta(args.loss_mixture().terms, args.beta)

    assert beta(beta=0.3) == 0.3
    assert beta(loss_type=["sigmoid:beta=1.0", "cal_dpo", "sft"]) == 1.0
    assert beta(loss_type=["alpha_dpo"]) == 2.5
    assert beta(loss_type="trl:sigmoid", beta=0.2) == 0.2
