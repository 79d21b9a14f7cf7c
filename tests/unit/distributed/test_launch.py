"""What is put right about engines, as far as one process shows it; tests/distributed launches the rest."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy

from tests.support import runs, tiny
from tests.support.tolerances import rounding
from trl_dpo_ext.distributed import launch
from trl_dpo_ext.distributed.eval_padding import EvalPadding
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


def accelerator(rows: int, batch: int, processes: int, process: int, last: bool = True) -> SimpleNamespace:
    state = SimpleNamespace(end_of_dataloader=last, remainder=rows % (batch * processes))
    return SimpleNamespace(gradient_state=state, num_processes=processes, process_index=process)


@pytest.mark.parametrize(
    ("rows", "own"),
    [(31, [8, 7]), (24, [8, 0]), (18, [2, 0]), (32, [8, 8]), (17, [1, 0]), (3, [3, 0])],
)
def test_repeated_rows_stand_at_the_end_of_the_last_batch(rows: int, own: list[int]) -> None:
    last = [EvalPadding.of(accelerator(rows, 8, 2, process), 8) for process in range(2)]
    assert [real.own for real in last] == own
    assert {real.everyone for real in last} == {sum(own)}
    before = EvalPadding.of(accelerator(rows, 8, 2, 1, last=False), 8)
    assert (before.own, before.everyone, before.padded) == (8, 16, False)


def test_a_smaller_last_batch_of_one_process_is_not_padded() -> None:
    assert not EvalPadding.of(accelerator(31, 8, 1, 0), 7).padded


@pytest.mark.parametrize("given", [None, [0.5, 2.0, 1.0, 3.0]])
def test_weights_turn_a_mean_over_the_fed_pairs_into_one_over_the_real_ones(given) -> None:
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 9.0, 9.0]])
    weights = torch.ones(4) if given is None else torch.tensor(given)
    reals = [EvalPadding.of(accelerator(6, 4, 2, process), 4) for process in range(2)]
    means = []
    for row, real in zip(values, reals, strict=True):
        used = real.weights(None if given is None else weights, torch.device("cpu"))
        means.append((row if used is None else row * used).mean())
    assert float(means[1]) == pytest.approx(float((values[1, :2] * weights[:2]).mean()))
    over_all = torch.stack([mean * real.share for mean, real in zip(means, reals, strict=True)]).mean()
    expected = torch.cat([values[0] * weights, values[1, :2] * weights[:2]]).mean()
    assert float(over_all) == pytest.approx(float(expected))
    assert reals[0].cut(values.flatten()).tolist() == [1, 2, 3, 4, 5, 6]
    assert reals[0].cut(torch.zeros(2)).shape == (2,)  # one value per process is left alone


def test_evaluation_does_not_depend_on_the_size_of_batches(tmp_path) -> None:
    settings = {"loss_type": ["sigmoid", "dpop"], "eval_dataset": tiny.preferences(7), "ref_model": tiny.model(1)}
    seen = [
        runs.trainer(tmp_path, per_device_eval_batch_size=size, **{**settings, "ref_model": tiny.model(1)}).evaluate()
        for size in (1, 3, 7)
    ]
    pair_means = [key for key in seen[0] if key.startswith(("eval_loss", "eval_rewards/", "eval_logps/"))]
    assert len(pair_means) == 1 + 2 + 4 + 2
    for other in seen[1:]:
        # Sums over batches of another size are rounded in another order, and by other kernels.
        assert {key: other[key] for key in pair_means} == pytest.approx(
            {key: seen[0][key] for key in pair_means}, rel=1e-4, abs=rounding(0.1 * 60)
        )
