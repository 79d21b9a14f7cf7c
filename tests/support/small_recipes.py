"""A recipe made small enough for two CPU cores: a tiny model of its architecture, a few rows in its data's layout.

Flags only replace what names a model, a dataset, a folder, or a size; the recipe's file is read as it is shipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
import yaml
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM, GPT2Config, GPTJConfig, LlavaConfig

from tests.support import lists, tiny, vision_families
from tests.support.published_models import MODELS, VISION_LANGUAGE
from trl_dpo_ext.recipe_registry import Recipe

SHAPES = {
    "gemma-2-9b-it": "gemma-2-9b",
    "llama-2-70b-chat": "llama-2-70b",
    "llama-3-8b-instruct": "llama-3-8b",
    "llama-3.1-8b-instruct": "llama-3-8b",
    "llama-3.1-70b-instruct": "llama-3.1-70b",
    "tulu2-70b": "llama-2-70b",
    "tulu3-8b": "llama-3-8b",
    "tulu3-70b": "llama-3.1-70b",
    "zephyr-7b": "mistral-7b",
}
"""Folder in recipes -> entry of published_models, where the two differ."""


def published_config(recipe: Recipe) -> Any:
    """The configuration of the model that the recipe is for."""
    folder = recipe.path.parent.name
    return {**MODELS, **VISION_LANGUAGE}[SHAPES.get(folder, folder)][0]()


def small_model(recipe: Recipe, folder: Path, seed: int = 0) -> str:
    """A model of the recipe's architecture with two narrow layers, and a tokenizer, as a folder that loads."""
    config = published_config(recipe)
    if isinstance(config, LlavaConfig):
        vision_families.saved_model("llava", str(folder))
        vision_families.llava_processor().save_pretrained(folder)
        return str(folder)
    common = {"vocab_size": len(tiny.tokenizer()), "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 2}
    if isinstance(config, (GPT2Config, GPTJConfig)):
        sizes: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8}
    else:
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 4096, "head_dim": 16}
    taken = {name: value for name, value in sizes.items() if hasattr(config, name)}
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(
        type(config)(**taken, **common, tie_word_embeddings=config.tie_word_embeddings)
    )
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


ADAPTERS = {
    "zephyr-7b/dpo_sft_adapter": {
        "r": 16,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    }
}
"""Recipe that starts from an adapter -> the settings of that adapter, as published."""


def published_adapter(recipe: Recipe, folder: Path) -> list[str]:
    """Flags that put the configuration of the recipe's published adapter in its place, for the estimate."""
    if recipe.name not in ADAPTERS:
        return []
    config = peft.LoraConfig(**ADAPTERS[recipe.name], task_type="CAUSAL_LM", base_model_name_or_path="base")
    config.save_pretrained(str(folder))
    (folder / "adapter_model.safetensors").touch()
    return ["--model_name_or_path", str(folder)]


def small_start(recipe: Recipe, folder: Path) -> str:
    """A small model for the recipe, or an adapter on one, as a folder."""
    base = small_model(recipe, folder / "model")
    if recipe.name not in ADAPTERS:
        return base
    config = peft.LoraConfig(**ADAPTERS[recipe.name], task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(str(folder / "adapter"))
    return str(folder / "adapter")


def _answers(rows: int) -> list[dict[str, Any]]:
    """prompt as a string, chosen and rejected as whole conversations."""
    return [
        {
            "prompt": row["prompt"][0]["content"],
            "chosen": row["prompt"] + row["chosen"],
            "rejected": row["prompt"] + row["rejected"],
        }
        for row in tiny.preferences(rows, conversational=True)
    ]


def _h4(rows: int) -> list[dict[str, Any]]:
    scores = {"score_chosen": 8.0, "score_rejected": 5.0}
    return [{**row, "prompt_id": str(i), "messages": row["chosen"], **scores} for i, row in enumerate(_answers(rows))]


def _princeton(rows: int) -> list[dict[str, Any]]:
    return [
        {**row, "prompt_id": str(i), "all_generated_responses": ["a", "b"], "all_rm_scores": [0.5, 0.1]}
        for i, row in enumerate(_answers(rows))
    ]


def _ai2(rows: int) -> list[dict[str, Any]]:
    return [{**row, "id": str(i), "source": "made up"} for i, row in enumerate(_answers(rows))]


def _implicit(rows: int) -> list[dict[str, Any]]:
    return [{"chosen": row["chosen"], "rejected": row["rejected"], "score_chosen": 8.0} for row in _answers(rows)]


def _capybara(rows: int) -> list[dict[str, Any]]:
    first = [{"role": "user", "content": "say yes"}, {"role": "assistant", "content": "yes"}]
    return [
        {"chosen": first + row["chosen"], "rejected": first + row["rejected"], "source": "made up"}
        for row in _answers(rows)
    ]


def _thinking(rows: int) -> list[dict[str, Any]]:
    return [{**row, "chat_template_kwargs": {"enable_thinking": False}} for row in _answers(rows)]


def _dialogues(rows: int) -> list[dict[str, Any]]:
    return [
        {side: f"\n\nHuman: {row['prompt']}\n\nAssistant:{row[side]}" for side in ("chosen", "rejected")}
        for row in tiny.preferences(rows)
    ]


def _pictured(rows: int) -> list[dict[str, Any]]:
    """Messages in parts, the image first."""
    data = []
    for row in vision_families.preferences(rows):
        parts = {side: [{"type": "text", "text": row[side][0]["content"]}] for side in ("prompt", "chosen", "rejected")}
        parts["prompt"] = [{"type": "image", "text": None}, *parts["prompt"]]
        sides = {side: [{"role": row[side][0]["role"], "content": content}] for side, content in parts.items()}
        data.append({**sides, "images": row["images"]})
    return data


def _strings(rows: int) -> list[dict[str, Any]]:
    return list(tiny.preferences(rows))  # type: ignore[arg-type]


def _lists(rows: int) -> list[dict[str, Any]]:
    return list(lists.ultrafeedback(rows))  # type: ignore[arg-type]


LAYOUTS = {
    "HuggingFaceH4/ultrafeedback_binarized": (_h4, ("train_prefs", "test_prefs")),
    "princeton-nlp/llama3-ultrafeedback-armorm": (_princeton, ("train", "test")),
    "princeton-nlp/llama3-ultrafeedback": (_princeton, ("train", "test")),
    "princeton-nlp/gemma2-ultrafeedback-armorm": (_princeton, ("train", "test")),
    "allenai/llama-3.1-tulu-3-8b-preference-mixture": (_ai2, ("train",)),
    "allenai/llama-3.1-tulu-3-70b-preference-mixture": (_ai2, ("train",)),
    "allenai/olmo-2-0425-1b-preference-mix": (_ai2, ("train",)),
    "allenai/olmo-2-1124-7b-preference-mix": (_ai2, ("train",)),
    "trl-lib/ultrafeedback_binarized": (_implicit, ("train", "test")),
    "trl-lib/tldr-preference": (_strings, ("train", "validation")),
    "argilla/distilabel-capybara-dpo-7k-binarized": (_capybara, ("train",)),
    "HuggingFaceH4/rlaif-v_formatted": (_pictured, ("train", "test")),
    "HuggingFaceTB/smoltalk2": (_thinking, ()),
    "Anthropic/hh-rlhf": (_dialogues, ("train", "test")),
    "imdb_pairs.jsonl": (_strings, ("train",)),
    "irpo_pairs.jsonl": (_strings, ("train",)),
    "openbmb/UltraFeedback": (_lists, ("train",)),
}
"""Dataset -> rows in its published layout, and its splits."""


def small_data(recipe: Recipe, folder: Path, rows: int = 8) -> list[str]:
    """Rows in the layout of the recipe's dataset, and the flags that put them in its place."""
    keys = yaml.safe_load(recipe.path.read_text())
    if "datasets" in keys:
        return []  # a list cannot be given as a flag: see small_file
    name = keys["dataset_name"]
    if name == "demo/data":  # is in the repository
        return ["--dataset_name", str(recipe.path.parents[2] / name)]
    build, splits = LAYOUTS[name]
    if name.endswith((".jsonl", ".parquet")):
        made = Dataset.from_list(build(rows))
        (made.to_json if name.endswith(".jsonl") else made.to_parquet)(str(folder / name))
        return ["--dataset_name", str(folder / name)]
    DatasetDict({split: Dataset.from_list(build(rows)) for split in splits}).save_to_disk(str(folder / "data"))
    return ["--dataset_name", str(folder / "data")]


def small_file(recipe: Recipe, folder: Path, rows: int = 8) -> Path:
    """The recipe's own file; or, where it lists several datasets, a copy that names local ones in their places."""
    keys = yaml.safe_load(recipe.path.read_text())
    if "datasets" not in keys:
        return recipe.path
    text, listed = recipe.path.read_text(), []
    for part in keys["datasets"]:
        build, _ = LAYOUTS[part["path"]]
        Dataset.from_list(build(rows)).to_json(str(folder / "data" / f"{part['split']}.jsonl"))
        listed.append(f"  - split: {part['split']}\n    path: {part['split']}.jsonl\n")
        text = text.replace(f"path: {part['path']}\n", f"path: {folder / 'data'}\n")
    card = f"---\nconfigs:\n- config_name: {keys['datasets'][0]['name']}\n  data_files:\n{''.join(listed)}---\n"
    (folder / "data" / "README.md").write_text(card)
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


ON_CPU = {"paged_adamw_32bit": "adamw_torch"}
"""Optimizers that need a GPU -> what stands in for them here."""


def small_flags(recipe: Recipe, folder: Path, **flags: Any) -> list[str]:
    """The arguments of `train` for the recipe at its smallest, with `flags` in place of its own."""
    keys = yaml.safe_load(recipe.path.read_text())
    given = {
        "model_name_or_path": small_start(recipe, folder),
        "model_revision": "main",
        "output_dir": str(folder / "out"),
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_length": 64,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        **({"ref_store": str(folder / "refs")} if "ref_store" in keys else {}),
        **({"optim": ON_CPU[keys["optim"]]} if keys.get("optim") in ON_CPU else {}),
        # the demo's adapter sits on layers that a small model does not have
        **({"lora_target_modules": "all-linear"} if recipe.path.parent.name == "smollm2-135m" else {}),
        **flags,
    }
    argv = ["--config", str(small_file(recipe, folder)), *small_data(recipe, folder)]
    return [*argv, *(part for name, value in given.items() for part in (f"--{name}", str(value)))]
