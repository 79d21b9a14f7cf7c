"""The files in recipes/accelerate: every key is one that accelerate reads, and every file says when to use it."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands import launch
from accelerate.utils import FullyShardedDataParallelPlugin, patch_environment
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env

FOLDER = Path(__file__).parents[2] / "recipes" / "accelerate"
FILES = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
NAMES = [
    "cpu",
    "single_gpu",
    "multi_gpu",
    "fsdp1",
    "fsdp1_lora",
    "fsdp2",
    "fsdp2_offload",
    "fsdp2_hsdp",
    "zero1",
    "zero2",
    "zero3",
    "zero3_offload",
]

# Another value for each key, to see whether it makes a difference.
OTHER = {
    "compute_environment": "AMAZON_SAGEMAKER",
    "mixed_precision": "fp16",
    "gpu_ids": "1",
    "rdzv_backend": "c10d",
    "fsdp_sharding_strategy": "SHARD_GRAD_OP",
    "fsdp_auto_wrap_policy": "NO_WRAP",
    "fsdp_state_dict_type": "SHARDED_STATE_DICT",
    "deepspeed_multinode_launcher": "pdsh",
    "offload_optimizer_device": "none",
    "offload_param_device": "none",
}
TWO_MACHINES = [
    "--num_machines",
    "2",
    "--machine_rank",
    "1",
    "--main_process_ip",
    "10.0.0.1",
    "--main_process_port",
    "9",
]
PREPARE = {
    "multi_gpu_launcher": lambda args: (None, prepare_multi_gpu_env(args)),
    "deepspeed_launcher": prepare_deepspeed_cmd_env,
    "simple_launcher": prepare_simple_launcher_cmd_env,
}


def other(key: str, value: Any) -> Any:
    if key == "distributed_type":
        return "MULTI_GPU" if value == "NO" else "NO"
    if key in ("fsdp_version", "zero_stage"):
        return 1 if value > 1 else 2
    if isinstance(value, int):
        return not value if isinstance(value, bool) else 2 * value
    return OTHER[key]


def plugin_of(environment: dict[str, str]) -> Any:
    """What a training script's engine is configured with, given the launcher's environment."""
    with patch_environment(**environment):
        if environment.get("ACCELERATE_USE_FSDP") == "true":
            plugin = FullyShardedDataParallelPlugin()
            plugin.param_init_fn = plugin.param_init_fn is not None  # a new function every time
            return dataclasses.asdict(plugin)
        if environment.get("ACCELERATE_USE_DEEPSPEED") == "true" and importlib.util.find_spec("deepspeed"):
            from accelerate.utils import DeepSpeedPlugin

            return DeepSpeedPlugin().deepspeed_config
    return None


def outcome(file: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All that comes of a configuration, on one machine and on two: processes, environment, engine; or the error."""
    monkeypatch.setattr("accelerate.utils.dataclasses.is_cuda_available", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    results = []
    for flags in ([], TWO_MACHINES):
        started: list[Any] = []
        for name in PREPARE:
            monkeypatch.setattr(launch, name, lambda args, name=name, started=started: started.append((name, args)))
        try:
            launch.launch_command(
                launch.launch_command_parser().parse_args(["--config_file", str(file), *flags, "train.py"])
            )
            ((name, args),) = started
            command, environment = PREPARE[name](args)
            new = {key: value for key, value in environment.items() if os.environ.get(key) != value}
            # accelerate exports what it was given for both versions of FSDP; what counts is what the engine makes of it.
            kept = {key: value for key, value in new.items() if not key.startswith("FSDP_")}
            several = {key: getattr(args, key, None) for key in ("nproc_per_node", "nnodes", "rdzv_endpoint")}
            results.append(repr((name, command, kept, several, plugin_of(new))))
        except (ValueError, AttributeError, KeyError, TypeError, AssertionError) as error:
            results.append(f"{type(error).__name__}: {error}")
    return results


def ignored_keys(file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    keys = yaml.safe_load(file.read_text())
    flat = [(key,) for key, value in keys.items() if not isinstance(value, dict)]
    flat += [(key, inner) for key, value in keys.items() if isinstance(value, dict) for inner in value]
    before, ignored = outcome(file, monkeypatch), []
    for path in flat:
        changed = yaml.safe_load(file.read_text())
        where = changed[path[0]] if len(path) == 2 else changed
        where[path[-1]] = other(path[-1], where[path[-1]])
        copy = folder / "changed.yaml"
        copy.write_text(yaml.safe_dump(changed))
        if outcome(copy, monkeypatch) == before:
            ignored.append(path[-1])
    return ignored


def test_these_are_all() -> None:
    assert set(FILES) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_key_is_read(name: str, tmp_path, monkeypatch) -> None:
    assert not any("Error" in line[:20] for line in outcome(FILES[name], monkeypatch)[:1])
    assert ignored_keys(FILES[name], tmp_path, monkeypatch) == []


@pytest.mark.parametrize(
    ("name", "where", "key", "value"),
    [
        ("multi_gpu", None, "rdzv_backend", "static"),
        ("multi_gpu", None, "same_network", True),
        ("zero3", None, "downcast_bf16", False),
        ("fsdp1", "fsdp_config", "fsdp_reshard_after_forward", True),
        ("fsdp2", "fsdp_config", "fsdp_use_orig_params", True),
        ("fsdp2", "fsdp_config", "fsdp_shard_everything", True),
        ("zero3", "deepspeed_config", "offload_everything", True),
    ],
)
def test_a_key_that_accelerate_ignores_is_found(name, where, key, value, tmp_path, monkeypatch) -> None:
    keys = yaml.safe_load(FILES[name].read_text())
    (keys[where] if where else keys)[key] = value
    file = tmp_path / "with_dead_key.yaml"
    file.write_text(yaml.safe_dump(keys))
    assert key in ignored_keys(file, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_says_when_to_use_it_when_not_and_how(name: str) -> None:
    header = [line for line in FILES[name].read_text().splitlines() if line.startswith("#")]
    for word in ("# Use it", "# Not with:", "Launch"):
        assert any(word in line for line in header), word
    assert any(f"recipes/accelerate/{name}.yaml" in line for line in header)
    assert all(len(line) <= 140 for line in FILES[name].read_text().splitlines())


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("zero")])
def test_deepspeed_takes_the_accumulation_of_the_recipe(name: str) -> None:
    assert "gradient_accumulation_steps" not in yaml.safe_load(FILES[name].read_text())["deepspeed_config"]
