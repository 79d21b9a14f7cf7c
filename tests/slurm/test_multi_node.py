"""recipes/accelerate/multi_node.slurm under a real Slurm: two machines train together, and go on after one was lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.engines import HERE, ROOT, environment, prepared
from tests.distributed.test_accelerate_recipes_launched import train_command
from tests.slurm.cluster import Cluster, slurm, wait_until, why_not

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def submit(cluster: Cluster, folder: Path, steps: int) -> str:
    """Submit a run of one process per machine, from the folder that holds recipes/, as the script says."""
    arguments = ["--nodes", "2", "--gpus-per-node", "1", "--cpus-per-task", "1", "--output", f"{folder}/printed.txt"]
    arguments += ["recipes/accelerate/multi_node.slurm", "recipes/accelerate/multi_gpu.yaml", "--mixed_precision", "no"]
    arguments += [str(HERE / "on_cpu.py"), str(folder), *train_command(folder, bf16="false", steps=steps)]
    arguments += ["--resume_from_checkpoint", "auto"]
    return cluster.submit(arguments, ROOT, {**environment(), "GLOO_SOCKET_IFNAME": "eth0"})


def test_two_machines_train_together(tmp_path: Path, cluster: Cluster) -> None:
    folder = prepared(tmp_path / "job")
    job = submit(cluster, folder, steps=10)
    assert cluster.wait_for(job, "COMPLETED", 180)["NumNodes"] == "2"
    records = [json.loads((folder / f"record-{rank}.json").read_text()) for rank in range(2)]
    assert [record["engine"] for record in records] == ["ddp", "ddp"]
    assert [record["processes"] for record in records] == [2, 2]
    assert (folder / "printed.txt").read_text().count(f"Saved to {folder}/out.") == 1


def test_a_job_that_loses_a_machine_is_requeued_and_goes_on_from_its_newest_checkpoint(
    tmp_path: Path, cluster: Cluster
) -> None:
    folder = prepared(tmp_path / "job")
    job = submit(cluster, folder, steps=100_000)
    checkpoint = "out/checkpoint-{}/trainer_state.json".format
    wait_until((folder / checkpoint(20)).exists, 180, "checkpoint")
    cluster.lose("node2")
    assert cluster.wait_for(job, "PENDING", 180)["Restarts"] == "1"
    newest = max(
        int(file.parent.name.split("-")[1]) for file in (folder / "out").glob("checkpoint-*/trainer_state.json")
    )
    first = (folder / checkpoint(10)).stat().st_mtime

    cluster.bring_back("node2")
    cluster.wait_for(job, "RUNNING", 400)
    wait_until((folder / checkpoint(newest + 20)).exists, 180, "checkpoint after the loss")
    cluster.cancel(job)
    steps = [line["step"] for line in json.loads((folder / checkpoint(newest + 20)).read_text())["log_history"]]
    assert steps == list(range(10, newest + 30, 10))
    assert (folder / checkpoint(10)).stat().st_mtime == first  # it did not start anew
