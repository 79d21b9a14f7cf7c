"""The divergence of whole next-token distributions: in chunks as all at once, and with the policy's gradient alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support import runs, tiny
from tests.support.batches import PUBLISHED as BATCH
from tests.support.batches import make_pairs
from tests.unit.losses.test_token_level import PUBLISHED, TOKENS
from trl_dpo_ext import Pairs, Side, get_loss
from trl_dpo_ext.core import token_kl
from trl_dpo_ext.core.token_kl import Projection

ROWS, TOKENS_EACH, WIDTH, VOCABULARY = 4, 7, 5, 11


def projection(seed: int, bias: bool = True, dtype: torch.dtype = torch.float32) -> Projection:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((ROWS, TOKENS_EACH, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    hidden, weight, offset = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes)
    return Projection(hidden, weight, offset if bias else None)


def at_once(policy: Projection, reference: Projection, mask: torch.Tensor) -> torch.Tensor:
    def logps(model: Projection) -> torch.Tensor:
        logits = model.hidden @ model.weight.T + (0 if model.bias is None else model.bias)
        return logits.log_softmax(-1)

    theirs = logps(reference).detach()
    return (theirs.exp() * (theirs - logps(policy))).sum(-1) * mask


MASK = torch.tensor([[0, 0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]]).bool()


@pytest.mark.parametrize("chunk", [1, 3, 256])
@pytest.mark.parametrize("bias", [True, False])
def test_chunks_give_the_values_and_gradients_of_full_logits(monkeypatch, chunk: int, bias: bool) -> None:
    monkeypatch.setattr(token_kl, "_TOKENS_AT_ONCE", chunk)
    policy, reference = projection(0, bias), projection(1, bias)
    ours, expected = token_kl.token_kl(policy, reference, MASK), at_once(policy, reference, MASK)
    torch.testing.assert_close(ours, expected)
    leaves = [part for part in (policy.hidden, policy.weight, policy.bias) if part is not None]
    weight = torch.randn(MASK.shape, generator=torch.Generator().manual_seed(2))
    for mine, theirs in zip(
        torch.autograd.grad((ours * weight).sum(), leaves),
        torch.autograd.grad((expected * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_the_reference_gets_no_gradient() -> None:
    policy, reference = projection(0), projection(1)
    token_kl.token_kl(policy, reference, MASK).sum().backward()
    assert reference.hidden.grad is None
    assert reference.weight.grad is None


def test_half_precision_and_autocast_lose_no_digits() -> None:
    policy, reference = projection(0, dtype=torch.bfloat16), projection(1, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = token_kl.token_kl(policy, reference, MASK)
    wide = [Projection(p.hidden.float(), p.weight.float(), p.bias.float()) for p in (policy, reference)]
    torch.testing.assert_close(ours, at_once(*wide, MASK))
    (gradient,) = torch.autograd.grad(ours.sum(), policy.weight)
    assert gradient.dtype == torch.bfloat16


def test_products_that_are_added_up_in_float32_need_no_copy_of_the_output_layer(monkeypatch) -> None:
    """As on CUDA, whose product of bfloat16 matrices can be in float32."""
    policy, reference = projection(0, dtype=torch.bfloat16), projection(1, dtype=torch.bfloat16)
    leaves = [policy.hidden, policy.weight, policy.bias]
    weight = torch.randn(MASK.shape, generator=torch.Generator().manual_seed(2))
    expected = token_kl.token_kl(policy, reference, MASK)
    before = torch.autograd.grad((expected * weight).sum(), leaves)
    products: list[torch.dtype] = []

    def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        products.append(left.dtype)
        return left.float() @ right.float()

    monkeypatch.setattr(token_kl, "_product", product)
    monkeypatch.setattr(token_kl, "_multiplies_to_float32", lambda device: True)
    found = token_kl.token_kl(policy, reference, MASK)
    torch.testing.assert_close(found, expected)
    after = torch.autograd.grad((found * weight).sum(), leaves)
    assert set(products) == {torch.bfloat16}
    for ours, theirs in zip(after, before, strict=True):
        assert ours.dtype == theirs.dtype
        # The gradient of the logits is rounded to 8 bits of mantissa.
        torch.testing.assert_close(ours, theirs, rtol=2**-6, atol=2**-6 * theirs.abs().max().item())


@pytest.mark.parametrize("selected", [True, False])
def test_hidden_states_of_completion_tokens_alone_are_taken_as_they_are(selected: bool) -> None:
    policy, reference = projection(0), projection(1)
    expected = token_kl.token_kl(policy, reference, MASK)
    alone = [Projection(p.hidden[MASK], p.weight, p.bias) if selected else p for p in (policy, reference)]
    torch.testing.assert_close(token_kl.token_kl(*alone, MASK), expected)


def test_a_batch_without_a_completion_token_has_a_gradient_of_zero() -> None:
    policy = projection(0)
    kl = token_kl.token_kl(policy, projection(1), torch.zeros_like(MASK))
    (gradient,) = torch.autograd.grad(kl.sum(), policy.hidden)
    assert (kl == 0).all()
    assert (gradient == 0).all()


@pytest.mark.parametrize("name", ["tdpo1", "tdpo2"])
def test_the_published_pair_from_whole_distributions(name: str) -> None:
    sides = []
    for side in ("w", "l"):
        fixture = PUBLISHED["stages"]["token_fixture"][side]
        policy, reference = (torch.tensor(fixture[model], dtype=torch.float64).log() for model in ("pi", "ref"))
        labels = torch.tensor(fixture["y"]).unsqueeze(1)
        taken = [model.gather(1, labels).sum().unsqueeze(0) for model in (policy, reference)]
        # An output layer that passes its input on, and logits that are log-probs.
        heads = [Projection(model.unsqueeze(0), torch.eye(3), None) for model in (policy, reference)]
        kl = token_kl.token_kl(*heads, torch.ones(1, len(labels), dtype=torch.bool))
        assert kl.sum().item() == pytest.approx(TOKENS["tdpo1"]["kl"][side], rel=1e-5)
        sides.append(Side(*taken, token_kl=kl))
    case = TOKENS[name]
    assert get_loss(name)(Pairs(*sides), **case["hyper"]).item() == pytest.approx(case["mean"], rel=1e-6)


def test_tdpo2_without_weight_is_dpo_and_at_weight_one_has_the_value_of_tdpo1() -> None:
    pairs = make_pairs(BATCH)
    torch.testing.assert_close(
        get_loss("tdpo2")(pairs, beta=0.1, tdpo2_alpha=0.0), get_loss("sigmoid")(pairs, beta=0.1)
    )
    torch.testing.assert_close(get_loss("tdpo2")(pairs, beta=0.1, tdpo2_alpha=1.0), get_loss("tdpo1")(pairs, beta=0.1))


def test_the_gradient_of_a_trainer_is_that_of_full_logits(tmp_path: Any) -> None:
    run = runs.trainer(tmp_path, loss_type="tdpo1", ref_model=tiny.model(1), gradient_checkpointing=True)
    inputs = next(iter(run.get_train_dataloader()))
    run.compute_loss(run.model, inputs).backward()
    ours = {name: parameter.grad.clone() for name, parameter in run.model.named_parameters()}
    run.model.zero_grad()

    plain = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    policy = run.model(**plain).logits[:, :-1].log_softmax(-1)
    reference = run.ref_model(**plain).logits[:, :-1].log_softmax(-1).detach()
    mask, labels = inputs["completion_mask"][:, 1:], inputs["input_ids"][:, 1:].unsqueeze(-1)
    logratio = ((policy - reference).gather(-1, labels).squeeze(-1) * mask).sum(1)
    drift = ((reference.exp() * (reference - policy)).sum(-1) * mask).sum(1)
    chosen, rejected = (logratio + drift).chunk(2)
    torch.nn.functional.softplus(-0.1 * (chosen - rejected)).mean().backward()
    for name, parameter in run.model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-5)


def test_a_model_that_changes_its_logits_is_refused(tmp_path: Any) -> None:
    model = tiny.model()
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(
        ValueError,
        match=r"tdpo1 needs the complete .* both models, but LlamaForCausalLM changes its logits by final_logit_soft",
    ):
        runs.trainer(tmp_path, model=model, loss_type="tdpo1", ref_model=tiny.model(1))
