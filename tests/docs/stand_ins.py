"""What takes the place of the Hub's models and datasets in the Python of README and docs, and what keeps a run short."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from tests.support import lists, tiny, vision_families

OWNERS = {
    *("HuggingFaceH4", "HuggingFaceTB", "Qwen", "allenai", "alignment-handbook", "argilla", "google", "meta-llama"),
    *("mistralai", "openbmb", "princeton-nlp", "trl-lib"),
}
"""On the Hub. What a block loads from them is a tiny model, or eight preference pairs."""
IMAGES = ("llava-hf/llava-1.5-7b-hf", "HuggingFaceH4/rlaif-v_formatted")
"""A model of images and pairs about images, for which a tiny Llava and its data stand."""
FILES = ("pairs.jsonl", "train.jsonl", "test.jsonl")
"""Files of preference pairs that a block may load."""
LISTS = "openbmb/UltraFeedback"
"""A dataset of the Hub whose stand-in has its columns."""
_OF_IMAGES = "_of_images"
SHORT = {"max_steps": 1, "bf16": False, "use_cpu": True, "report_to": "none", "disable_tqdm": True}
"""Settings of every run, whatever the block says."""
SMALL = {"per_device_train_batch_size": 2, "per_device_eval_batch_size": 2, "gradient_accumulation_steps": 1}
"""Settings in place of a block's own."""


class StandIns(ast.NodeTransformer):
    """Replaces names of the Hub by a folder that can be loaded, and shortens every run.

    Args:
        folder: the tiny model's.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        """A name of the Hub, `owner/name`."""
        if node.value in IMAGES:
            return ast.copy_location(ast.Constant(f"{self._folder}{_OF_IMAGES}"), node)
        is_name = isinstance(node.value, str) and node.value.count("/") == 1 and node.value.split("/")[0] in OWNERS
        is_name = is_name and node.value != LISTS
        return ast.copy_location(ast.Constant(self._folder), node) if is_name else node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        """The configuration of a run."""
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "DPOExtConfig":
            given = {keyword.arg for keyword in node.keywords}
            settings = SHORT | {name: value for name, value in SMALL.items() if name in given}
            node.keywords = [keyword for keyword in node.keywords if keyword.arg not in settings]
            node.keywords += [ast.keyword(name, ast.Constant(value)) for name, value in settings.items()]
        return node


def prepare(folder: Path, images: bool = False) -> str:
    """Put the tiny model and data into a folder, let `load_dataset` find them there, and return the model's folder.

    Args:
        folder: where to.
        images: whether those of images are needed, too.
    """
    import datasets

    model = tiny.saved_model(str(folder / "model"))
    if images:
        vision_families.saved_model("llava", f"{model}{_OF_IMAGES}")
        vision_families.llava_processor().save_pretrained(f"{model}{_OF_IMAGES}")
    scores: Any = {
        "score_chosen": [8.0, 7.0, 6.5, 9.0] * 2,
        "score_rejected": [6.0, 6.5, 5.0, 3.0] * 2,
        "margin": [1.0] * 8,
    }
    rows = tiny.preferences(8, **scores)
    for name in FILES:
        rows.to_json(str(folder / name))
    load: Any = datasets.load_dataset

    def load_dataset(path: str, *args: Any, split: str | None = None, **kwargs: Any) -> Any:
        if path == LISTS:
            return lists.ultrafeedback()
        if path == f"{model}{_OF_IMAGES}":
            return vision_families.preferences(4)
        if path != model:
            return load(path, *args, split=split, **kwargs)
        return rows if split else datasets.DatasetDict({"train": rows, "test": rows})

    datasets.load_dataset = load_dataset
    return model
