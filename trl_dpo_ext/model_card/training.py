"""What was trained, on which data, and with which software, as a card shows it."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from .. import _trl
from ..estimate.strategy import detect_strategy
from ..reference.model.memory import describe_quantization
from ..version import __version__
from .names import Named, dataset_of, named, rows_of

_LIBRARIES = {
    "trl": "TRL",
    "transformers": "Transformers",
    "torch": "PyTorch",
    "datasets": "Datasets",
    "peft": "PEFT",
    "accelerate": "Accelerate",
    "tokenizers": "Tokenizers",
}
_ADAPTER_FIELDS = ("r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "num_virtual_tokens", "modules_to_save")


def base_model(trainer: Any) -> Named | None:
    """The model that training started from, and for an adapter the model that it adapts; None if that has no name."""
    revision = (trainer.args.model_init_kwargs or {}).get("revision")
    revision = None if revision == "main" else revision
    details = f"revision `{revision}`" if revision else ""
    return named(getattr(trainer.model.config, "_name_or_path", None), "model", details, revision)


def adapter(model: Any) -> Any:
    """The PEFT configuration of the adapter that is trained; None for full fine-tuning."""
    configs = getattr(model, "peft_config", None)
    if not configs:
        return None
    active = getattr(model, "active_adapter", None)
    return configs[active] if isinstance(active, str) and active in configs else next(iter(configs.values()))


def training_lines(trainer: Any, resumed_from: str | None) -> list[str]:
    """One line for each fact about the training."""
    args = trainer.args
    per_device, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    pairs = per_device * accumulation * args.world_size
    resumed = f", resumed from `{resumed_from}`" if resumed_from else ""
    precision = next((name for name in ("bf16", "fp16") if getattr(args, name)), "none")
    length = f"{args.max_length} tokens ({args.truncation_mode})" if args.max_length else "not limited"
    steps = f"{trainer.state.global_step} of {trainer.state.max_steps}" if trainer.state.max_steps else "none yet"
    return [
        f"- Trained: {trained(trainer.model)}",
        f"- Steps: {steps}, {pairs} pairs per step ({per_device} per process x {accumulation} accumulated x "
        f"{args.world_size} processes){resumed}",
        f"- Optimizer: {_value(args.optim)}, learning rate {args.learning_rate:g}, schedule "
        f"{_value(args.lr_scheduler_type)}, weight decay {args.weight_decay:g}",
        f"- Length: {length}; mixed precision: {precision}; seed: {args.seed}",
        f"- Engine: {detect_strategy(trainer.accelerator).describe()}",
    ]


def _value(option: Any) -> str:
    return str(getattr(option, "value", option))


def trained(model: Any) -> str:
    """Which weights are trained, in words."""
    config = adapter(model)
    quantization = getattr(model.config, "quantization_config", None)
    weights = f" on weights in {describe_quantization(quantization)}" if quantization else ""
    if config is None:
        return "all parameters" if all(p.requires_grad for p in model.parameters()) else "a part of the parameters"
    fields = {name: getattr(config, name, None) for name in _ADAPTER_FIELDS}
    shown = [f"{name}={value}" for name, value in fields.items() if value]
    targets = getattr(config, "target_modules", None)
    if targets:
        shown.append(f"target_modules={targets if isinstance(targets, str) else ', '.join(sorted(targets))}")
    return f"an adapter, {_trl.adapter_kind(config)} ({'; '.join(shown)}){weights}"


def data_names(trainer: Any, given: Any, origin: Any) -> list[Named]:
    """The training datasets by name: those given for the card, those of the command line, or what the object tells."""
    if given:
        names = [given] if isinstance(given, str) else list(given)
        return [one for one in (named(name, "dataset") for name in names) if one]
    if origin is not None and origin.datasets:
        return list(origin.datasets)
    found = dataset_of(trainer.train_dataset)
    return [found] if found else []


def data_lines(trainer: Any, names: list[Named]) -> list[str]:
    """Names and sizes of the data."""
    rows = rows_of(trainer.train_dataset)
    shown = ", ".join(one.markdown() for one in names) or "a dataset without a recorded name"
    lines = [f"- Training: {shown}, {rows}"]
    evaluation = trainer.eval_dataset
    if evaluation is not None:
        parts = evaluation if isinstance(evaluation, dict) else {"": evaluation}
        sizes = [f"`{name}`: {rows_of(part)}" if name else rows_of(part) for name, part in parts.items()]
        lines.append(f"- Evaluation: {', '.join(sizes)}")
    if trainer.args.weight_column:
        lines.append(f"- Weights of pairs: column `{trainer.args.weight_column}`")
    return lines


def version_lines(quantized: bool) -> list[str]:
    """One line for each version of `library_versions`."""
    return [f"- {name}: {version}" for name, version in library_versions(quantized).items()]


def library_versions(quantized: bool) -> dict[str, str]:
    """The versions of this package and of the libraries under it."""
    versions = {"trl-dpo-ext": __version__}
    libraries = _LIBRARIES | ({"bitsandbytes": "bitsandbytes"} if quantized else {})
    for library, shown in libraries.items():
        try:
            versions[shown] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return versions
