"""Builds the card of a run: metadata that the hub accepts, and the text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from huggingface_hub import ModelCard

from .. import _trl
from .losses import active_options, citations, losses_table, paper_link, shown_losses
from .names import Named, last_part
from .origin import Origin
from .reference import reference_lines
from .training import adapter, base_model, data_lines, data_names, training_lines, version_lines

PACKAGE = "trl-dpo-ext"


def build_card(
    trainer: Any,
    origin: Origin | None,
    resumed_from: str | None,
    datasets: Any,
    generate: Callable[..., ModelCard],
    facts: Mapping[str, Any],
) -> ModelCard:
    """The card of a trainer's run, made of TRL's.

    Args:
        trainer: the trainer.
        origin: how the command line started it; None from Python.
        resumed_from: name of the checkpoint that the run was resumed from.
        datasets: names that the caller of `create_model_card` gave, or None.
        generate: TRL's `generate_model_card`.
        facts: the keywords that TRL gives it.
    """
    base, data = base_model(trainer), data_names(trainer, datasets, origin)
    name = facts["model_name"] or _own_name(trainer.args)
    changed = {
        "model_name": name,
        "hub_model_id": facts["hub_model_id"] or trainer.args.hub_model_id or name,
        "base_model": base.name if base and base.on_hub else None,
        "dataset_name": None,
        "tags": sorted({*map(str, facts["tags"]), PACKAGE}),
    }
    card = generate(**{**facts, **changed})
    _complete_metadata(card.data, trainer, base, data)
    card.text = "\n\n".join(
        [
            f"\n# Model Card for {name}",
            _introduction(base, data),
            _trl.quick_start(card),
            "## Training",
            *_trl.badges(card),
            *_training(trainer, data, origin, resumed_from),
            "## Citations",
            *_citations(trainer, card, facts),
        ]
    )
    return card


def _own_name(args: Any) -> str:
    return last_part(args.hub_model_id or str(args.output_dir))


def _complete_metadata(data: Any, trainer: Any, base: Named | None, datasets: list[Named]) -> None:
    """Name the data, which the hub takes as ids alone, and for an adapter what PEFT's own card would say."""
    data.datasets = list(dict.fromkeys(one.name for one in datasets if one.on_hub)) or None
    config = adapter(trainer.model)
    if config is None:
        return
    data.library_name = "peft"
    data.tags = sorted({*data.tags, _trl.adapter_kind(config).lower(), "transformers"})
    if base is not None and base.on_hub:
        data.tags = sorted({*data.tags, f"base_model:adapter:{base.name}"})
    if str(getattr(config.task_type, "value", config.task_type)) == "CAUSAL_LM":
        data.pipeline_tag = "text-generation"


def _introduction(base: Named | None, data: list[Named]) -> str:
    trained = f"a fine-tuned version of {base.markdown()}" if base else "fine-tuned from a model that was in memory"
    on = f", trained on {', '.join(one.markdown() for one in data)}" if data else ""
    return (
        f"This model is {trained}{on}.\nIt was trained with {PACKAGE}, an extension of "
        "[TRL](https://github.com/huggingface/trl)."
    )


def _training(trainer: Any, data: list[Named], origin: Origin | None, resumed_from: str | None) -> list[str]:
    options = active_options(trainer.args)
    shown = [f"- option `{option}`" + (f" ({paper_link(paper)})" if paper else "") for option, paper in options.items()]
    sections = {
        "Losses": [*losses_table(shown_losses(trainer.mixture, trainer.args)), *shown],
        "Reference": reference_lines(trainer),
        "Data": data_lines(trainer, data),
        "Procedure": training_lines(trainer, resumed_from),
        "Launch": _launch(origin),
        "Framework versions": version_lines(getattr(trainer.model.config, "quantization_config", None) is not None),
    }
    return ["\n".join([f"### {heading}", "", *lines]) for heading, lines in sections.items()]


def _launch(origin: Origin | None) -> list[str]:
    if origin is None:
        return ["From Python, with `trl_dpo_ext.DPOExtTrainer`."]
    recipe = [f"Recipe: {origin.recipe}", ""] if origin.recipe else []
    return [*recipe, "```sh", origin.command, "```"]


def _citations(trainer: Any, card: ModelCard, facts: Mapping[str, Any]) -> list[str]:
    losses, options = shown_losses(trainer.mixture, trainer.args), active_options(trainer.args)
    cited = citations(losses, options, facts["paper_id"], facts["trainer_citation"])
    return [*(["\n".join(cited)] if cited else []), _trl.citation_of_trl(card)]
