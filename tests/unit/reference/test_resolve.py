"""Which reference a run gets from its options, and what FSDP and DeepSpeed do not allow."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import BitsAndBytesConfig

from tests.support import runs, tiny
from trl_dpo_ext import load_reference
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.model import resolve


def test_tokens_with_other_numbers_are_named() -> None:
    ours, theirs = {"a": 0, "b": 1, "c": 2}, {"a": 0, "c": 1, "b": 2}
    (problem,) = resolve._token_problems("other", ours, theirs, size=3)
    assert "token id 1 is 'c' there and 'b' for the policy (2 token ids differ)" in problem
    assert resolve._token_problems("other", ours, {**ours, "d": 3}, size=8) == []  # it knows more


@pytest.mark.parametrize(
    ("policy", "given", "flags", "message"),
    [
        (None, {}, {"ref_quantization": "nf4"}, "ref_model was passed together with ref_quantization"),
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
            InputError, match=r"FSDP1 can shard a 4-bit policy only if .*Set both to bfloat16, or use FSDP2"
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
        with pytest.raises(InputError, match=r"ref_dtype='bfloat16' is not possible under ZeRO-3.*\(float32\)"):
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


def test_a_vocabulary_that_does_not_fit_is_named_before_weights_are_read(folder, tmp_path, no_weights) -> None:
    torch.manual_seed(0)
    small = tiny.model().config
    small.vocab_size = 20
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(InputError, match="small has 20 tokens and the policy 48"):  # it has no tokenizer
        runs.trainer(tmp_path / "out", model=folder, ref_model_name_or_path=str(tmp_path / "small"))
    tiny.tokenizer().save_pretrained(tmp_path / "small")
    with pytest.raises(InputError, match="small has 20 tokens, but 28 of the policy's token ids are larger"):
        runs.trainer(tmp_path / "out", model=folder, ref_model_name_or_path=str(tmp_path / "small"))
