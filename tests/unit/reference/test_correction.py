"""The low-rank terms that correct a quantized model: what they remove, what they cost, what they leave alone."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from tests.support import tiny
from tests.support.references import logits
from trl_dpo_ext import load_reference
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.correction import sequences
from trl_dpo_ext.reference.correction.fit import RIDGE, leading, second_moments, term
from trl_dpo_ext.reference.correction.layers import correction_of, dequantized, quantized_layers, terms
from trl_dpo_ext.reference.identity.weights import weights_hash
from trl_dpo_ext.reference.model.memory import describe_weights, weight_bytes

QUANTIZATIONS = ("nf4", "fp4", "int8")


def rows(count: int = 16, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 40, (12 + index % 5,), generator=generator).tolist() for index in range(count)]


def corrected(model: Any, kind: str = "nf4", rank: int = 4, data: Any = None, **settings: Any) -> Any:
    data = rows() if data is None else data
    return load_reference(model, quantization=kind, correction_rank=rank, correction_data=data, **settings)


def error(reference: Any, start: Any, data: list[list[int]]) -> float:
    """Root mean square of the error of logits on sequences."""
    found = [reference(torch.tensor([row])).logits - start(torch.tensor([row])).logits for row in data]
    return torch.cat([each.flatten() for each in found]).square().mean().sqrt().item()


@torch.no_grad()
@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_a_correction_removes_error_on_sequences_that_it_was_not_fitted_on(kind: str) -> None:
    start, other = tiny.model(), rows(8, seed=1)
    plain = error(load_reference(start, quantization=kind), start, other)
    left = [error(corrected(start, kind, rank), start, other) for rank in (2, 8)]
    assert plain > left[0] > left[1]
    assert left[1] < (0.9 if kind == "int8" else 0.4) * plain  # int8 rounds the inputs of its layers, too


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_a_correction_of_full_rank_restores_the_model(kind: str) -> None:
    start, other = tiny.model(), rows(8, seed=1)
    plain = error(load_reference(start, quantization=kind), start, other)
    assert error(corrected(start, kind, rank=16), start, other) < plain / 50  # up to the rounding of the factors


def test_the_leading_directions_are_those_of_the_outputs_error() -> None:
    torch.manual_seed(0)
    wrong, inputs = torch.randn(40, 24), torch.randn(200, 24) * torch.linspace(0.1, 3, 24)
    found = leading(wrong, second_moments(inputs), 5)
    torch.testing.assert_close(found.T @ found, torch.eye(5), atol=1e-5, rtol=0)
    ridge = RIDGE * inputs.square().mean() * torch.eye(24)
    moments = (inputs.T @ inputs / len(inputs) + ridge).double()
    exact = torch.linalg.eigh(wrong.double() @ moments @ wrong.double().T).eigenvalues.flip(0)[:5]
    kept = found.double().T @ wrong.double() @ moments @ wrong.double().T @ found.double()
    assert kept.trace().item() == pytest.approx(exact.sum().item(), rel=1e-4)


def test_no_other_term_of_its_rank_leaves_less_error() -> None:
    torch.manual_seed(0)
    wrong, inputs = torch.randn(12, 10), torch.randn(300, 10) * torch.linspace(0.1, 3, 10)

    def left(low: torch.Tensor) -> float:
        return (inputs @ (wrong - low).T).square().sum().item()

    best = term(wrong, second_moments(inputs), 3)
    ours = left(best(torch.eye(10)).T)
    moments = inputs.double().T @ inputs.double()
    values, vectors = torch.linalg.eigh(moments)
    root = vectors * values.sqrt() @ vectors.T
    u, s, v = torch.linalg.svd(wrong.double() @ root)
    optimal = left(((u[:, :3] * s[:3]) @ v[:3] @ torch.linalg.inv(root)).float())
    u, s, v = torch.linalg.svd(wrong)
    plain = left((u[:, :3] * s[:3]) @ v[:3])
    assert ours == pytest.approx(optimal, rel=0.01)
    assert ours < 0.8 * plain


@pytest.mark.slow
def test_the_same_data_give_the_same_bits_and_other_data_do_not() -> None:
    start = tiny.model()
    first, again, other = (corrected(start, data=rows(seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(logits(first), logits(again))
    assert not torch.equal(logits(first), logits(other))
    assert correction_of(first).digest == correction_of(again).digest != correction_of(other).digest


@pytest.mark.slow
@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_terms_are_frozen_and_counted(kind: str) -> None:
    start = tiny.model()
    plain, reference = load_reference(start, quantization=kind), corrected(start, kind)
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert len(list(terms(reference))) == len(quantized_layers(reference)) == 7
    added = sum(4 * (layer.in_features + layer.out_features) + 4 * 4 for layer in quantized_layers(plain).values())
    for which, size in weight_bytes(plain).items():
        assert weight_bytes(reference)[which] - size == added
    assert "corrected at rank 4" in describe_weights(reference)
    assert "corrected" not in describe_weights(plain)
    assert reference.dtype == plain.dtype


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("kind", QUANTIZATIONS)
def test_what_a_quantized_layer_holds_is_read(kind: str) -> None:
    reference = load_reference(tiny.model(), quantization=kind)
    for _ in range(2):  # int8 layers keep their scales elsewhere after the first forward
        for layer in quantized_layers(reference).values():
            weight = dequantized(layer)
            multiplied = layer(torch.eye(layer.in_features)).float().T
            torch.testing.assert_close(multiplied, weight, rtol=0, atol=(0.01 if kind == "int8" else 1e-6))
            assert weight.abs().max() > 0.1


@pytest.mark.slow
def test_a_corrected_model_is_saved_and_hashed_as_the_quantized_one_that_it_is(tmp_path) -> None:
    plain, reference = load_reference(tiny.model(), quantization="nf4"), corrected(tiny.model())
    assert weights_hash(reference) == weights_hash(plain)
    reference.save_pretrained(tmp_path)
    assert torch.equal(logits(load_reference(str(tmp_path))), logits(plain))


@pytest.mark.slow
def test_a_corrected_model_is_copied_and_pickled_with_its_terms() -> None:
    reference = corrected(tiny.model())
    assert torch.equal(logits(copy.deepcopy(reference)), logits(reference))
    layer = reference.model.layers[0].mlp.up_proj.correction
    assert torch.equal(pickle.loads(pickle.dumps(layer)).up, layer.up)


@pytest.mark.slow
def test_the_start_is_left_alone() -> None:
    start = tiny.model()
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    corrected(start)
    assert not list(terms(start))
    assert all(torch.equal(before[name], tensor) for name, tensor in start.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in start.modules())


@pytest.mark.slow
@torch.no_grad()
def test_layers_that_keep_their_weights_transposed_are_corrected() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_positions=32, n_embd=32, n_layer=1, n_head=2)
    start = GPT2LMHeadModel(config).eval()
    plain = error(load_reference(start, quantization="nf4"), start, rows(4, seed=1))
    assert error(corrected(start, rank=32), start, rows(4, seed=1)) < plain / 50


@pytest.mark.slow
def test_layers_left_out_of_quantization_have_no_term() -> None:
    reference = corrected(tiny.model(), skip_modules=["down_proj"])
    assert len(list(terms(reference))) == 6
    assert isinstance(reference.model.layers[0].mlp.down_proj, nn.Linear)


def test_data_are_token_ids_in_any_of_their_forms() -> None:
    plain = rows(4)
    tokenized = [{"prompt_ids": row[:5], "chosen_ids": row[5:], "rejected_ids": row[6:]} for row in plain]
    assert sequences.of_rows(plain) == sequences.of_rows([{"input_ids": row} for row in plain]) == plain
    assert sequences.of_rows([torch.tensor(row) for row in plain]) == plain
    assert sequences.of_rows(tokenized)[:2] == [plain[0], plain[0][:5] + plain[0][6:]]


def test_one_forward_holds_no_more_than_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "MOST_POSITIONS", 40)
    assert sequences.within_memory([[1] * 10] * 9) == [[1] * 10] * 4
    assert sequences.within_memory([[1] * 10, [1] * 20, [1] * 5]) == [[1] * 10, [1] * 20]
    assert sequences.within_memory([[1] * 99]) == [[1] * 99]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"correction_rank": 4}, "correction_rank=4 needs correction_data"),
        ({"correction_rank": 4, "correction_data": []}, "correction_data is empty"),
        ({"correction_rank": 4, "correction_data": ["text"]}, "must hold token ids.*Got 'text'"),
        ({"correction_rank": 4, "correction_data": [{"prompt": "x"}]}, "Got columns prompt"),
        ({"correction_rank": -1, "correction_data": rows()}, "must be 0 .* got -1"),
        ({"correction_data": rows()}, "has no effect without correction_rank"),
        ({"correction_rank": 17, "correction_data": rows()}, r"^correction_rank=17 is larger than .* layer \(16\)"),
        (
            {"correction_rank": 4, "correction_data": [[1, 2, 3]]},
            r"needs at least 16 tokens to be fitted on; got 3\. Pass more correction_data, or set a smaller correction_rank",
        ),
        ({"correction_rank": 4, "correction_data": rows(), "quantization": None}, "has no error to correct"),
    ],
)
def test_what_cannot_be_corrected_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        load_reference(tiny.model(), **{"quantization": "nf4", **settings})
    assert "ref_" not in str(raised.value)  # options of the trainer, which nobody has set


@pytest.mark.slow
def test_a_model_that_is_quantized_already_has_no_start_to_be_corrected_to() -> None:
    quantized = load_reference(tiny.model(), quantization="nf4")
    with pytest.raises(InputError, match="already quantized"):
        corrected(quantized)


@pytest.mark.slow
def test_a_correction_by_name_is_that_of_the_instance(tmp_path) -> None:
    folder = tiny.saved_model(str(tmp_path / "model"))
    assert torch.equal(logits(corrected(folder)), logits(corrected(tiny.model())))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["hidden_size"] == 16
