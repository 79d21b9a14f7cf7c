"""Starts real jobs of several CPU processes under any accelerate configuration, and checks which engine ran.

    record = launch(folder, "fsdp2", "tests.distributed.launched:train", {"loss_type": "dpop"})
    record.weights, record.logs, record["what the function returned"], record.ranks[1]["logs"]

What each process does differently from one on a GPU stands in on_cpu.py. A job that trains with another engine than its
configuration asks for fails here, whatever it printed: most mistakes of this kind exit with status 0.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml

from tests.distributed import extensions
from tests.support import tiny

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RECIPES = ROOT / "recipes" / "accelerate"
ENGINES = {
    "multi_gpu": ("ddp", "MULTI_GPU", "DistributedDataParallel"),
    "fsdp1": ("fsdp1", "FSDP", "FullyShardedDataParallel"),
    "fsdp2": ("fsdp2", "FSDP", "FSDP"),  # the model's own class with this in front
    "zero1": ("zero1", "DEEPSPEED", "DeepSpeedEngine"),
    "zero2": ("zero2", "DEEPSPEED", "DeepSpeedEngine"),
    "zero3": ("zero3", "DEEPSPEED", "DeepSpeedEngine"),
}
"""Configuration in recipes/accelerate -> engine, accelerate's word for it, start of the wrapped model's class name."""

FLOAT32 = ("--mixed_precision", "no")
"""Flags against the bf16 of the recipes, for comparisons."""

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="deepspeed is not installed (make test-distributed installs it)",
)


def engines(*names: str) -> list[Any]:
    """Parameters for a test of these engines; those of DeepSpeed are skipped where it is not installed."""
    return [pytest.param(name, marks=needs_deepspeed if name.startswith("zero") else ()) for name in names or ENGINES]


@dataclass(frozen=True)
class Record:
    """What a finished job left: one JSON object per process, the gathered weights, everything it printed."""

    folder: Path
    ranks: list[dict[str, Any]]
    printed: str

    def __getitem__(self, key: str) -> Any:
        return self.ranks[0][key]

    @cached_property
    def weights(self) -> dict[str, torch.Tensor]:
        return torch.load(self.folder / "weights.pt")

    @property
    def logs(self) -> list[dict[str, Any]]:
        """What the first process logged, without what depends on the clock."""
        timed = ("runtime", "per_second", "flos")
        return [{k: v for k, v in line.items() if not any(word in k for word in timed)} for line in self["logs"]]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The log lines of training steps alone."""
        return [line for line in self.logs if "loss" in line]


class JobFailed(AssertionError):
    """The job ended with an error; what it printed is the message."""


@dataclass(frozen=True)
class Job:
    """A running job, of which this process holds one launcher per node."""

    folder: Path
    launchers: list[subprocess.Popen[bytes]]
    processes: int
    expected: tuple[str, str, str]

    @property
    def printed(self) -> str:
        return "".join(file.read_text(errors="replace") for file in sorted(self.folder.glob("printed-*.txt")))

    def kill(self, *nodes: int) -> None:
        """End launchers and workers of these nodes, or of all, at once, as a power cut would."""
        for node in nodes or range(len(self.launchers)):
            kill_tree(self.launchers[node])

    def wait(self, timeout: float = 300) -> Record:
        """Wait for the end, and check that the engine which was asked for did the work.

        Raises:
            JobFailed: the job failed, or did not end in time.
        """
        deadline = time.monotonic() + timeout
        try:
            for launcher in self.launchers:
                launcher.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            raise JobFailed(f"not done after {timeout} s:\n{self.printed[-4000:]}") from None
        finally:
            self.kill()
        if any(launcher.returncode for launcher in self.launchers):
            raise JobFailed(self.printed[-6000:])
        files = [self.folder / f"record-{rank}.json" for rank in range(self.processes)]
        ranks = [json.loads(file.read_text()) for file in files if file.is_file()]
        assert len(ranks) == self.processes, f"records of {len(ranks)} of {self.processes} processes\n{self.printed}"
        for rank in ranks:
            self._check_engine(rank)
        return Record(self.folder, ranks, self.printed)

    def _check_engine(self, rank: Mapping[str, Any]) -> None:
        engine, kind, wrapped = self.expected
        if "engine" not in rank:  # no trainer was made
            return
        assert rank["engine"] == engine, f"asked for {engine} ({kind}), ran {rank['engine']} ({rank['wrapped']})"
        assert rank["distributed_type"] == kind, f"asked for {kind}, accelerate says {rank['distributed_type']}"
        assert rank["processes"] == self.processes, f"asked for {self.processes} processes, ran {rank['processes']}"
        assert rank["wrapped"].startswith(wrapped), f"asked for {wrapped}, ran {rank['wrapped']}"

    def wait_for(self, file: str, timeout: float = 300) -> None:
        """Wait until the job has written this file of its folder."""
        deadline = time.monotonic() + timeout
        while not (self.folder / file).exists():
            assert time.monotonic() < deadline, f"no {file} after {timeout} s:\n{self.printed[-4000:]}"
            assert any(launcher.poll() is None for launcher in self.launchers), self.printed[-4000:]
            time.sleep(0.05)


def kill_tree(launcher: subprocess.Popen[bytes]) -> None:
    """End a launcher and its workers, which torchrun puts into sessions of their own."""
    try:
        workers = psutil.Process(launcher.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        workers = []
    if launcher.poll() is None:
        os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
    for worker in workers:
        try:
            worker.kill()
        except psutil.NoSuchProcess:
            continue


def prepared(folder: Path, rows: int = 16, held_out: int = 0) -> Path:
    """A job's folder with the tiny model and pairs in files: TRL's precompute pass fails on data in memory."""
    folder.mkdir()
    tiny.saved_model(str(folder / "model"))
    for name, count in {"pairs": rows, "held_out": held_out}.items():
        if count:
            margin = [0.25 * index for index in range(count)]
            tiny.preferences(count, margin=margin).to_json(str(folder / f"{name}.jsonl"))
    return folder


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until_listening(port: int, launcher: subprocess.Popen[bytes], timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while launcher.poll() is None and time.monotonic() < deadline:
        with socket.socket() as knocking:
            if knocking.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)


def expected_engine(config: Path, processes: int) -> tuple[str, str, str]:
    keys = yaml.safe_load(config.read_text())
    kind = keys["distributed_type"]
    if kind == "FSDP":
        return ENGINES[f"fsdp{keys['fsdp_config']['fsdp_version']}"]
    if kind == "DEEPSPEED":
        return ENGINES[f"zero{keys['deepspeed_config']['zero_stage']}"]
    return ENGINES["multi_gpu"] if processes > 1 else ("single", "NO", "")


def environment() -> dict[str, str]:
    return {
        **os.environ,
        **extensions.VARIABLES,
        "ACCELERATE_TORCH_DEVICE": "cpu",
        "ACCELERATE_BYPASS_DEVICE_MAP": "true",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }


def start(
    folder: Path,
    config: str | Path,
    target: str | Sequence[str],
    settings: Mapping[str, Any] | None = None,
    *,
    processes: int = 2,
    nodes: int = 1,
    flags: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Job:
    """Start a job with `processes` in all, spread over `nodes` launchers that meet over loopback.

    Args:
        folder: where the job leaves its records, weights and output; given to the target.
        config: the name of a file in recipes/accelerate, or any accelerate YAML.
        target: "module:function", called with the folder and `settings`; or a script, or "-m" and a module, with
            arguments.
        settings: JSON for the function.
        processes: of all nodes together.
        nodes: launchers, each of which stands for a machine; several are started by recipes/accelerate/multi_node.sh.
        flags: more flags of `accelerate launch`, which win over the YAML's keys.
        variables: more environment variables.
    """
    folder.mkdir(exist_ok=True)
    for old in (*folder.glob("record-*.json"), *folder.glob("printed-*.txt"), *folder.glob("weights.pt")):
        old.unlink()
    file = RECIPES / f"{config}.yaml" if isinstance(config, str) else config
    what = [target, json.dumps(dict(settings or {}))] if isinstance(target, str) else list(target)
    port = free_port() if nodes > 1 else 0
    launchers = []
    for node in range(nodes):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
        command += ["--num_processes", str(processes), "--main_process_port", str(port)]
        machine = {}
        if nodes > 1:  # with the script that users are given
            command = ["bash", str(RECIPES / "multi_node.sh"), str(file)]
            machine = {"NODES": nodes, "GPUS": processes // nodes, "RANK": node, "HEAD": "127.0.0.1", "PORT": port}
        command += [*flags, str(HERE / "on_cpu.py"), str(folder), *what]
        with (folder / f"printed-{node}.txt").open("wb") as printed:
            launchers.append(
                subprocess.Popen(
                    command,
                    env={**environment(), **(variables or {}), **{key: str(value) for key, value in machine.items()}},
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    start_new_session=True,
                )
            )
        if nodes > 1 and node == 0:
            wait_until_listening(
                port, launchers[0]
            )  # or another node, on the same machine here, takes the place of the first
    return Job(folder, launchers, processes, expected_engine(file, processes))


def launch(
    folder: Path,
    config: str | Path,
    target: str | Sequence[str],
    settings: Mapping[str, Any] | None = None,
    *,
    timeout: float = 600,
    **how: Any,
) -> Record:
    """Start a job as `start` does and wait for its end."""
    return start(folder, config, target, settings, **how).wait(timeout)
