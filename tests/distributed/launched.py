"""What the launched tests run in every process: functions of a job's folder and its settings (see on_cpu.py)."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from datasets import load_dataset
from transformers import AutoModelForCausalLM
from trl import DPOTrainer

from tests.support import runs
from trl_dpo_ext import DPOExtTrainer


def trainer(folder: Path, settings: dict[str, Any]) -> Any:
    """A trainer of ours, or of TRL's for kind="trl", on the model and the pairs that the test left in the folder."""
    settings = {"use_cpu": False, **settings}  # on_cpu.py stands in for GPUs
    kind = DPOTrainer if settings.pop("kind", "ours") == "trl" else DPOExtTrainer
    cache = str(folder / "cache")
    data: dict[str, Any] = {
        "train_dataset": load_dataset("json", data_files=str(folder / "pairs.jsonl"), split="train", cache_dir=cache)
    }
    held_out = folder / "held_out.jsonl"
    if held_out.is_file():
        data["eval_dataset"] = load_dataset("json", data_files=str(held_out), split="train", cache_dir=cache)
    if "lora" in settings:
        from peft import LoraConfig

        data["peft_config"] = LoraConfig(task_type="CAUSAL_LM", **settings.pop("lora"))
    if "reference" in settings:
        data["ref_model"] = AutoModelForCausalLM.from_pretrained(folder / settings.pop("reference"))
    output = folder / settings.pop("output", "out")
    model = settings.pop("model", str(folder / "model"))
    return runs.trainer(output, kind, model=model, **data, **settings)


def train(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train, save where `save` says, and record the losses' running state."""
    resume, save = settings.pop("resume", None), settings.pop("save", None)
    run = trainer(folder, settings)
    run.train(resume_from_checkpoint=resume)
    if save:
        run.save_model(str(folder / save))
    return {"loss_state": run.mixture.state_dict() if isinstance(run, DPOExtTrainer) else {}}


def train_both(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train with TRL's trainer and then with ours, in the same processes; record what TRL's became."""
    host = trainer(folder, {**settings, "kind": "trl", "output": "host"})
    host.train()
    weights = {name: tensor.tolist() for name, tensor in host.model.state_dict().items()}
    trainer(folder, settings).train()
    return {"host_weights": weights, "host_logs": runs.logs(host)}


def train_plain(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train as if accelerate had not been asked to split the model."""
    os.environ.pop("ACCELERATE_USE_FSDP")
    return train(folder, settings)


def evaluate(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Evaluate what one step at a learning rate of zero has wrapped and not changed."""
    run = trainer(folder, {**settings, "learning_rate": 0.0, "max_steps": 1})
    run.train()
    return {"metrics": run.evaluate()}


def evaluate_and_predict(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Evaluate as `evaluate` does, and predict the same rows."""
    run = trainer(folder, {**settings, "learning_rate": 0.0, "max_steps": 1})
    run.train()
    predicted = run.predict(run.eval_dataset)
    return {"metrics": {**predicted.metrics, **run.evaluate()}, "predicted": len(predicted.label_ids)}


def train_watching_precision(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train, and record in which precision the layers computed and the policy's log-probs arrived."""
    run = trainer(folder, settings)
    seen: dict[str, Any] = {}
    projection = next(module for name, module in run.model.named_modules() if name.endswith("q_proj"))
    projection.register_forward_hook(lambda _m, _i, output: seen.update(layer=str(output.dtype)))
    compute_loss = run.compute_loss

    def watching(model: Any, inputs: dict[str, Any], **keywords: Any) -> Any:
        log_probs = model(**{k: inputs[k] for k in ("input_ids", "attention_mask")}, **labeled(inputs)).log_probs
        scored = log_probs[log_probs != 0].detach()
        seen.update(log_probs=str(scored.dtype), rounded=(scored == scored.bfloat16()).float().mean().item())
        return compute_loss(model, inputs, **keywords)

    run.compute_loss = watching
    run.train()
    return seen


def labeled(inputs: dict[str, Any]) -> dict[str, Any]:
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    return {"labels": labels, "fused_lm_head": True}


def train_and_stop_while_saving(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train until the checkpoint of step `at`; its model is saved, and then nothing happens any more."""
    at = settings.pop("at")
    run = trainer(folder, settings)
    save = run._save_optimizer_and_scheduler

    def stop(output_dir: str) -> None:
        if run.state.global_step == at:
            run.accelerator.wait_for_everyone()
            (folder / "stopped").touch()
            time.sleep(600)
        save(output_dir)

    run._save_optimizer_and_scheduler = stop
    run.train()
    return {}


def train_and_tell_checkpointing(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train, and tell how layers were run again in the backward pass."""
    run = trainer(folder, settings)
    run.train()
    layer = next(module for module in run.model.modules() if hasattr(module, "_gradient_checkpointing_func"))
    return {"reentrant": layer._gradient_checkpointing_func.keywords["use_reentrant"]}


def identify_trained(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train, and identify the model as its engine has split it over the processes."""
    from trl_dpo_ext.reference.identity.identify import identify

    run = trainer(folder, settings)
    run.train()
    for parameter in run.model.parameters():
        if hasattr(parameter, "ds_id"):
            parameter.partition()  # ZeRO-3 leaves parameters as small as these whole
    held = sum(getattr(p, "_local_tensor", p).numel() for p in run.model.parameters())
    return {"identity": identify(run.model).keyed, "held": held}


def check_data(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Check a dataset, and count the batches that this process has read of it."""
    from datasets import Dataset

    from trl_dpo_ext.core.columns import Column
    from trl_dpo_ext.data import columns, validation

    read = []

    def counting(*arguments: Any) -> Any:
        for batch in read_batches(*arguments):
            read.append(batch.start)
            yield batch

    read_batches = validation.read_batches
    validation.read_batches = columns.read_batches = counting
    weights = {"chosen_token_weights": Column("Weight of each token.", per_token="chosen")}
    dataset = Dataset.from_dict(settings["data"])
    report = validation.check_preferences(dataset, "train_dataset", {})
    tokens = columns.token_column_problems(dataset, "train_dataset", weights)
    return {"problems": [*report.problems, *tokens], "warnings": report.warnings, "batches": len(read)}
