"""What moving references lean on inside TRL, peft and torch: one test per fact, whose failure names the place to mend."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import nn
from trl import SyncRefModelCallback

from tests.support import runs, tiny
from tests.support.seams import moved
from trl_dpo_ext import DPOExtTrainer, _trl

ADAPTER = "_trl/second_adapter.py"
MIXING = "reference/moving/source.py"
LORA = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


def adapted(**settings: Any) -> Any:
    return peft.get_peft_model(tiny.model(), peft.LoraConfig(**{**LORA, **settings}))


def in_step(callback: Any, step: int, model: Any) -> None:
    args = SimpleNamespace(ref_model_sync_steps=2, ref_model_mixup_alpha=0.25)
    callback.on_step_end(args, SimpleNamespace(global_step=step), None, model=model)


def test_trls_callback_mixes_all_parameters_at_the_end_of_every_nth_step(tmp_path) -> None:
    run = runs.trainer(tmp_path, ref_model=tiny.model(seed=1), sync_ref_model=True)
    (callback,) = [one for one in run.callback_handler.callbacks if isinstance(one, SyncRefModelCallback)]
    policy, reference = run.model, run.ref_model
    before = [parameter.clone() for parameter in reference.parameters()]
    in_step(callback, 1, policy)
    assert all(map(torch.equal, before, reference.parameters())), moved("TRL", "moved at step % steps == 0", MIXING)
    in_step(callback, 2, policy)
    for new, old, target in zip(reference.parameters(), before, policy.parameters(), strict=True):
        expected = old.mul(0.75).add_(target, alpha=0.25)
        assert torch.equal(new, expected), moved("TRL", "alpha * policy + (1 - alpha) * reference", MIXING)
    run.remove_callback(SyncRefModelCallback)
    found = [one for one in run.callback_handler.callbacks if isinstance(one, SyncRefModelCallback)]
    assert not found, moved("transformers", "remove_callback takes a class", MIXING)


def test_our_callback_comes_after_trls(tmp_path) -> None:
    run = runs.trainer(tmp_path, ref_model=tiny.model(seed=1), sync_ref_model=True)
    names = [type(one).__name__ for one in run.callback_handler.callbacks]
    assert names.index("SyncRefModelCallback") < names.index("_Follow"), moved(
        "TRL", "the callback is added in the constructor", MIXING
    )


def test_trls_constructor_reads_the_option_and_refuses_adapters() -> None:
    from trl import DPOTrainer

    source = inspect.getsource(DPOTrainer.__init__)
    assert source.count("args.sync_ref_model") == 1, moved("TRL", "args.sync_ref_model is read once", ADAPTER)
    assert "NotImplementedError" in source.split("args.sync_ref_model")[1], moved(
        "TRL", "sync_ref_model with an adapter is refused; is without_sync still needed?", ADAPTER
    )


def test_the_adapter_called_ref_is_the_reference(tmp_path) -> None:
    run = runs.trainer(tmp_path, DPOExtTrainer, peft_config=peft.LoraConfig(**LORA))
    batch = run.data_collator([run.train_dataset[row] for row in range(2)])
    base, _ = run.compute_ref_log_probs(run.model, batch)
    _trl.SecondAdapter(run.model)
    with torch.no_grad():
        for name, parameter in run.model.named_parameters():
            if "lora_B.ref" in name:
                parameter.add_(1.0)
    changed, _ = run.compute_ref_log_probs(run.model, batch)
    assert not torch.equal(base, changed), moved("TRL", 'the adapter "ref" is run as the reference', ADAPTER)


@pytest.mark.parametrize(
    "settings",
    [{}, {"target_modules": ["embed_tokens"]}, {"modules_to_save": ["norm"]}, {"trainable_token_indices": [1, 2]}],
    ids=["layer", "embedding", "whole module", "tokens"],
)
def test_an_adapters_parts_are_kept_in_dictionaries_by_its_name(settings: dict) -> None:
    model = adapted(**settings)
    kept = [m for m in model.modules() if isinstance(m, (nn.ModuleDict, nn.ParameterDict)) and "default" in m]
    parts = [slot["default"] for slot in kept]
    mine = {id(p) for part in parts for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())}
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained, moved("peft", "an adapter trains something", ADAPTER)
    assert trained <= mine, moved("peft", "dictionaries with the adapter's name as key hold its parameters", ADAPTER)


def test_the_factors_of_lora_have_their_names_and_their_order() -> None:
    layer = adapted().get_base_model().model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert (a.shape, b.shape) == ((2, 16), (16, 2)), moved("peft", "lora_A is (rank, in), lora_B (out, rank)", ADAPTER)
    embedding = adapted(target_modules=["embed_tokens"]).get_base_model().model.embed_tokens
    shapes = embedding.lora_embedding_A["default"].shape, embedding.lora_embedding_B["default"].shape
    assert shapes == ((2, len(tiny.tokenizer())), (16, 2)), moved("peft", "lora_embedding_A and _B", ADAPTER)


def test_a_layer_uses_factors_of_any_rank() -> None:
    model = adapted(init_lora_weights=False)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    inputs = torch.randn(3, 16)
    before = layer(inputs)
    for factor, dim in ((layer.lora_A["default"], 0), (layer.lora_B["default"], 1)):
        factor.weight = nn.Parameter(torch.cat([factor.weight, torch.zeros_like(factor.weight)], dim=dim))
    torch.testing.assert_close(layer(inputs), before)


@pytest.mark.parametrize(("settings", "variants"), [({}, []), ({"use_dora": True}, ["DoraLinearVariant"])])
def test_a_layer_names_what_is_more_than_a_product(settings: dict, variants: list[str]) -> None:
    found = _trl.SecondAdapter(adapted(**settings)).variants()
    assert found == variants, moved("peft", "lora_variant of a layer maps adapters to variants", ADAPTER)


def test_adapters_to_save_are_selected_by_a_keyword(tmp_path) -> None:
    model = adapted()
    model.add_adapter("ref", peft.LoraConfig(**LORA))
    assert "selected_adapters" in inspect.signature(model.save_pretrained).parameters, moved(
        "peft", "save_pretrained(selected_adapters=...)", "_trl/adapters.py (saved_on_top)"
    )
    with _trl.saved_on_top(model, frozen=False):
        model.save_pretrained(str(tmp_path))
    assert not (tmp_path / "ref").exists()
    assert (tmp_path / "adapter_config.json").is_file()


def test_fsdp1_reshards_a_unit_through_its_handle() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp._flat_param import FlatParamHandle

    mend = "distributed/full_parameters.py (forget_gathered)"
    (_, freed), *_ = list(inspect.signature(FlatParamHandle.reshard).parameters.items())[1:2]
    assert freed.name == "free_unsharded_flat_param", moved("torch", "FlatParamHandle.reshard(free)", mend)
    assert "_handle" in inspect.getsource(FullyShardedDataParallel), moved("torch", "a unit keeps its _handle", mend)
