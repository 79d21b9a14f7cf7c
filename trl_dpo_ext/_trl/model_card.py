"""How TRL makes a model card, and where its text can be replaced."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from huggingface_hub import ModelCard
from trl.trainer import base_trainer

from .patching import temporarily

MakeCard = Callable[[Callable[..., ModelCard], Mapping[str, Any]], ModelCard]
"""Takes TRL's `generate_model_card` and the keywords that TRL calls it with; returns the card to save."""


def card_made_by(make: MakeCard) -> AbstractContextManager[None]:
    """Save what `make` returns in place of TRL's model card.

    Seam: `create_model_card` calls `generate_model_card`, as found in its module, once and with keywords alone
    (`base_model`, `model_name`, `hub_model_id`, `dataset_name`, `tags`, `trainer_citation`, `paper_id`, ...), and saves
    the card that it returns to `README.md` in `args.output_dir`.
    """
    generate = base_trainer.generate_model_card
    return temporarily(base_trainer, generate_model_card=lambda **facts: make(generate, facts))


def quick_start(card: ModelCard) -> str:
    """How to use the model: the code of TRL's card, with its heading; empty if there is no such section.

    Seam: TRL's template has the section "## Quick start".
    """
    found = re.search(r"^## Quick start\n.*?(?=^## )", card.text, re.DOTALL | re.MULTILINE)
    return found[0].strip() if found else ""


def badges(card: ModelCard) -> list[str]:
    """Links to the run on Weights & Biases, Trackio and Comet, as TRL's card shows them.

    Seam: each is a line that starts as a linked image, `[<img `.
    """
    return [line.strip() for line in card.text.splitlines() if line.startswith("[<img ")]


def citation_of_trl(card: ModelCard) -> str:
    """How to cite TRL, with its sentence; empty if the card does not say.

    Seam: TRL's template ends with "Cite TRL as:" and BibTeX.
    """
    _, found, citation = card.text.partition("Cite TRL as:")
    return f"{found}\n\n{citation.strip()}" if found else ""
