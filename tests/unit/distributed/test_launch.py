"""What is put right about engines, as far as one process shows it; tests/distributed launches the rest."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy

from tests.support import runs, tiny
from trl_dpo_ext.distributed import launch
from trl_dpo_ext.errors import InputError

FSDP, DEEPSPEED = {"ACCELERATE_USE_FSDP": "true"}, {"ACCELERATE_USE_DEEPSPEED": "true"}
TWO = {"WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "kind", "processes", "said"),
    [
        (FSDP, "NO", 1, "asked for FSDP and got one plain process"),
        ({**FSDP, **TWO}, "MULTI_CPU", 2, "asked for FSDP and got plain data parallelism over 2 processes"),
        ({**DEEPSPEED, **TWO}, "MULTI_CPU", 2, "asked for DeepSpeed and got plain data parallelism"),
        (DEEPSPEED, "NO", 1, "asked for DeepSpeed and got one plain process"),
        (TWO, "NO", 1, "2 processes were launched and each trains on its own"),
    ],
)
def test_another_engine_than_was_asked_for_is_a_problem(environment, kind, processes, said) -> None:
    assert said in "\n".join(launch.launch_problems(environment, kind, processes))


@pytest.mark.parametrize(
    ("environment", "kind", "processes"),
    [
        ({}, "NO", 1),
        ({"WORLD_SIZE": "1"}, "NO", 1),
        (TWO, "MULTI_GPU", 2),
        (TWO, "MULTI_CPU", 2),
        ({**FSDP, **TWO}, "MULTI_GPU", 2),  # accelerate says FSDP only once a model is prepared
        ({**FSDP, **TWO}, "FSDP", 2),
        (FSDP, "MULTI_XPU", 1),
        ({**DEEPSPEED, **TWO}, "DEEPSPEED", 2),
        ({"ACCELERATE_USE_FSDP": "false", **TWO}, "MULTI_GPU", 2),
    ],
)
def test_what_was_asked_for_is_no_problem(environment, kind, processes) -> None:
    assert launch.launch_problems(environment, kind, processes) == []


def test_a_run_that_got_another_engine_ends_before_a_model_is_loaded(tmp_path, monkeypatch) -> None:
    args = runs.config(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="asked for FSDP"):
        runs.DPOExtTrainer("no/such-model", args=args, train_dataset=tiny.preferences())


def test_one_process_where_several_were_prepared_is_a_warning(tmp_path, monkeypatch) -> None:
    args = runs.config(tmp_path)
    environment = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}
    launch.check_launch(environment, args)  # one was asked for
    with pytest.warns(UserWarning, match="leaves that to mpirun"):
        launch.check_launch({**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, args)


def test_fsdp2_keeps_the_precision_of_outputs_and_computes_in_bf16() -> None:
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16)
    plugin = SimpleNamespace(fsdp_version=2, mixed_precision_policy=policy)
    launch.keep_precision(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)))
    assert plugin.mixed_precision_policy == MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, None)


def test_without_fsdp_there_is_no_policy_to_change() -> None:
    launch.keep_precision(SimpleNamespace(state=SimpleNamespace()))
    plugin = SimpleNamespace(fsdp_version=2, mixed_precision_policy=None)
    launch.keep_precision(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)))
    assert plugin.mixed_precision_policy is None


def test_reference_log_probs_and_columns_are_kept_from_casts() -> None:
    exact = torch.tensor([-184.514])
    batch = {
        "input_ids": torch.tensor([1]),
        "pixel_values": torch.tensor([0.1]),
        "ref_token_logps": exact,
        "ref_chosen_logps": exact,
        "margin": exact,
    }
    kept, rest = launch.split_uncast(batch, ["margin"], torch.device("cpu"))
    assert set(kept) == {"ref_token_logps", "ref_chosen_logps", "margin"}
    assert set(rest) == {"input_ids", "pixel_values"}
    assert all(value.dtype == torch.float32 for value in kept.values())
