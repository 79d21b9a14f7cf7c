"""A run other than the configured one is refused; tests/distributed launches the rest."""

from __future__ import annotations

import pytest

from tests.support import runs, tiny
from trl_dpo_ext.distributed import launch
from trl_dpo_ext.errors import InputError

FSDP, DEEPSPEED = {"ACCELERATE_USE_FSDP": "true"}, {"ACCELERATE_USE_DEEPSPEED": "true"}
TWO = {"WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "kind", "processes", "said"),
    [
        (FSDP, "NO", 1, "configured for FSDP but runs as a single process"),
        ({**FSDP, **TWO}, "MULTI_CPU", 2, "configured for FSDP but runs as plain data parallelism over 2 processes"),
        ({**DEEPSPEED, **TWO}, "MULTI_CPU", 2, "configured for DeepSpeed but runs as plain data parallelism"),
        (DEEPSPEED, "NO", 1, "configured for DeepSpeed but runs as a single process"),
        (TWO, "NO", 1, "2 processes were launched, but no GPU was found, so they would train independently"),
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


@pytest.mark.parametrize(("kind", "processes"), [("NO", 1), ("MULTI_CPU", 2)])
def test_fsdp_of_the_training_arguments_that_is_not_used_is_a_problem(kind, processes) -> None:
    (problem,) = launch.launch_problems({}, kind, processes, fsdp=True)
    assert "configured for FSDP but runs as" in problem
    assert problem.endswith("Remove use_cpu, or remove fsdp.")
    assert launch.launch_problems({}, "MULTI_GPU", 2, fsdp=True) == []


def test_fsdp_without_a_launcher_ends_before_a_model_is_loaded(tmp_path) -> None:
    with pytest.raises(InputError, match="configured for FSDP but runs as a single process"):
        runs.DPOExtTrainer("no/such-model", args=runs.config(tmp_path, fsdp=True), train_dataset=tiny.preferences())


def test_a_run_that_got_another_engine_ends_before_a_model_is_loaded(tmp_path, monkeypatch) -> None:
    args = runs.config(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match="configured for FSDP but runs as"):
        runs.DPOExtTrainer("no/such-model", args=args, train_dataset=tiny.preferences())


def test_one_process_where_several_were_prepared_is_a_warning(tmp_path, monkeypatch) -> None:
    args = runs.config(tmp_path)
    environment = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}
    launch.check_launch(environment, args)  # one was asked for
    with pytest.warns(UserWarning, match="it expects mpirun to start them"):
        launch.check_launch({**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, args)
