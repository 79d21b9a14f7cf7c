"""Compares the estimated peak of a training step with the measured one, on the GPU at hand. Needs one CUDA GPU.

Models get their shapes from tests/published_models.py and random weights, so nothing is downloaded; rows are filled to
`max_length`, which is what the estimate assumes. Prints a Markdown table with the date and the device.

Run: python benchmarks/estimate_peak.py
"""

from __future__ import annotations

import argparse
import datetime
import gc
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from trl_dpo_ext.cli.arguments import TrainParser, adapter_config
from trl_dpo_ext.cli.train import build_trainer
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.estimate.formulas import GIB, estimate
from trl_dpo_ext.estimate.from_args import training_from_args
from trl_dpo_ext.estimate.model_size import compute_model_size
from trl_dpo_ext.estimate.strategy import ParallelStrategy

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support import tiny
from tests.support.published_models import MODELS

LORA = "--use_peft --lora_r 16 --lora_target_modules all-linear --dtype bfloat16"
CASES = {
    "full, float32 and autocast, reference loaded": ("qwen2.5-0.5b", "--dtype float32"),
    "full, 8-bit AdamW, no reference": ("smollm2-1.7b", "--dtype float32 --optim adamw_bnb_8bit --loss_type simpo"),
    "LoRA, bf16": ("qwen2.5-7b", LORA),
    "QLoRA, NF4": ("qwen2.5-7b", f"{LORA} --load_in_4bit --use_bnb_nested_quant"),
}
ROW = 512


def pairs(rows: int) -> Dataset:
    words = tiny.SENTENCE.split()
    long = " ".join(words[index % len(words)] for index in range(2 * ROW))
    return Dataset.from_dict(
        {"prompt": ["what is"] * rows, "chosen": [f" {long}"] * rows, "rejected": [f" {long} no"] * rows}
    )


def save(folder: Path, config: Any, device: str = "cuda") -> None:
    """A model of random weights, made where that is fast, its tokenizer and pairs."""
    with torch.device(device):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    pairs(64).to_json(str(folder / "pairs.jsonl"))


def measure(folder: Path, config: Any, flags: str) -> tuple[float, float, float]:
    """GiB of a step of the model that `save` has put there: estimated; in PyTorch's pool; beside it, for the driver.

    The last is what all processes hold on the GPU, so that this one has to be alone on it.
    """
    argv = f"--model_name_or_path {folder}/model --dataset_name {folder}/pairs.jsonl --output_dir {folder}/out "
    argv += f"--max_length {ROW} --per_device_train_batch_size 4 --gradient_accumulation_steps 2 --max_steps 3 "
    argv += f"--report_to none --save_strategy no --bf16 true {flags}"
    arguments = TrainParser().parse(argv.split())
    args, model_args = arguments.args, arguments.model
    training = training_from_args(args, model_args, args.loss_mixture(), config)
    size = compute_model_size(config, adapter_config(model_args))
    expected = estimate(size, training, ParallelStrategy("single", 1)).total
    trainer: Any = build_trainer(arguments)
    torch.cuda.empty_cache()
    if not torch.cuda.is_available():
        trainer.train()
        return expected / GIB, float("nan"), float("nan")
    torch.cuda.reset_peak_memory_stats()  # loading may peak too, but it is a training step that is estimated
    trainer.train()
    free, total = torch.cuda.mem_get_info()
    context = (total - free) - torch.cuda.memory_reserved()
    return expected / GIB, torch.cuda.max_memory_reserved() / GIB, context / GIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    parser.parse_args()
    if not torch.cuda.is_available():
        raise InputError("This benchmark needs a CUDA GPU; none is visible. Its result is no number without one.")
    print(f"{datetime.date.today():%d %B %Y}, {torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print("| run | model | estimated GiB | measured GiB | ratio |\n|---|---|---|---|---|")
    for case, (model, flags) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            config = MODELS[model][0]()
            save(Path(folder), config)
            gc.collect()
            expected, pool, context = measure(Path(folder), config, flags)
        measured = pool + context
        print(f"| {case} | {model} | {expected:.1f} | {measured:.1f} | {expected / measured:.2f} |", flush=True)
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
