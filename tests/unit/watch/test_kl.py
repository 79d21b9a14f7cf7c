"""The KL divergence from sampled answers is that over all answers, on average."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from trl_dpo_ext import _trl
from trl_dpo_ext.distributed.agreement import Agreement
from trl_dpo_ext.watch import kl
from trl_dpo_ext.watch.generation import Runner, Sampling, Share
from trl_dpo_ext.watch.measures import Answer

PROMPT, EOS, TOKENS, SAMPLES = (1, 2, 3), 4, 3, 3000


def model(seed: int) -> Any:
    """A model of five tokens, far enough from uniform that two of them differ."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 5}
    found = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=1, max_position_embeddings=16))
    with torch.no_grad():
        found.lm_head.weight.mul_(15.0)
    return _trl.with_head(found).eval()


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    return model(0), model(1)


def runner(models: tuple[Any, Any], samples: int = SAMPLES, batch_size: int = 500) -> Runner:
    policy, reference = models
    share = Share.of([PROMPT] * samples, 0, 1)
    agreement = Agreement(torch.device("cpu"), 1)
    return Runner(_trl.Speaker(policy, policy, False), reference, agreement, share, batch_size, [EOS], 0, False)


@torch.no_grad()
def logp(model: Any, answer: tuple[int, ...]) -> float:
    row = torch.tensor([[*PROMPT, *answer]])
    logps = model(input_ids=row).logits.log_softmax(-1)[0, len(PROMPT) - 1 : -1]
    return logps.gather(1, torch.tensor(answer).unsqueeze(1)).sum().item()


def all_answers() -> list[tuple[int, ...]]:
    whole = itertools.product(range(5), repeat=TOKENS)
    return list(dict.fromkeys(Answer.of(ids, [EOS]).ids for ids in whole))


def brute_force(models: tuple[Any, Any]) -> float:
    """KL(policy || reference) over all answers, each of them weighted by its probability."""
    policy, reference = models
    logps = {answer: logp(policy, answer) for answer in all_answers()}
    assert sum(map(math.exp, logps.values())) == pytest.approx(1.0, abs=1e-5)
    return sum(math.exp(p) * (p - logp(reference, answer)) for answer, p in logps.items())


@torch.no_grad()
@pytest.mark.parametrize("estimator", ["exact", "k3"])
def test_both_estimators_have_the_divergence_of_all_answers_as_their_mean(
    models: tuple[Any, Any], estimator: str
) -> None:
    truth = brute_force(models)
    found = kl.estimate(runner(models), estimator, TOKENS)
    assert found.answers == SAMPLES
    assert SAMPLES < found.tokens < TOKENS * SAMPLES  # some end before the limit
    assert found.metrics["kl_per_answer"] == pytest.approx(truth, rel={"exact": 0.02, "k3": 0.06}[estimator])
    assert found.metrics["kl_per_token"] == pytest.approx(found.total / found.tokens)
    # The greedy answer is no sample: on it, the same sum is another number.
    greedy = next(iter(runner(models, samples=1).answers(Sampling(0.0, TOKENS, 0)).values()))
    ids = Answer.of(greedy, [EOS]).ids
    policy, reference = (each(input_ids=torch.tensor([[*PROMPT, *ids]])).logits[0, 2:-1] for each in models)
    assert abs(kl.exact(policy, reference).sum().item() - truth) > 0.06 * truth


@torch.no_grad()
def test_answers_at_temperature_1_come_as_often_as_the_policy_says(models: tuple[Any, Any]) -> None:
    answers = [Answer.of(ids, [EOS]).ids for ids in runner(models).answers(Sampling(1.0, TOKENS, 0)).values()]
    for answer in all_answers():
        probability = math.exp(logp(models[0], answer))
        deviation = math.sqrt(probability * (1 - probability) / SAMPLES)
        assert abs(answers.count(answer) / SAMPLES - probability) < 4.5 * deviation + 1 / SAMPLES


@torch.no_grad()
def test_an_answer_depends_neither_on_the_batch_nor_on_the_other_prompts(models: tuple[Any, Any]) -> None:
    prompts = [(1, 2, 3), (2,), (3, 3), (1, 1, 1, 1), (2, 3)]
    agreement, speaker = Agreement(torch.device("cpu"), 1), _trl.Speaker(models[0], models[0], False)
    found = []
    for size, ranks in ((5, 1), (2, 1), (1, 2), (3, 3)):
        answers: dict[int, list[int]] = {}
        for rank in range(ranks):
            share = Share.of(prompts, rank, ranks)
            part = Runner(speaker, None, agreement, share, size, [EOS], 0, False).answers(Sampling(1.0, 6, 7))
            answers |= {number: part[number] for number in share.numbers[: share.real]}
        found.append({number: Answer.of(answers[number], [EOS]) for number in range(5)})
    assert all(each == found[0] for each in found)
    assert len({answer.ids for answer in found[0].values()}) > 1


@pytest.mark.parametrize("count", [1, 2, 5, 16])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_every_process_runs_equally_many_rows_and_each_prompt_counts_once(count: int, processes: int) -> None:
    prompts = [tuple(range(1 + number % 4)) for number in range(count)]
    shares = [Share.of(prompts, rank, processes) for rank in range(processes)]
    assert len({len(share.numbers) for share in shares}) == 1
    assert sorted(number for share in shares for number in share.numbers[: share.real]) == list(range(count))


def test_k3_is_never_negative_and_exact_is_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, ref_logits = (torch.randn(50, 7, generator=generator) * 3 for _ in range(2))
    logps, ref_logps = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    assert (kl.k3(logps, ref_logps) >= 0).all()
    assert kl.k3(logps, logps).abs().max() == 0
    truth = torch.nn.functional.kl_div(ref_logps, logps, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(kl.exact(logits, ref_logits), truth)
    torch.testing.assert_close((logps.exp() * kl.k3(logps, ref_logps)).sum(-1), truth)  # unbiased for each token
    assert kl.exact(logits, torch.cat([ref_logits, torch.full((50, 3), -1e9)], dim=1)).allclose(truth, atol=1e-5)


def test_a_model_that_is_not_finite_gives_answers_and_no_error(models: tuple[Any, Any]) -> None:
    broken = model(2)
    with torch.no_grad():
        broken.lm_head.weight.fill_(torch.nan)
        assert len(runner((broken, models[1]), samples=4).answers(Sampling(1.0, TOKENS, 0))) == 4
