"""What the package leans on inside DeepSpeed: one test per fact. `make test-distributed` installs it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from tests.support.seams import moved

pytestmark = pytest.mark.distributed  # of the targets of make, test-distributed is the one that installs it
deepspeed: Any = pytest.importorskip("deepspeed", reason="DeepSpeed is an extra")


def seam(fact: str, mend: str) -> str:
    return moved("DeepSpeed", fact, mend)


def test_a_sharded_parameter_says_that_it_is_all_here_by_its_status() -> None:
    from deepspeed.runtime.zero import partition_parameters

    assert "AVAILABLE" in partition_parameters.ZeroParamStatus.__members__, seam(
        "ZeroParamStatus.AVAILABLE", "_trl/placement.py (_mark_gathered)"
    )
    source = inspect.getsource(partition_parameters)
    for name in ("ds_id", "ds_status"):
        assert f"param.{name}" in source, seam(
            f"ZeRO-3 marks parameters with {name}", "_trl/placement.py, reference/model/clone.py, reference/identity/"
        )


def test_sharded_parameters_are_gathered_by_a_context_manager() -> None:
    parameters = list(inspect.signature(deepspeed.zero.GatheredParameters.__init__).parameters)
    assert parameters[1] == "params", seam(
        "zero.GatheredParameters(params)", "reference/model/clone.py, reference/identity/weights.py (_gathered)"
    )
    for name in ("__enter__", "__exit__"):
        assert hasattr(deepspeed.zero.GatheredParameters, name), seam("it is a context manager", "reference/")


def test_an_engine_can_be_asked_to_split_all_weights_again() -> None:
    source = inspect.getsource(deepspeed.DeepSpeedEngine.empty_partition_cache)
    assert "optimizer.empty_partition_cache()" in source, seam(
        "engine.empty_partition_cache()", "_trl/generation.py (_reset_after_failure)"
    )


def test_a_process_keeps_its_part_of_a_parameter_in_ds_tensor() -> None:
    from deepspeed.runtime.zero import partition_parameters

    source = inspect.getsource(partition_parameters)
    mend = "distributed/full_parameters.py (mix_partitions)"
    for fact in ("param.ds_tensor", "param.ds_shape", "param.partition = partition"):
        assert fact in source, seam(fact, mend)


def test_an_engine_takes_its_hooks_off_a_model_when_it_is_destroyed() -> None:
    assert callable(deepspeed.DeepSpeedEngine.destroy), seam(
        "engine.destroy()", "the context manager that runs the reference for the pass"
    )
    source = inspect.getsource(deepspeed.DeepSpeedEngine.destroy)
    assert "optimizer" in source or "hook" in source, seam("destroy releases what the engine holds", "the same")


def test_transformers_keeps_the_configuration_by_a_weak_reference() -> None:
    from transformers.integrations import deepspeed as integration

    config = integration.HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
    assert integration._hf_deepspeed_config_weak_ref() is config, seam(
        "HfDeepSpeedConfig registers itself", "the module that defines unsharded_loading"
    )
    assert integration.is_deepspeed_zero3_enabled()
    del config
    assert not integration.is_deepspeed_zero3_enabled(), seam("the reference is weak", "unsharded_loading")


def test_the_line_about_the_cpu_is_logged_by_deepspeeds_logger() -> None:
    mend = "logging_setup.py (mute_import_messages)"
    assert deepspeed.utils.logger.name == "DeepSpeed", seam("the logger's name", mend)
    source = inspect.getsource(deepspeed.accelerator.real_accelerator)
    assert '"Setting accelerator to CPU.' in source, seam("the line's start", mend)


def test_a_second_accelerator_takes_its_plugin_from_the_state_alone() -> None:
    from accelerate import Accelerator
    from transformers import Trainer

    source = inspect.getsource(Accelerator.__init__)
    mend = "distributed/launch.py (plugin_in_use)"
    assert "You cannot pass in a `deepspeed_plugin` when creating a second" in source, seam("a plugin is refused", mend)
    assert "deepspeed_plugins = AcceleratorState().deepspeed_plugins" in source, seam("the state has the plugin", mend)
    made = inspect.getsource(Trainer._build_accelerator_args)
    assert "self.args.deepspeed_plugin" in made, seam("transformers passes args.deepspeed_plugin", mend)
