"""The arguments of a run that matter, by name, as a report shows and compares them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..run_files import read_json
from . import shapes
from .run_data import RunData

_ADAPTER = ("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_dora", "use_rslora")


def arguments_of(run: RunData) -> dict[str, str]:
    """Names and values, as far as the folder tells them: all from the record of this package's trainer, else a part."""
    found = _recorded(run.record) if run.record else _found_in_folder(run)
    return {name: shown for name, value in found.items() if (shown := _words(value))}


def differing(arguments: Sequence[Mapping[str, str]], complete: Sequence[bool]) -> dict[str, list[str | None]]:
    """The arguments that are not the same in all runs: the value in each, None where it is not set or not known.

    Args:
        arguments: of each run.
        complete: whether a run's arguments are all known; of the others, only the known ones count.
    """
    names = dict.fromkeys(name for each in arguments for name in each)
    values = {name: [each.get(name) for each in arguments] for name in names}

    def is_different(of_runs: Sequence[str | None]) -> bool:
        recorded = {value for value, is_complete in zip(of_runs, complete, strict=True) if is_complete}
        known = {value for value in of_runs if value is not None}
        return len(known | (recorded if recorded != {None} else set())) > 1

    return {name: of_runs for name, of_runs in values.items() if is_different(of_runs)}


def _recorded(record: Mapping[str, Any]) -> dict[str, Any]:
    losses, data, batch = record["losses"], record["data"], record["batch"]
    single = len(losses) == 1
    weighted = [each["name"] if single else f"{each['weight']:g} x {each['name']}" for each in losses]
    per_step = batch["pairs_per_step"]
    found: dict[str, Any] = {"loss": " + ".join(weighted)}
    for each in losses:
        for name, value in each["hyperparameters"].items():
            found[name if single else f"{each['name']}: {name}"] = value
    found |= dict[str, Any](option.split("=", 1) for option in record["options"] if "=" in option)
    found |= {"model": record["model"], "trained": record["trained"]}
    for line in record["reference"]:
        name, colon, value = line.partition(": ")
        found[f"reference, {name[:1].lower()}{name[1:]}" if colon else "reference"] = value if colon else line
    train = data["train"]
    found["data"] = ", ".join([*train["names"], train["fingerprint"] or "streamed"])
    for name, part in data["evaluation"].items():
        found["evaluation data" + (f", {name}" if name else "")] = part["fingerprint"] or "streamed"
    parts = f"{batch['per_device']} per process x {batch['accumulation']} accumulated x {batch['processes']} processes"
    found["pairs per step"] = f"{per_step} ({parts})" if per_step else None
    found |= {"steps": record["steps"]["max"], "epochs": record["steps"]["epochs"], **record["settings"]}
    return found | {"resumed from": record["resumed_from"]}


def _found_in_folder(run: RunData) -> dict[str, Any]:
    """What other files tell of a run of another trainer."""
    state, card = run.state, _card(run.folder)
    adapter = shapes.mapping(shapes.plain)(read_json(run.folder / "adapter_config.json"))
    rates = [rate for rate in run.series.get("learning_rate", ([], []))[1] if rate == rate]
    found = {
        "model": adapter.get("base_model_name_or_path") or card.get("base_model"),
        "data": card.get("datasets"),
        **{f"adapter, {name}": adapter.get(name) for name in _ADAPTER},
        "pairs per step and process": state.get("train_batch_size"),
        "steps": state.get("max_steps"),
        "epochs": state.get("num_train_epochs"),
        "highest learning rate": f"{max(rates):g}" if rates else None,
    }
    return found


def _card(folder: Path) -> dict[str, Any]:
    """The metadata of a model card; empty without."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8", errors="replace")
        metadata = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
    except (OSError, LookupError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return shapes.mapping(shapes.plain)(metadata)


def _words(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_words(each)}" for name, each in value.items())
    return str(value)
