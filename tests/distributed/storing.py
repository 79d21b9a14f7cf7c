"""What the launched tests of the store run in every process: functions of a job's folder and its settings."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.distributed import launched
from tests.features import vision
from tests.support import pictures, runs, tiny, vision_families
from tests.support.processes import mapped_memory
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.precompute import filling, image_reading, wanted
from trl_dpo_ext.reference.store import store, table

STORED = {"precompute_ref_log_probs": True, "gradient_checkpointing": False, "max_steps": 2}


def train(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train from the store at `ref_store` below the job's folder, filling it before; "{rank}" in it is the process."""
    ref_store = settings.pop("ref_store", "refs").format(rank=os.environ.get("RANK", "0"))
    fill_only = settings.pop("fill_only", False)
    settings = {**STORED, "ref_store": str(folder / ref_store), **settings}
    if settings.pop("in_memory", False):
        run = runs.trainer(
            folder / "out", model=str(folder / "model"), train_dataset=tiny.preferences(7), use_cpu=False, **settings
        )
    else:
        run = launched.trainer(folder, settings)
    report = vars(run.reference.stored.stats).copy()
    if fill_only:
        run.model_wrapped = run.accelerator.prepare(run.model)  # as training would, so that the engine can be told
    else:
        run.train()
    return {"report": report}


def train_on(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train, as above, on an adapter that is there already."""
    torch.manual_seed(1)
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "model"), lora)
    return train(folder, {**settings, "model": adapted})


def train_counting(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train, as above, and record what this process has read of the data and the store, and what memory it maps."""
    read: dict[str, int] = {}

    def counted(module: Any, name: str) -> None:
        function = getattr(module, name)

        def counting(*args: Any) -> Any:
            read[name] = read.get(name, 0) + 1
            return function(*args)

        setattr(module, name, counting)

    for module, name in ((wanted, "packed_sequence_keys"), (store, "read_part"), (table, "read_logps")):
        counted(module, name)
    record = train(folder, settings)
    return {**record, "read": read, "mapped": mapped_memory()}


def fill_without_reader(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Let the process that reads for the others be killed; the others leave a file with what they raise."""

    def killed(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)
        yield  # so that it dies when the first row is asked for

    if os.environ["RANK"] == "0":
        filling.portions = killed
    try:
        train(folder, settings)
    except InputError as error:
        (folder / f"raised-{os.environ['RANK']}.txt").write_text(str(error))
        raise
    return {}


def fill_with_images(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Fill a store from rows with images and rows without; train nothing."""
    family = settings.pop("family")
    run = runs.trainer(
        folder / "out",
        model=vision_families.saved_model(family, str(folder / f"model-{os.environ.get('RANK', '0')}")),
        train_dataset=vision_families.preferences(7, mixed=True),
        processing_class=vision_families.FAMILIES[family].processor(),
        use_cpu=False,
        **{**STORED, "ref_store": str(folder / "refs"), "max_length": None, **settings},
    )
    report = vars(run.reference.stored.stats).copy()
    run.create_optimizer()
    run.model_wrapped, _ = run.accelerator.prepare(run.model, run.optimizer)  # so that the engine can be told
    return {"report": report}


def train_images(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train, as above, on the images of the job's folder, and count those that this process has decoded to find rows."""
    decoded: list[Any] = []
    read = image_reading.image_content
    image_reading.image_content = lambda image: (decoded.append(None), read(image))[1]
    settings = {**STORED, "ref_store": str(folder / "refs"), "use_cpu": False, "max_length": None, **settings}
    data = pictures.on_disk(pictures.pictured(0), folder)
    given = {"train_dataset": data, "processing_class": vision.processor()}
    if settings.pop("lora", False):
        given["peft_config"] = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        settings["verify_reference"] = False
    run = runs.trainer(folder / "out", model=str(folder / "model"), **given, **settings)
    report = vars(run.reference.stored.stats).copy()
    run.train()
    return {"report": report, "decoded": len(decoded)}
