"""What the package leans on inside accelerate: one test per fact, whose failure names the place to mend."""

from __future__ import annotations

import contextlib
import gc
import inspect
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.memory import clear_device_cache

from tests.support import tiny
from tests.support.seams import moved

PADDING = "distributed/eval_padding.py (EvalPadding.of)"
SHARDING = "_trl/placement.py (shard_by_layer)"


def seam(fact: str, mend: str) -> str:
    return moved("accelerate", fact, mend)


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


@pytest.mark.parametrize(("rows", "left"), [(7, [0, 3]), (8, [0, 0])])
def test_the_last_batch_says_how_many_rows_of_it_are_real(accelerator: Accelerator, rows: int, left: list[int]) -> None:
    loader = accelerator.prepare(torch.utils.data.DataLoader(list(range(rows)), batch_size=4))
    state = accelerator.gradient_state
    found = [(state.end_of_dataloader, state.remainder if state.end_of_dataloader else 0) for _ in loader]
    assert [end for end, _ in found] == [False, True], seam("gradient_state.end_of_dataloader", PADDING)
    assert [remainder for _, remainder in found] == left, seam(
        "gradient_state.remainder is the number of real rows of an incomplete last batch, 0 for a complete one", PADDING
    )


def test_a_dataset_without_a_length_has_no_remainder(accelerator: Accelerator) -> None:
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(range(5))

    loader = accelerator.prepare(torch.utils.data.DataLoader(Endless(), batch_size=4))
    state = accelerator.gradient_state
    found = [state.remainder for _ in loader if not state.end_of_dataloader]
    assert found, seam("end_of_dataloader is False before the last batch", PADDING)
    assert set(found) <= {-1}, seam("gradient_state.remainder is -1 where the length is not known", PADDING)


def test_outside_of_an_iteration_there_is_no_last_batch(accelerator: Accelerator) -> None:
    state = accelerator.gradient_state
    assert (state.end_of_dataloader, state.remainder) == (False, -1), seam("gradient_state at rest", PADDING)


def test_gathering_for_metrics_goes_by_the_same_two_numbers() -> None:
    source = inspect.getsource(Accelerator.gather_for_metrics)
    assert "gradient_state.end_of_dataloader" in source, seam("gather_for_metrics goes by end_of_dataloader", PADDING)
    assert "gradient_state.remainder" in source, seam("gather_for_metrics goes by remainder", PADDING)


def test_prepared_models_are_kept_in_a_list(accelerator: Accelerator) -> None:
    model = torch.nn.Linear(2, 2)
    prepared = accelerator.prepare_model(model, evaluation_mode=True)
    mend = "_trl/reference.py (release_reference)"
    assert isinstance(accelerator._models, list), seam("accelerator._models is a list", mend)
    assert any(held is prepared for held in accelerator._models), seam(
        "accelerator._models holds what it prepared", mend
    )
    accelerator._models = [held for held in accelerator._models if held is not prepared]
    other = accelerator.prepare_model(torch.nn.Linear(2, 2), evaluation_mode=True)
    assert accelerator._models == [other], seam("accelerator._models can be replaced", mend)


def fsdp2(**settings: Any) -> FullyShardedDataParallelPlugin:
    return FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap", **settings)


def test_the_wrapping_policy_of_fsdp2_picks_the_decoder_layers() -> None:
    model, plugin = tiny.model(), fsdp2()
    plugin.set_auto_wrap_policy(model)
    chosen = fsdp2_prepare_auto_wrap_policy(plugin, model)
    assert chosen is not None, seam("fsdp2_prepare_auto_wrap_policy(plugin, model) gives a function", SHARDING)
    names = [name for name, module in model.named_modules() if chosen(module)]
    assert names == ["model.layers.0"], seam("its function picks decoder layers alone", SHARDING)


def test_a_wrapping_policy_that_is_set_already_fails_in_the_way_that_is_caught_or_not_at_all() -> None:
    model, plugin = tiny.model(), fsdp2()
    plugin.set_auto_wrap_policy(model)
    with contextlib.suppress(AttributeError):
        plugin.set_auto_wrap_policy(model)
    assert fsdp2_prepare_auto_wrap_policy(plugin, model) is not None, seam("a second set_auto_wrap_policy", SHARDING)


def test_without_a_wrapping_policy_there_is_none_to_follow() -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap")
    assert fsdp2_prepare_auto_wrap_policy(plugin, tiny.model()) is None, seam("None where nothing is wrapped", SHARDING)


def test_the_fsdp_plugin_has_what_sharding_passes_on() -> None:
    plugin = fsdp2(reshard_after_forward=False)
    assert plugin.reshard_after_forward is False, seam("plugin.reshard_after_forward", SHARDING)
    assert plugin.fsdp_version == 2, seam("plugin.fsdp_version", SHARDING)
    for name in ("cpu_offload", "mixed_precision_policy", "state_dict_type"):
        assert hasattr(plugin, name), seam(f"plugin.{name}", SHARDING)


def test_with_bf16_the_policy_of_fsdp2_casts_every_output() -> None:
    plugin = fsdp2()
    plugin.set_mixed_precision("bf16")
    assert plugin.mixed_precision_policy.output_dtype == torch.bfloat16, seam(
        "mixed_precision_policy is a dataclass with output_dtype", "distributed/precision.py (keep_precision)"
    )


@pytest.mark.parametrize(("kind", "unsharded"), [("FULL_STATE_DICT", True), ("SHARDED_STATE_DICT", False)])
def test_the_kind_of_state_dict_can_be_read_from_its_name(kind: str, unsharded: bool) -> None:
    plugin = FullyShardedDataParallelPlugin(fsdp_version=1, state_dict_type=kind)
    assert ("FULL_STATE_DICT" in str(plugin.state_dict_type)) == unsharded, seam(
        "plugin.state_dict_type", "distributed/checkpoints.py (gathered_weights)"
    )


def test_an_accelerator_without_a_plugin_has_none_in_its_state(accelerator: Accelerator) -> None:
    for name in ("fsdp_plugin", "deepspeed_plugin"):
        assert getattr(accelerator.state, name, None) is None, seam(f"accelerator.state.{name}", "distributed/")


def test_an_instance_attribute_hides_the_method_that_gathers(accelerator: Accelerator, monkeypatch) -> None:
    monkeypatch.setattr(accelerator, "gather", lambda values: values + 1)
    assert accelerator.gather(torch.zeros(1)).item() == 1, seam("accelerator.gather", "_trl/loss.py (trim_gathered)")


def test_a_launch_is_described_in_environment_variables() -> None:
    from accelerate.utils import launch

    source = inspect.getsource(launch)
    for name in (
        "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_CPU", "ACCELERATE_MIXED_PRECISION",
        "FSDP_CPU_RAM_EFFICIENT_LOADING",
    ):  # fmt: skip
        assert f'"{name}"' in source, seam(f"accelerate launch sets {name}", "distributed/launch.py (check_launch)")


def test_the_kinds_of_a_launch_have_the_names_that_are_compared() -> None:
    from accelerate.utils import DistributedType

    names = {"NO", "MULTI_CPU", "MULTI_GPU", "FSDP", "DEEPSPEED"}
    assert names <= {kind.value for kind in DistributedType}, seam("DistributedType", "distributed/launch.py")


def test_objects_of_all_processes_are_gathered_in_a_list(accelerator: Accelerator) -> None:
    from accelerate.utils import gather_object

    assert list(gather_object([SimpleNamespace(a=1).a])) == [1], seam("gather_object", "_trl/models.py (gather_object)")


def test_clearing_the_devices_cache_collects_garbage_first() -> None:
    class Node:
        itself: Any = None

    node = Node()
    node.itself = node
    alive = weakref.ref(node)
    gc.disable()
    try:
        del node
        assert alive() is not None
        clear_device_cache(garbage_collection=True)
    finally:
        gc.enable()
    assert alive() is None, seam("clear_device_cache(garbage_collection=True)", "_trl/reference.py")


def test_the_state_of_a_process_is_shared_and_says_whether_it_was_made(accelerator: Accelerator) -> None:
    mend = "distributed/launch.py (plugin_in_use)"
    assert is_initialized(), seam("is_initialized() is true once there is an accelerator", mend)
    assert vars(AcceleratorState()) is vars(accelerator.state), seam(
        "AcceleratorState() is that of the accelerator", mend
    )
    assert AcceleratorState().deepspeed_plugin is None, seam("deepspeed_plugin is None without DeepSpeed", mend)
