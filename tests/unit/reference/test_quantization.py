"""References in 4 bits, 8 bits, another dtype or from another checkpoint: what is loaded, what it costs, what is refused."""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
from trl import DPOTrainer

from tests.support import runs, tiny
from tests.support.batches import SMOOTH, hypers_of, make_pairs
from trl_dpo_ext import Pairs, list_losses, load_reference
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.model import loading, resolve
from trl_dpo_ext.reference.model.memory import weight_bytes

LORA = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
IDS = torch.arange(4, 34).view(2, 15)


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return tiny.saved_model(str(tmp_path / "model"))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def kinds(model: Any) -> dict[str, str]:
    """Name of every linear layer and what it is."""
    return {n: type(m).__name__ for n, m in model.named_modules() if "Linear" in type(m).__name__}


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


def test_fused_experts_of_an_instance_arrive_unchanged() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
    policy = MixtralForCausalLM(MixtralConfig(**sizes, **heads))
    torch.testing.assert_close(logits(load_reference(policy, dtype="float32")), logits(policy))
    with pytest.warns(UserWarning, match=r"nf4 leaves 8\d% of the weights as they are"):
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


# Errors, before weights are read.


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", load)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantization": "nf3"}, "Unknown quantization 'nf3'; one of nf4, fp4, int8"),
        ({"quantization": "nf4", "dtype": "float8"}, "Unknown dtype 'float8'; one of float32, bfloat16, float16"),
        ({"quantization": "int8", "compute_dtype": "bfloat16"}, "compute_dtype=bfloat16 cannot be used with int8"),
        ({"quantization": "nf4", "device": "meta"}, "bitsandbytes has no kernels for meta .*dtype='bfloat16'"),
        (
            {"quantization": "nf4", "skip_modules": ["query"]},
            "'query' is the name or the end of no linear layer.*q_proj",
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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"ref_quantization": "q4"}, "Unknown ref_quantization 'q4'; one of nf4, fp4, int8"),
        ({"ref_dtype": "half"}, "Unknown ref_dtype 'half'"),
        ({"ref_double_quant": True}, "ref_double_quant=True is for a 4-bit reference; set ref_quantization"),
        ({"ref_quantization": "int8", "ref_double_quant": True}, "ref_double_quant=True cannot be used with .*'int8'"),
        ({"ref_quantization": "int8", "ref_compute_dtype": "float32"}, "ref_compute_dtype=float32 cannot be used with"),
        ({"ref_skip_modules": ["q_proj"]}, "ref_skip_modules=.* is for a quantized reference"),
        ({"ref_calibrate": True}, "ref_calibrate=True has no error to remove"),
        (
            {"ref_quantization": "nf4", "ref_calibrate": True, "ref_drift_num_pairs": 2},
            "needs ref_drift_num_pairs >= 4; got 2",
        ),
        ({"ref_quantization": "nf4", "ref_drift_num_pairs": -1}, "ref_drift_num_pairs must be 0 .* got -1"),
        (
            {"ref_quantization": "nf4", "sync_ref_model": True},
            "sync_ref_model=True cannot be used with ref_quantization.*Remove ref_quantization",
        ),
        (
            {"ref_quantization": "nf4", "loss_type": "simpo"},
            "ref_quantization=nf4 has no effect: this run of simpo needs no",
        ),
        ({"ref_dtype": "bfloat16", "reference_free": True}, "ref_dtype=bfloat16 has no effect"),
        (
            {"ref_quantization": "nf4", "loss_type": ["sigmoid", "apo_zero", "dpop"]},
            "cannot be used with apo_zero, dpop",
        ),
        ({"ref_quantization": "nf4", "loss_type": "trl:bco_pair"}, "cannot be used with trl:bco_pair"),
        ({"ref_quantization": "nf4", "loss_type": "trl:unheard_of"}, "cannot be used with trl:unheard_of"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, flags: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        runs.config(tmp_path, **flags)


def test_every_problem_is_listed_at_once(tmp_path) -> None:
    with pytest.raises(InputError) as caught:
        runs.config(tmp_path, ref_quantization="int8", ref_double_quant=True, ref_dtype="x", loss_type="dpop")
    assert len(caught.value.problems) == 3


# Which losses a shift of the reference moves.


def shifted(pairs: Pairs, by: float, per_token: bool) -> Pairs:
    """The same pairs with reference log-probs moved by one amount: per answer (on its first token), or per token."""
    sides = []
    for side in (pairs.chosen, pairs.rejected):
        first = side.mask & (side.mask.cumsum(dim=1) == 1)
        shift = (side.mask if per_token else first) * by
        tokens, total = side.ref_token_logps + shift, shift.sum(dim=1)
        fields = {name: getattr(side, name) for name in type(side).__dataclass_fields__}
        score = None  # worked out anew
        sides.append(
            type(side)(**{**fields, "ref_logps": side.ref_logps + total, "ref_token_logps": tokens, "score": score})
        )
    fields = {name: getattr(pairs, name) for name in Pairs.__dataclass_fields__}
    weights = {name: torch.ones_like(c) for name, c in pairs.columns.items() if name.endswith("token_weights")}
    return Pairs(**{**fields, "chosen": sides[0], "rejected": sides[1], "columns": {**pairs.columns, **weights}})


@pytest.mark.parametrize("variant", [v for v in list_losses() if v.needs_reference], ids=lambda v: v.name)
def test_what_a_shift_of_both_sides_moves_is_what_is_declared(variant) -> None:
    moved = {}
    for per_token in (False, True):
        largest = 0.0
        for hyper in hypers_of(variant):
            batches = [
                shifted(make_pairs(SMOOTH), by, per_token) for by in (0.0, -3.75, 3.75)
            ]  # a loss may look one way
            plain, *others = [variant.make()(pairs, **hyper).detach() for pairs in batches]
            largest = max(largest, *(float((values - plain).abs().max()) for values in others))
        moved[per_token] = largest > 1e-9
    assert variant.shift_invariant != all(moved.values())


def test_losses_without_a_reference_read_no_reward_of_one() -> None:
    assert all(variant.shift_invariant for variant in list_losses() if not variant.needs_reference)
    named = {"apo_down", "apo_zero", "bco_pair", "nca_pair", "sppo", "sppo_hard", "anc_dpo", "dpop", "kto_pair"}
    assert named <= {variant.name for variant in list_losses() if not variant.shift_invariant}


# In a run.


@pytest.mark.parametrize("named", [True, False], ids=["by name", "instance"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_run_with_a_quantized_reference_is_trls_with_that_reference(folder, tmp_path, named: bool, kind: str) -> None:
    def policy() -> Any:
        return folder if named else AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    ours = runs.trained(tmp_path / "ours", model=policy(), ref_quantization=kind, ref_drift_num_pairs=0)
    host = runs.trained(
        tmp_path / "host", DPOTrainer, model=policy(), ref_model=load_reference(folder, quantization=kind)
    )
    for name, tensor in runs.weights(host).items():
        assert torch.equal(runs.weights(ours)[name], tensor)
    assert [line.get("loss") for line in runs.logs(ours)] == [line.get("loss") for line in runs.logs(host)]
    start = load_reference(folder, quantization=kind)
    assert torch.equal(logits(ours.ref_model), logits(start))  # training has left it alone
    assert not any(parameter.requires_grad for parameter in ours.ref_model.parameters())


def test_a_reference_is_not_saved_with_checkpoints(folder, tmp_path) -> None:
    settings = {"model": folder, "max_steps": 1, "save_strategy": "steps", "save_steps": 1, "save_only_model": True}
    runs.trained(tmp_path / "plain", **settings)
    runs.trained(tmp_path / "nf4", ref_quantization="nf4", **settings)
    files = {name: {p.name for p in (tmp_path / name / "checkpoint-1").iterdir()} for name in ("plain", "nf4")}
    assert files["nf4"] - files["plain"] == {"reference_drift.json"}
    sizes = {(tmp_path / name / "checkpoint-1" / "model.safetensors").stat().st_size for name in files}
    assert len(sizes) == 1


def test_an_unquantized_reference_in_another_dtype(folder, tmp_path) -> None:
    run = runs.trained(tmp_path / "out", model=folder, ref_dtype="bfloat16", ref_drift_num_pairs=0)
    assert run.ref_model.dtype == torch.bfloat16
    assert run.model.dtype == torch.float32
    assert weight_bytes(run.model)["all"] - weight_bytes(run.ref_model)["all"] == 2 * run.model.num_parameters()


def test_another_checkpoint_is_the_reference(folder, tmp_path) -> None:
    other = tiny.saved_model(str(tmp_path / "other"), seed=1)
    run = runs.trained(tmp_path / "ours", model=folder, ref_model_name_or_path=other)
    host = runs.trained(tmp_path / "host", DPOTrainer, model=folder, ref_model=tiny.model(1))
    assert run.reference.drift_monitor is None  # it is what it stands for
    for name, tensor in runs.weights(host).items():
        assert torch.equal(runs.weights(run)[name], tensor)


def test_an_instance_with_another_checkpoint_as_reference(folder, tmp_path) -> None:
    run = runs.trainer(tmp_path / "out", model=tiny.model(3), ref_model_name_or_path=folder, ref_quantization="nf4")
    assert torch.equal(logits(run.ref_model), logits(load_reference(folder, quantization="nf4")))


def test_the_policys_loading_flags_hold_for_its_reference(folder, tmp_path) -> None:
    settings = {"model_init_kwargs": {"dtype": "bfloat16", "attn_implementation": "eager"}, "ref_quantization": "nf4"}
    run = runs.trainer(tmp_path / "out", model=folder, **settings)
    assert run.ref_model.dtype == torch.bfloat16
    assert run.ref_model.config._attn_implementation == "eager"
    assert run.ref_model.model.layers[0].self_attn.q_proj.compute_dtype == torch.bfloat16


def test_dtype_auto_is_that_of_the_checkpoint_for_the_reference_too(folder, tmp_path) -> None:
    tiny.model().to(torch.bfloat16).save_pretrained(folder)
    run = runs.trainer(tmp_path / "out", model=folder, model_init_kwargs={"dtype": "auto"}, ref_quantization="nf4")
    assert run.model.dtype == run.ref_model.dtype == torch.bfloat16


def test_a_vocabulary_that_does_not_fit_is_named_before_weights_are_read(folder, tmp_path, no_weights) -> None:
    torch.manual_seed(0)
    small = tiny.model().config
    small.vocab_size = 20
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(InputError, match="small knows 20 tokens and the policy 48"):  # it has no tokenizer
        runs.trainer(tmp_path / "out", model=folder, ref_model_name_or_path=str(tmp_path / "small"))
    tiny.tokenizer().save_pretrained(tmp_path / "small")
    with pytest.raises(InputError, match="small knows 20 tokens; 28 of the policy's lie beyond them"):
        runs.trainer(tmp_path / "out", model=folder, ref_model_name_or_path=str(tmp_path / "small"))


def test_a_checkpoint_that_is_quantized_already_is_a_reference_for_losses_of_differences(folder, tmp_path) -> None:
    other = str(tmp_path / "nf4")
    load_reference(folder, quantization="nf4").save_pretrained(other)
    run = runs.trained(tmp_path / "out", model=folder, ref_model_name_or_path=other)
    assert torch.equal(logits(run.ref_model), logits(load_reference(folder, quantization="nf4")))
    assert run.reference.drift_monitor is None  # its unquantized form is not known
    with pytest.raises(InputError, match=r"The quantized checkpoint .* cannot be used with dpop.*Name the unquantized"):
        runs.trainer(tmp_path / "b", model=folder, ref_model_name_or_path=other, loss_type="dpop")


def test_tokens_with_other_numbers_are_named() -> None:
    ours, theirs = {"a": 0, "b": 1, "c": 2}, {"a": 0, "c": 1, "b": 2}
    (problem,) = resolve._token_problems("other", ours, theirs, size=3)
    assert "number 1 is 'c' there and 'b' for the policy (2 such numbers)" in problem
    assert resolve._token_problems("other", ours, {**ours, "d": 3}, size=8) == []  # it knows more


@pytest.mark.parametrize("flags", [{"ref_quantization": "nf4"}, {"ref_dtype": "bfloat16"}])
def test_an_adapters_base_is_a_free_reference_and_a_warning_says_so(tmp_path, flags: dict) -> None:
    with pytest.warns(UserWarning, match="base with the adapter off is a reference that takes no memory"):
        run = runs.trained(tmp_path, peft_config=LORA, **flags)
    assert run.ref_model is not None
    assert runs.logs(run)[0]["reference/drift_sequence_std"] > 0


def test_correct_use_is_silent(folder, tmp_path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runs.trained(tmp_path / "out", model=folder, ref_quantization="nf4", gradient_checkpointing=False)
    assert not [w for w in caught if "trl_dpo_ext" in w.filename]


def test_qlora_keeps_its_gradients_after_an_evaluation(folder, tmp_path) -> None:
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    with pytest.warns(UserWarning, match="takes no memory"):
        run = runs.trainer(
            tmp_path / "out",
            model=folder,
            peft_config=LORA,
            quantization_config=nf4,
            ref_quantization="nf4",
            eval_dataset=tiny.preferences(4),
        )
    run.evaluate()
    run.train()
    lines = [line for line in runs.logs(run) if "grad_norm" in line]
    assert all(line["grad_norm"] > 0 for line in lines)
    # The same 4-bit weights: what differs is that QLoRA keeps its other layers in another dtype.
    assert abs(run.reference.drift_monitor.measured.sequence_mean) < 0.05


@pytest.mark.parametrize(
    ("policy", "given", "flags", "message"),
    [
        (None, {}, {"ref_quantization": "nf4"}, "ref_model is given, and ref_quantization describe"),
        (
            None,
            {"quantization": "nf4"},
            {"loss_type": "dpop"},
            "A quantized ref_model cannot be used with dpop.*Leave it out and set",
        ),
    ],
)
def test_a_reference_that_is_given(tmp_path, policy, given: dict, flags: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        runs.trainer(tmp_path, ref_model=load_reference(tiny.model(1), **given), **flags)


@pytest.mark.parametrize(
    ("version", "dtype", "storage", "refused"),
    [
        ("1", "bfloat16", "uint8", True),
        ("1", None, "bfloat16", True),
        ("1", "bfloat16", "bfloat16", False),
        ("2", None, "uint8", False),
    ],
)
def test_qlora_under_fsdp1_needs_one_dtype(tmp_path, no_weights, monkeypatch, version, dtype, storage, refused) -> None:
    args = runs.config(tmp_path, model_init_kwargs={"dtype": dtype} if dtype else None)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", version)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_storage=storage)
    (tmp_path / "policy").mkdir()
    if refused:
        with pytest.raises(
            InputError, match=r"FSDP1 splits a 4-bit policy only where .*Set both to bfloat16, or take FSDP2"
        ):
            resolve.resolve_reference(args, str(tmp_path / "policy"), None, {"quantization_config": nf4})
    else:
        assert resolve.resolve_reference(args, str(tmp_path / "policy"), None, {"quantization_config": nf4}) is None


@pytest.mark.parametrize(
    ("flags", "refused"),
    [({"ref_dtype": "bfloat16"}, True), ({"ref_dtype": "float32"}, False), ({"ref_quantization": "nf4"}, False)],
)
def test_zero3_keeps_what_it_splits_in_its_own_dtype(tmp_path, flags: dict, refused: bool) -> None:
    args = runs.config(tmp_path, **flags)
    args.deepspeed_plugin = SimpleNamespace(zero_stage=3)
    if refused:
        with pytest.raises(InputError, match=r"ref_dtype='bfloat16' cannot be had under ZeRO-3.*\(float32\)"):
            resolve.resolve_reference(args, tiny.model(), None, {})
    else:
        assert resolve.resolve_reference(args, tiny.model(), None, {}).load() is not None


def test_under_zero2_a_reference_of_another_dtype_stays_out_of_an_engine_that_would_cast_it(tmp_path) -> None:
    args = runs.config(tmp_path, ref_dtype="bfloat16")
    reference = tiny.model(1)
    assert not resolve.is_replicated(args, reference)
    args.deepspeed_plugin = SimpleNamespace(zero_stage=2)
    assert resolve.is_replicated(args, reference)
    args.ref_dtype = None
    assert not resolve.is_replicated(args, reference)
    assert resolve.is_replicated(args, load_reference(reference, quantization="nf4"))


def test_a_reference_in_words(folder, tmp_path) -> None:
    run = runs.trainer(tmp_path / "out", model=folder, ref_quantization="nf4", ref_double_quant=True)
    assert "LlamaForCausalLM in nf4 with quantized scales over float32" in run.describe_reference()
    assert "MiB of weights" in run.describe_reference()
    assert runs.trainer(tmp_path / "b", model=folder).describe_reference().startswith("LlamaForCausalLM in float32, ")


def test_the_flags_reach_the_command(tmp_path) -> None:
    from trl_dpo_ext.cli.arguments import TrainParser

    flags = ["--ref_quantization", "nf4", "--ref_double_quant", "--ref_skip_modules", "q_proj", "k_proj"]
    args = TrainParser().parse(["--output_dir", str(tmp_path), "--bf16", "false", "--use_cpu", *flags]).args
    assert (args.ref_quantization, args.ref_double_quant, args.ref_skip_modules) == ("nf4", True, ["q_proj", "k_proj"])
