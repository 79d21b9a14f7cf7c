"""Every file of recipes/accelerate trains, with the engine it names; and two machines, of which one is lost."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.distributed.engines import ENGINES, FLOAT32, RECIPES, Record, engines, launch, prepared, start
from trl_dpo_ext.estimate.strategy import read_strategy

pytestmark = pytest.mark.distributed
RECIPE = """\
model_name_or_path: {folder}/model
dataset_name: {folder}/pairs.jsonl
output_dir: {folder}/{output}
dtype: {dtype}
bf16: {bf16}
loss_type: [sigmoid, bco_pair_delta]
max_steps: {steps}
save_strategy: steps
save_steps: 10
logging_steps: 10
learning_rate: 1.0e-3
lr_scheduler_type: constant
per_device_train_batch_size: 2
report_to: none
disable_tqdm: true
use_cpu: false
{more}
"""
LORA = "use_peft: true\nlora_r: 4\nlora_target_modules: [q_proj, v_proj]"
# The only file whose number of processes is in more than one key.
HSDP = ["--parallelism_config_dp_replicate_size", "2", "--parallelism_config_dp_shard_size", "2"]


def train_command(folder: Path, **settings: Any) -> list[str]:
    filled = {"output": "out", "steps": 3, "dtype": "float32", "bf16": "true", "more": "", **settings}
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=folder, **filled))
    return ["-m", "trl_dpo_ext", "train", "--config", str(recipe)]


def single(name: str) -> bool:
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text())["distributed_type"] == "NO"


@pytest.mark.parametrize(
    "name", engines(*sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem not in ENGINES))
)
def test_the_other_files_train_as_they_stand(tmp_path, name: str) -> None:
    # Those in ENGINES are launched by test_engines.py. These run in the precision that they ask for.
    folder = prepared(tmp_path / "job")
    bf16 = "false" if name == "cpu" else "true"
    command = train_command(folder, bf16=bf16, more=LORA if "lora" in name else "")
    processes = 1 if single(name) else 4 if name == "fsdp2_hsdp" else 2
    record = launch(folder, name, command, processes=processes, flags=HSDP if name == "fsdp2_hsdp" else ())
    assert f"Saved to {folder}/out." in record.printed
    assert record["logs"][-1]["step"] == 3
    written = read_strategy(RECIPES / f"{name}.yaml").with_processes(processes)
    shard_size = 2 if name == "fsdp2_hsdp" else 0
    expected = replace(written, half_precision=bf16 == "true", on_cpu=True, machines=1, shard_size=shard_size)
    assert record["estimated_as"] == asdict(expected)
    weights = list((folder / "out").glob("*.safetensors"))
    assert [file.name for file in weights] == ["adapter_model.safetensors" if "lora" in name else "model.safetensors"]
    assert weights[0].stat().st_size > 1000


def two_nodes(folder: Path, engine: str, **settings: Any) -> Record:
    command = [*train_command(folder, bf16="false", **settings), "--resume_from_checkpoint", "auto"]
    return launch(folder, engine, command, nodes=2, flags=FLOAT32)


@pytest.mark.parametrize("engine", engines("multi_gpu", "zero3"))
def test_of_two_machines_one_is_lost_and_started_again_they_go_on(tmp_path, engine: str) -> None:
    folder = prepared(tmp_path / "job")
    whole = dict(two_nodes(folder, engine, steps=30, output="whole").weights)

    command = [*train_command(folder, bf16="false", steps=100_000), "--resume_from_checkpoint", "auto"]
    job = start(folder, engine, command, nodes=2, flags=FLOAT32)
    try:
        job.wait_for("out/checkpoint-20/trainer_state.json")
        job.kill(1)
        assert job.launchers[0].wait(120) != 0  # the other machine notices, and does not wait for ever
    finally:
        job.kill()
    for later in (folder / "out").glob("checkpoint-*"):  # what came between the kill and its being noticed
        if int(later.name.split("-")[1]) > 20:
            (later / "trainer_state.json").unlink(missing_ok=True)

    resumed = two_nodes(folder, engine, steps=30)
    assert [rank["processes"] for rank in resumed.ranks] == [2, 2]
    assert [line["step"] for line in resumed.steps] == [10, 20, 30]
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed.weights.items())
