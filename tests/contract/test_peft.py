"""What the package leans on inside peft: one test per fact, whose failure names the place to mend."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

from tests.support import tiny
from tests.support.seams import moved
from trl_dpo_ext import _trl

IDENTITY = "reference/identity/weights.py"
LORA = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


def seam(fact: str, mend: str = IDENTITY) -> str:
    return moved("peft", fact, mend)


def adapted(**settings: Any) -> peft.PeftModel:
    return peft.get_peft_model(tiny.model(), peft.LoraConfig(**{**LORA, **settings}))


def wrappers(model: Any, kind: type) -> dict[str, Any]:
    return {name: module for name, module in model.get_base_model().named_modules() if isinstance(module, kind)}


def test_an_adapted_layer_keeps_what_it_wraps_as_base_layer() -> None:
    (layer,) = wrappers(adapted(), BaseTunerLayer).values()
    assert isinstance(layer.base_layer, torch.nn.Linear), seam("a tuner layer keeps the layer as base_layer")
    others = {name for name, _ in layer.named_children()} - {"base_layer"}
    assert {name.split("_")[0] for name in others} == {"lora"}, seam("all else in a tuner layer is the adapter's")


def test_a_saved_module_keeps_what_it_wraps_as_original_module() -> None:
    model = adapted(modules_to_save=["lm_head"])
    (wrapper,) = wrappers(model, AuxiliaryTrainingWrapper).values()
    assert "original_module" in dict(wrapper.named_children()), seam("modules_to_save keeps original_module")
    assert torch.equal(wrapper.original_module.weight, tiny.model().lm_head.weight), seam(
        "original_module is the base's"
    )


def test_trainable_tokens_stand_beside_the_embedding_in_token_adapter() -> None:
    model = adapted(trainable_token_indices=[1, 2])
    (name, wrapper) = next(iter(wrappers(model, AuxiliaryTrainingWrapper).items()))
    assert name.endswith("embed_tokens"), seam("trainable_token_indices wraps the embedding")
    assert {"original_module", "token_adapter"} & {*dict(wrapper.named_children())}, seam("token_adapter")


def test_the_state_dict_of_an_adapter_leaves_its_name_out() -> None:
    model = adapted()
    model.add_adapter("other", peft.LoraConfig(**LORA))
    found = [peft.get_peft_model_state_dict(model, adapter_name=name) for name in ("default", "other")]
    assert {*found[0]} == {*found[1]}, seam("get_peft_model_state_dict names no adapter")
    assert not any("default" in name for name in found[0]), seam("get_peft_model_state_dict names no adapter")
    parameters = inspect.signature(peft.get_peft_model_state_dict).parameters
    assert {"state_dict", "adapter_name", "save_embedding_layers"} <= {*parameters}, seam("its keywords")


def test_a_merged_layer_says_so() -> None:
    model = adapted()
    layers = wrappers(model, BaseTunerLayer).values()
    assert not any(layer.merged for layer in layers), seam("layer.merged")
    model.merge_adapter()
    assert all(layer.merged for layer in layers), seam("layer.merged after merge_adapter")


@pytest.mark.parametrize(("start", "alters"), [(True, False), ("gaussian", False), ("pissa", True), ("olora", True)])
def test_some_starts_take_the_adapter_off_the_base(start: Any, alters: bool) -> None:
    (layer,) = wrappers(adapted(init_lora_weights=start), BaseTunerLayer).values()
    plain = tiny.model().model.layers[0].self_attn.q_proj.weight
    assert torch.equal(layer.base_layer.weight, plain) != alters, seam(f"init_lora_weights={start!r}")


def test_merging_a_copy_gives_the_plain_model_with_its_own_names() -> None:
    import copy

    model = adapted(init_lora_weights=False)
    state = copy.deepcopy(model).merge_and_unload().state_dict()
    mend = "reference/model/clone.py"
    assert {*state} == {*tiny.model().state_dict()}, seam("merge_and_unload gives the base's names", mend)
    assert not any(layer.merged for layer in wrappers(model, BaseTunerLayer).values()), seam("the copy alone", mend)


def test_the_base_is_the_model_that_was_given() -> None:
    base = tiny.model()
    model = peft.get_peft_model(base, peft.LoraConfig(**LORA))
    assert model.get_base_model() is base, seam("get_base_model is the model given", "_trl/models.py, " + IDENTITY)
    assert "default" in model.peft_config, seam("peft_config maps names to configurations", "_trl/models.py")


def test_the_adapter_of_a_model_is_selected_by_the_names_that_named_modules_gives() -> None:
    """What `names_without_wrappers` relies on: an instance's own `named_modules` is what peft asks."""
    model = adapted(modules_to_save=["lm_head"])
    names = type(model).named_modules
    expected = peft.get_peft_model_state_dict(model)
    asked = []

    def counted(*args: Any, **keywords: Any) -> Any:
        asked.append(1)
        return names(model, *args, **keywords)

    model.named_modules = counted
    try:
        assert {*peft.get_peft_model_state_dict(model)} == {*expected}
    finally:
        del model.named_modules
    assert asked, seam(
        "get_peft_model_state_dict calls model.named_modules()", "distributed/checkpoints.py (names_without_wrappers)"
    )


def test_the_name_that_fsdp1_puts_into_the_middle_of_names() -> None:
    from torch.distributed.fsdp import _common_utils

    assert _common_utils.FSDP_WRAPPED_MODULE == "_fsdp_wrapped_module", moved(
        "torch", "FSDP1 wraps a module as _fsdp_wrapped_module", "distributed/checkpoints.py (_WRAPPER)"
    )


def test_a_dtensor_holds_its_shard_and_can_be_made_full() -> None:
    from torch.distributed.tensor import DTensor

    fields = {*getattr(DTensor, "__slots__", ()), *getattr(DTensor, "__annotations__", {})}
    assert "_local_tensor" in fields, moved(
        "torch", "DTensor keeps _local_tensor", "reference/model/clone.py, reference/model/memory.py"
    )
    assert callable(DTensor.full_tensor), moved("torch", "DTensor.full_tensor()", IDENTITY)


def test_a_tensor_that_packs_others_says_which() -> None:
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    class Packed(torch.Tensor):
        def __tensor_flatten__(self) -> Any:
            return ["inner"], None

        @staticmethod
        def __tensor_unflatten__(*_: Any) -> Any: ...

    assert is_traceable_wrapper_subclass(torch.zeros(1).as_subclass(Packed)), moved(
        "torch", "__tensor_flatten__ marks wrapper subclasses", IDENTITY + " (_inner_tensors)"
    )


def test_a_new_adapter_asks_its_model_for_checkpointing_by_the_old_name() -> None:
    mend = "_trl/renamed.py (renamed_in_peft)"
    assert '"is_gradient_checkpointing"' in inspect.getsource(peft.PeftModel.__init__), seam("the old name", mend)
    with warnings.catch_warnings(), _trl.renamed_in_peft():
        warnings.simplefilter("error", FutureWarning)
        adapted()
