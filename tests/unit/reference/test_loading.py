"""References in 4 bits, 8 bits, or another dtype: what is loaded, what it costs, what cannot be loaded."""

from __future__ import annotations

import copy
import logging

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from tests.support import tiny
from tests.support.references import LORA, kinds, logits
from trl_dpo_ext import load_reference
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.model import clone, loading
from trl_dpo_ext.reference.model.memory import weight_bytes


@pytest.mark.parametrize(("kind", "layer"), [("nf4", "Linear4bit"), ("fp4", "Linear4bit"), ("int8", "Linear8bitLt")])
@pytest.mark.parametrize("tied", [False, True])
def test_all_linear_layers_but_the_output_layer_are_quantized(kind: str, layer: str, tied: bool) -> None:
    policy = tiny.model(tie_word_embeddings=tied)
    reference = load_reference(policy, quantization=kind)
    found = kinds(reference)
    assert found.pop("lm_head") == "Linear"
    assert set(found.values()) == {layer}
    torch.testing.assert_close(reference.lm_head.weight, policy.lm_head.weight, rtol=0, atol=0)
    assert 0 < (logits(reference) - logits(policy)).abs().max() < 2.0


def test_a_reference_by_name_is_what_transformers_loads(folder: str) -> None:
    plan = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=plan)
    loading.disable_cpu_repacking(theirs)
    ours = load_reference(folder, quantization="nf4", double_quant=True)
    assert torch.equal(logits(ours), logits(theirs))


@pytest.mark.parametrize("kind", ["nf4", "int8", None])
def test_an_instance_gives_its_own_weights_and_not_those_of_its_files(folder: str, tmp_path, kind: str | None) -> None:
    policy = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():  # altered since it was loaded
        for parameter in policy.parameters():
            parameter.mul_(1.3)
    policy.save_pretrained(tmp_path / "altered")
    settings = {"quantization": kind} if kind else {"dtype": "bfloat16"}
    reference = load_reference(policy, **settings)
    assert torch.equal(logits(reference), logits(load_reference(str(tmp_path / "altered"), **settings)))
    assert not torch.equal(logits(reference), logits(load_reference(folder, **settings)))
    assert reference.config._name_or_path == policy.config._name_or_path == folder


@pytest.mark.parametrize("settings", [{"quantization": "nf4"}, {"quantization": "int8"}, {}])
@pytest.mark.parametrize("tied", [False, True])
def test_training_the_instance_leaves_its_reference_alone(settings: dict, tied: bool) -> None:
    policy = tiny.model(tie_word_embeddings=tied)
    reference = load_reference(policy, **settings)
    before = logits(reference)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(0.5)
    assert torch.equal(logits(reference), before)
    assert (reference.lm_head.weight is reference.model.embed_tokens.weight) == tied


def test_an_adapter_is_merged_into_the_reference() -> None:
    policy = peft.get_peft_model(tiny.model(), copy.deepcopy(LORA))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    reference = load_reference(policy, dtype="float32")
    torch.testing.assert_close(logits(reference), logits(policy))
    assert not torch.equal(logits(reference), logits(policy.get_base_model()))
    assert any("lora" in name for name, _ in policy.named_parameters())


def test_an_adapter_is_merged_into_a_copy_on_the_cpu(monkeypatch) -> None:
    """A copy on the policy's own device, which the policy may fill, is made of nothing."""

    def refuse(*_args: object) -> None:
        raise AssertionError("a parameter is copied where it is")

    model = peft.get_peft_model(tiny.model(), LORA)
    model.base_model.model.lm_head.weight = model.get_input_embeddings().weight  # a tie stays one
    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", refuse)
    copied = clone._copy_on_cpu(model)
    originals = dict(model.named_parameters())
    for name, parameter in copied.named_parameters():
        assert torch.equal(parameter, originals[name])
        assert parameter.device.type == "cpu"
        assert parameter.data_ptr() != originals[name].data_ptr()
        assert parameter.requires_grad == originals[name].requires_grad
    assert copied.base_model.model.lm_head.weight is copied.get_input_embeddings().weight


def test_fused_experts_of_an_instance_arrive_unchanged() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
    policy = MixtralForCausalLM(MixtralConfig(**sizes, **heads))
    torch.testing.assert_close(logits(load_reference(policy, dtype="float32")), logits(policy))
    with pytest.warns(UserWarning, match=r"nf4 leaves 8\d% of the weights unquantized"):
        load_reference(policy, quantization="nf4")


def test_named_layers_stay_as_they_are() -> None:
    reference = load_reference(tiny.model(), quantization="nf4", skip_modules=["down_proj", "model.layers.0.self_attn"])
    left = {name.rsplit(".", 1)[-1] for name, kind in kinds(reference).items() if kind == "Linear"}
    assert left == {"lm_head", "down_proj", "q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.parametrize("kind", ["nf4", None])
def test_a_reference_is_frozen_and_does_not_drop_out(kind: str | None) -> None:
    reference = load_reference(tiny.model(attention_dropout=0.5), quantization=kind)
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert not any(module.training for module in reference.modules())


def test_4_bit_layers_compute_in_the_asked_dtype_and_are_not_repacked() -> None:
    reference = load_reference(tiny.model(), quantization="nf4", compute_dtype="bfloat16")
    layer = reference.model.layers[0].self_attn.q_proj
    packed = layer.weight.data.clone()
    logits(reference)
    assert layer.compute_dtype == torch.bfloat16
    assert torch.equal(layer.weight.data, packed)
    assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)


def test_int8_is_silent(caplog: pytest.LogCaptureFixture) -> None:
    reference = load_reference(tiny.model(), quantization="int8")
    with caplog.at_level(logging.WARNING):
        logits(reference)
    assert "will be cast" not in caplog.text


def wide_model(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=48, hidden_size=512, intermediate_size=1024, **heads)).to(dtype)


def test_bytes_are_those_of_the_storage() -> None:
    policy = wide_model()
    weights = 4 * 512 * 512 + 3 * 512 * 1024
    other = 2 * 48 * 512 + 3 * 512
    buffers = sum(b.numel() * b.element_size() for b in policy.buffers())
    assert weight_bytes(policy) == {"linear": 4 * weights, "all": 4 * (weights + other) + buffers}
    half = weight_bytes(load_reference(policy, dtype="bfloat16"))
    assert half["linear"] == 2 * weights
    nf4 = weight_bytes(load_reference(policy, quantization="nf4"))
    # half a byte per weight, a float32 scale for every 64 of them, and a table of 16 values for each of 7 layers
    assert nf4["linear"] == weights // 2 + weights // 64 * 4 + 7 * 16 * 4
    double = weight_bytes(load_reference(policy, quantization="nf4", double_quant=True))
    assert double["linear"] <= 0.30 * half["linear"]
    assert double["linear"] < nf4["linear"]
    int8 = weight_bytes(load_reference(policy, quantization="int8"))
    assert int8["linear"] == weights + 4 * (4 * 512 + 2 * 1024 + 512)  # and a float32 scale for each row


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantization": "nf3"}, "Unknown quantization 'nf3'; one of nf4, fp4, int8"),
        ({"quantization": "nf4", "dtype": "float8"}, "Unknown dtype 'float8'; one of float32, bfloat16, float16"),
        ({"quantization": "int8", "compute_dtype": "bfloat16"}, "compute_dtype=bfloat16 cannot be used with int8"),
        ({"quantization": "nf4", "device": "meta"}, "bitsandbytes has no kernels for meta .*dtype='bfloat16'"),
        (
            {"quantization": "nf4", "skip_modules": ["query"]},
            "^skip_modules: 'query' matches no linear layer.*q_proj",
        ),
        ({"quantization": "nf4", "skip_modules": ["proj"]}, "has no linear layer left to quantize"),
    ],
)
def test_what_cannot_be_loaded_is_said_before_weights_are_read(
    folder, no_weights, settings: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        load_reference(folder, **settings)


def test_a_checkpoint_that_is_not_there(tmp_path) -> None:
    with pytest.raises(InputError, match=r"The reference .*nowhere could not be found"):
        load_reference(str(tmp_path / "nowhere"), quantization="nf4")


def test_a_quantized_model_is_not_quantized_again(folder: str, tmp_path) -> None:
    once = load_reference(folder, quantization="nf4")
    once.save_pretrained(tmp_path / "nf4")
    for model in (once, str(tmp_path / "nf4")):
        with pytest.raises(InputError, match=r"is already quantized \(nf4\) and cannot be quantized again to int8"):
            load_reference(model, quantization="int8")
    again = load_reference(str(tmp_path / "nf4"))  # but it can be a reference as it is
    assert torch.equal(logits(again), logits(once))
