"""Decide which model a run trains, before it is loaded, and hand it to TRL's constructor."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from .. import _trl
from ..errors import InputError
from ..reference.identity.files import loads_files_as_they_are
from ..reference.identity.weights import adapter_hash
from .adapter import SavedAdapter

MERGED_FOLDER = "merged_base"
"""Folder of the output that holds the base with the first adapter merged, on which a new adapter has been trained."""


@dataclass(frozen=True)
class Policy:
    """The model that a run trains."""

    given: Any
    """As the trainer was given it: a name or a model."""
    args: Any
    peft_config: Any = None
    adapter: SavedAdapter | None = None
    """The adapter that the name stands for."""

    @classmethod
    def of(cls, args: Any, model: Any, ref_model: Any, peft_config: Any, quantization: Any) -> Policy:
        """Decide what the trainer's arguments ask for. Nothing is loaded.

        Raises:
            InputError: listing what is wrong with the adapters.
        """
        load = {"trust_remote_code": args.trust_remote_code, **(args.model_init_kwargs or {})}
        if quantization is not None:
            load["quantization_config"] = quantization
        adapter = SavedAdapter.find(model, load)
        if adapter is not None:
            problems = _saved_problems(args, adapter, peft_config)
        else:
            problems = _instance_problems(model, ref_model, peft_config)
            if args.merge_adapter:
                problems.append(_nothing_to_merge(model))
        if args.ref_model_name_or_path and _is_adapter(args.ref_model_name_or_path, args.ref_model_revision):
            problems.append(
                f"ref_model_name_or_path={args.ref_model_name_or_path} is an adapter. Merge it into its base and save "
                "the result, or pass load_reference(PeftModel.from_pretrained(base, adapter)) as ref_model."
            )
        if problems:
            raise InputError(*problems)
        return cls(model, args, peft_config, adapter)

    @property
    def merges(self) -> bool:
        """Whether the named adapter is merged first."""
        return self.adapter is not None and self.args.merge_adapter

    @property
    def started_from(self) -> str | None:
        """The name of the model or adapter that all training changes; None for an instance, and for a new adapter.

        What a new adapter starts from, its own configuration names.
        """
        return self.given if isinstance(self.given, str) and self.peft_config is None else None

    @property
    def instance(self) -> Any:
        """The given model, if it is not a name and all of its weights train."""
        return None if isinstance(self.given, str) or self.is_adapted else self.given

    @property
    def converts(self) -> bool:
        """Whether the given model is made a `PeftModel`, whose frozen copy of the adapter is the reference.

        An adapter that is trained inside a model and has its reference stored is left there.
        """
        model = self.given
        if not _trl.has_adapter_inside(model) or self.peft_config is not None or len(model.peft_config) != 1:
            return False
        if not any(parameter.requires_grad for parameter in model.parameters()):
            return True
        return not self.args.precompute_ref_log_probs and not _trl.outside_trains(model)

    @property
    def is_adapted(self) -> bool:
        """Whether only an adapter trains, so that the policy without it is the reference, or with its frozen copy."""
        continued = self.adapter is not None and not self.merges
        return self.peft_config is not None or continued or self.converts or _trl.is_peft_model(self.given)

    @property
    def adapter_config(self) -> Any:
        """The configuration of the adapter that trains; None where all weights train."""
        if self.peft_config is not None or not self.is_adapted:
            return self.peft_config
        if self.adapter is not None:
            return self.adapter.config
        configs, active = _trl.adapters_of(self.given)
        return configs[active[0]]

    @property
    def processing_class(self) -> Any:
        """The tokenizer or processor that was saved with the adapter; None for the model's own."""
        return self.adapter.processing_class if self.adapter is not None else None

    @property
    def adds_tokens(self) -> bool:
        """Whether the embedding grows when the adapter is loaded."""
        return self.adapter is not None and self.adapter.adds_tokens

    @property
    def described(self) -> Any:
        """The model, or the name of the one to read configurations from."""
        return self.given if self.adapter is None else self.adapter.base

    @property
    def source(self) -> tuple[str | None, str | None]:
        """Name and revision of the files that hold the policy without adapters; None where no files do."""
        load = (self.args.model_init_kwargs or {}) if self.adapter is None else self.adapter.base_load
        if not isinstance(self.given, str) or not loads_files_as_they_are(load):
            return None, None
        if self.adapter is None:
            return self.given, (self.args.model_init_kwargs or {}).get("revision")
        if self.merges or self.adapter.adds_tokens:
            return None, None
        return self.adapter.base, self.adapter.base_revision

    def described_args(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the configuration has the keywords to load the base with: its revision is not the adapter's."""
        load = self.args.model_init_kwargs if self.adapter is None else self._base_load
        return _trl.temporarily(self.args, model_init_kwargs=load)

    @property
    def _base_load(self) -> dict[str, Any]:
        assert self.adapter is not None
        ours = ("trust_remote_code", "quantization_config")
        kept = self.args.model_init_kwargs or {}
        return {key: value for key, value in self.adapter.base_load.items() if key in kept or key not in ours}

    @contextlib.contextmanager
    def constructing(self, copies: bool) -> Iterator[Any]:
        """Yield the model for TRL's constructor, under the patches that the constructor has to run with.

        Args:
            copies: whether a frozen copy of the adapter that trains is to be the reference.
        """
        with contextlib.ExitStack() as patches:
            if self.adapter is not None:
                patches.enter_context(self.described_args())
                patches.enter_context(_trl.loading_policy(lambda base: self._finished(base, patches, copies)))
                yield self.adapter.base
                return
            model = _converted(self.given) if self.converts else self.given
            patches.enter_context(_trl.copied_by_us(model, copies))
            yield model

    def _finished(self, base: Any, patches: contextlib.ExitStack, copies: bool) -> Any:
        """The policy, given its loaded base."""
        adapter = self.adapter
        assert adapter is not None
        if _trl.has_adapter_inside(base):
            model = _converted(base)
        else:
            if adapter.adds_tokens:
                base.resize_token_embeddings(adapter.vocabulary)
            model = _trl.load_adapter(base, adapter.name, **adapter.hub)
        if self.merges:
            merged = model.merge_and_unload()
            merged.requires_grad_(True)
            if self.peft_config is not None:
                self._save_merged(merged)
            return merged
        patches.enter_context(_trl.copied_by_us(model, copies))
        return model

    def _save_merged(self, merged: Any) -> None:
        """Save the base of the new adapter, without which the adapter computes something else, and name it to peft."""
        folder = Path(self.args.output_dir).absolute() / MERGED_FOLDER
        if PartialState().is_main_process:
            merged.save_pretrained(str(folder))
        merged.name_or_path = str(folder)


def _converted(model: Any) -> Any:
    adapted = _trl.as_peft_model(model)
    if adapted is None:
        raise InputError(
            f"The adapter inside the {type(model).__name__} cannot be taken over exactly. Pass "
            "PeftModel.from_pretrained(base, adapter, is_trainable=True) instead."
        )
    return adapted


def _is_adapter(name: str, revision: str | None) -> bool:
    try:
        return SavedAdapter.find(name, {"revision": revision}) is not None
    except InputError:
        return True


def _nothing_to_merge(model: Any) -> str:
    if isinstance(model, str):
        return f"merge_adapter=True has no effect: {model} is not an adapter. Remove it."
    return "merge_adapter=True is for an adapter that is given by name. Pass model.merge_and_unload(), or remove it."


def _saved_problems(args: Any, adapter: SavedAdapter, peft_config: Any) -> list[str]:
    """What is wrong with a start from an adapter by name."""
    problems = adapter.problems(args.merge_adapter)
    if peft_config is not None and not args.merge_adapter:
        problems.append(
            f"{adapter.name} is an adapter, and peft_config (--use_peft) asks for a new one. Remove peft_config "
            "(--use_peft) to train this adapter further, or set merge_adapter=True (--merge_adapter) to train the new "
            "one on top of the merged weights."
        )
    if args.describes_reference and not args.changes_checkpoint:
        chosen = ", ".join(name for name in ("ref_quantization", "ref_dtype") if getattr(args, name))
        problems.append(
            f"{chosen} cannot be used with an adapter as the model ({adapter.name}), since a reference is loaded "
            "without it. Remove it (a frozen copy of the adapter is the reference, and takes little memory), or merge "
            "the adapter, save the result, and start from that."
        )
    if args.merge_adapter and _trl.planned_engine(args).zero_stage == 3:
        problems.append(
            "merge_adapter=True cannot be used under ZeRO-3, which has split the base over processes. Merge it in one "
            "process (PeftModel.merge_and_unload), save the result, and start from that."
        )
    return problems


def _instance_problems(model: Any, ref_model: Any, peft_config: Any) -> list[str]:
    """What is wrong with the adapters of a model in memory."""
    if type(model).__name__ == "PeftMixedModel":
        return [
            "The model is a PeftMixedModel, which TRL takes for a model without adapters. Pass a PeftModel with one "
            "active adapter, or model.merge_and_unload()."
        ]
    inside, adapted = _trl.has_adapter_inside(model), _trl.is_peft_model(model)
    if not inside and not adapted:
        return []
    configs, active = _trl.adapters_of(model)
    if peft_config is not None:
        kind = "a PeftModel" if adapted else f"a {type(model).__name__} with an adapter inside"
        merged = (
            "model.merge_and_unload()" if adapted else "PeftModel.from_pretrained(base, adapter).merge_and_unload()"
        )
        return [
            f"The model is {kind} ({', '.join(configs)}), and peft_config asks for a new one. Pass {merged} to train "
            "the new one on top of the merged weights, or remove peft_config to train the present one further."
        ]
    problems = []
    if len(active) != 1:
        problems.append(
            f"{len(active)} adapters of the model are active ({', '.join(active) or 'none'}), and one can train. Call "
            "model.set_adapter(name)."
        )
    elif inside and len(configs) > 1 and not any(parameter.requires_grad for parameter in model.parameters()):
        problems.append(
            f"The model has several frozen adapters inside ({', '.join(configs)}). Pass the one to train as "
            "PeftModel.from_pretrained(base, adapter, is_trainable=True)."
        )
    if _trl.are_switched_off(model):
        problems.append(
            "Nothing would train: the model's adapters are switched off. Call "
            f"model.{'enable_adapter_layers' if adapted else 'enable_adapters'}() first."
        )
    if adapted and ref_model is None and len(active) == 1:
        problems += _frozen_name_problems(model, configs, active[0])
    return problems


def _frozen_name_problems(model: Any, configs: dict[str, Any], active: str) -> list[str]:
    """Whether an adapter has the name of the frozen copy, and other weights than the adapter that trains."""
    if _trl.FROZEN not in configs or active == _trl.FROZEN or _trl.is_copied(model):
        return []
    if adapter_hash(model, _trl.FROZEN) == adapter_hash(model, active):
        return []
    return [
        f"The model has an adapter named {_trl.FROZEN!r}, which is TRL's name for the reference, and it differs from "
        f"{active!r}, which trains. Call model.delete_adapter({_trl.FROZEN!r}) to have a frozen copy of {active!r} as "
        "the reference, or pass another reference as ref_model."
    ]
