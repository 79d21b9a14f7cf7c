"""What is logged of lists, against numbers worked out by hand: ragged, odd K, ties of scores and of rewards."""

from __future__ import annotations

import pytest
import torch

from trl_dpo_ext.core.lists import Lists
from trl_dpo_ext.core.pairs import Side
from trl_dpo_ext.lists.measures import PROMPT_METRICS, ListSums, ends, list_sums, means, pair_accuracy, top1_accuracy

# By prompt: scores, rewards, accuracy over ordered pairs, and share of the highest reward that best answers hold.
PROMPTS = {
    "two, right": ([2, 1], [0.5, 0.25], 1, 1),
    "two, equal rewards": ([1, 2], [0.5, 0.5], 1 / 2, 1 / 2),
    # Pairs: 0>2 right, 1>2 wrong.
    "three, tie for best": ([7, 7, 4], [3, 1, 2], 1 / 2, 1),
    # Pairs: 1>0 equal, 1>2 and 1>3 right, 2>0 and 3>0 wrong; rewards 0 and 1 share the top.
    "four, tie in the middle": ([2, 9, 5, 5], [4, 4, 1, 2], 2.5 / 5, 1 / 2),
    # Of 10 pairs, 1>2 is right, and 0>2 equal.
    "five, nearly reversed": ([5, 4, 3, 2, 1], [1, 2, 1, 4, 5], 1.5 / 10, 0),
    # Best 6; below it 4 and 4; below them 0, 0, 0, 0: 2 + 4 + 8 pairs, all right but 6>4 twice, which are equal.
    "seven, two ties": ([0, 4, 0, 6, 4, 0, 0], [0, 1, 0, 1, 1, 0, 0], 13 / 14, 1 / 3),
    "three, all rewards equal": ([1, 2, 3], [2, 2, 2], 1 / 2, 1 / 3),
    "three, best below in one of two ties": ([3, 3, 1], [0, 5, 5], (0 + 1 / 2) / 2, 1 / 2),
}


def batch(*names: str) -> tuple[Lists, torch.Tensor]:
    chosen = [PROMPTS[name] for name in names]
    scores, rewards = (torch.tensor([float(v) for one in chosen for v in one[at]]) for at in (0, 1))
    prompt = torch.arange(len(chosen)).repeat_interleave(torch.tensor([len(one[0]) for one in chosen]))
    lengths = torch.tensor([1 + place % 3 for one in chosen for place in range(len(one[0]))])
    mask = torch.arange(3) < lengths.unsqueeze(1)
    return Lists(Side(-10 - rewards, lengths=lengths, mask=mask), prompt, scores), rewards


def sums(lists: Lists, rewards: torch.Tensor) -> ListSums:
    fields = {"mean_logits": rewards.unsqueeze(1).expand(-1, 3), "is_top1": (rewards > 1).unsqueeze(1).expand(-1, 3)}
    return list_sums(lists, rewards, fields)


@pytest.mark.parametrize("name", PROMPTS)
def test_accuracies_of_one_prompt(name: str) -> None:
    *_, accuracy, top1 = PROMPTS[name]
    lists, rewards = batch(name)
    assert pair_accuracy(lists, rewards).item() == pytest.approx(accuracy)
    assert top1_accuracy(lists, rewards).item() == pytest.approx(top1)


def test_prompts_have_the_same_accuracies_in_one_batch() -> None:
    lists, rewards = batch(*PROMPTS)
    assert pair_accuracy(lists, rewards).tolist() == pytest.approx([one[2] for one in PROMPTS.values()])
    assert top1_accuracy(lists, rewards).tolist() == pytest.approx([one[3] for one in PROMPTS.values()])
    logged = means(sums(lists, rewards).vector)
    assert logged["rewards/accuracies"] == pytest.approx(sum(one[2] for one in PROMPTS.values()) / len(PROMPTS))
    assert logged["rewards/top1_accuracy"] == pytest.approx(sum(one[3] for one in PROMPTS.values()) / len(PROMPTS))


def test_an_order_of_the_answers_changes_nothing() -> None:
    lists, rewards = batch("seven, two ties")
    order = torch.tensor([3, 6, 1, 0, 5, 2, 4])
    turned = Lists(Side(lists.answers.logps[order]), lists.prompt, lists.scores[order])
    assert pair_accuracy(turned, rewards[order]).item() == pytest.approx(13 / 14)
    assert top1_accuracy(turned, rewards[order]).item() == pytest.approx(1 / 3)


def test_means_of_a_ragged_batch() -> None:
    """Best of the first prompt: 3 and 1, the other 2; of the second: 4, the others 4, 1, 2. Lengths: 1 2 3, 1 2 3 1."""
    logged = means(sums(*batch("three, tie for best", "four, tie in the middle")).vector)
    chosen, rejected = (2 + 4) / 2, (2 + 7 / 3) / 2
    assert logged == pytest.approx(
        {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "rewards/accuracies": (1 / 2 + 2.5 / 5) / 2,
            "rewards/top1_accuracy": (1 + 1 / 2) / 2,
            "logps/chosen": -10 - chosen,
            "logps/rejected": -10 - rejected,
            "logits/chosen": (1 * 3 + 2 * 1 + 2 * 4) / 5,  # over the tokens of the best answers
            "logits/rejected": (3 * 2 + 1 * 4 + 3 * 1 + 1 * 2) / 8,
            "mean_token_accuracy": (1 + 2) / 5,
        }
    )
    assert set(PROMPT_METRICS) < set(logged)


@pytest.mark.parametrize("split", [1, 3, 5])
def test_processes_add_up_to_the_whole_batch(split: int) -> None:
    names = [*PROMPTS]
    parts = [sums(*batch(*some)).vector for some in (names[:split], names[split:])]
    assert means(parts[0] + parts[1]) == pytest.approx(means(sums(*batch(*names)).vector), rel=1e-5)


def test_the_ends_of_a_list_are_its_first_best_and_its_first_worst_answer() -> None:
    best, worst = ends(batch(*PROMPTS)[0])
    places = {"two": [(0, 1), (1, 0)], "three": (0, 2), "four": (1, 0), "five": (0, 4), "seven": (3, 0)}
    expected = [*places["two"], places["three"], places["four"], places["five"], places["seven"], (2, 0), (0, 2)]
    starts = [0, 2, 4, 7, 11, 16, 23, 26]
    assert [*zip(best.tolist(), worst.tolist(), strict=True)] == [
        (start + high, start + low) for start, (high, low) in zip(starts, expected, strict=True)
    ]
