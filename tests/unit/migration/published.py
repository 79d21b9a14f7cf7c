"""What the published preference recipes and examples of other tools set, as tables, with long texts left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TABLES: dict[str, dict[str, dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "configurations.json").read_text(encoding="utf-8")
)
"""Keys and values, by tool and by the file's place in its repository."""

REFUSED = {
    "examples/llama-3/qlora-1b-gdpo.yaml": "rl: gdpo",
    "examples/train_lora/qwen3_lora_kto.yaml": "stage: kto",
    "examples/train/cached_dataset/dpo.sh": "Megatron",
}
"""Those that train something else, or with an engine that has no counterpart, and what the error names."""

TRANSLATED = [(tool, place) for tool, table in TABLES.items() for place in table if place not in REFUSED]
