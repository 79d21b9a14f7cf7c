"""Configurations of alignment-handbook, and of older versions of TRL, whose keys it shares."""

from __future__ import annotations

from collections.abc import Mapping

from ..legacy_keys import LEGACY_KEYS
from .data import Source, hold_out, put_sources
from .draft import Draft, Rule, Tool, by_length, flash_attention, gone, renamed, warmup
from .losses import put_loss, put_smoothing

_TOGETHER = frozenset(
    {
        *("dataset_mixer", "dataset_mixture", "dataset_splits", "dataset_configs", "dataset_name", "dataset_config"),
        *("dataset_train_split", "dataset_test_split"),
        *("beta", "loss_type", "loss_weights", "label_smoothing", "rpo_alpha", "orpo_alpha", "cpo_alpha"),
        *("simpo_gamma", "gamma_beta_ratio", "trainer"),
    }
)


_RENAMED = "was renamed to "


def _successor(said: str) -> Rule:
    """The rule of a key of which an error says this: its new name, or why it is gone."""
    name = said.removeprefix(_RENAMED)
    return renamed(name) if said.startswith(_RENAMED) and " " not in name else gone(said)


_RULES: dict[str, Rule] = {
    **{key: _successor(said) for key, said in LEGACY_KEYS.items()},
    "use_flash_attention_2": flash_attention,
    "warmup_ratio": warmup,
    "max_prompt_length": gone(
        "prompts are not cut here: max_length counts prompt and answer, and a row whose prompt fills it is dropped and "
        "counted"
    ),
    "overwrite_output_dir": gone("output_dir is always written to", unless=(True,)),
    "chat_template": gone("set it on the tokenizer that lies in the model's folder"),
    "group_by_length": by_length,
    "test_split_size": hold_out,
    "hub_model_revision": gone("TRL has no such option; set it when pushing"),
    "auto_insert_empty_system_msg": gone("the chat template decides about the system message"),
    "ref_model": renamed("ref_model_name_or_path"),
}


_DEFAULTS = {"gradient_checkpointing": False, "bf16": False}


def _finish(draft: Draft) -> None:
    _put_data(draft)
    given = draft.given
    trainer = str(given.get("trainer", "dpo")).lower()
    likelihood = given.get("rpo_alpha")
    name = given.get("loss_type", "sigmoid")
    if trainer == "orpo":
        put_loss(draft, "orpo", beta=given.get("beta", 0.1))
        return
    if trainer in ("cpo", "simpo") or name == "simpo":
        _put_cpo(draft, "simpo" if trainer == "simpo" else name)
        return
    if isinstance(name, (list, tuple)):
        draft.put("loss_type", list(name))
        for key in ("beta", "loss_weights", "label_smoothing"):
            if key in given:
                draft.put(key, given[key])
        return
    put_loss(draft, name, beta=given.get("beta"), likelihood=likelihood)
    if "label_smoothing" in given and name != "sigmoid":
        draft.put("label_smoothing", given["label_smoothing"])
    put_smoothing(draft, given.get("label_smoothing"))


def _put_cpo(draft: Draft, name: str) -> None:
    """TRL's CPO trainer, in which SimPO has a likelihood term too unless cpo_alpha is 0; SimPO's own has none."""
    given = draft.given
    is_simpo = name == "simpo"
    has_none = is_simpo and "gamma_beta_ratio" in given  # a key of SimPO's authors
    put_loss(
        draft,
        "simpo" if is_simpo else "cpo",
        beta=given.get("beta", 2.0 if is_simpo else 0.1),
        gamma=given.get("simpo_gamma"),
        likelihood=given.get("cpo_alpha", None if has_none else 1.0),
    )
    if is_simpo and "gamma_beta_ratio" in given:
        draft.put("simpo_gamma_beta_ratio", given["gamma_beta_ratio"])


def _put_data(draft: Draft) -> None:
    given = draft.given
    mixture = given.get("dataset_mixture")
    splits = [str(split) for split in given.get("dataset_splits") or ()]
    train, test = ([split for split in splits if word in split] for word in ("train", "test"))
    if isinstance(mixture, Mapping):
        sources = [
            Source(each["id"], each.get("split"), each.get("config"), each.get("columns"), each.get("weight"))
            for each in mixture.get("datasets", ())
        ]
        if mixture.get("test_split_size"):
            draft.put("test_split_size", mixture["test_split_size"])
        if mixture.get("seed", 42) != draft.keys.get("seed", 42):
            draft.differs(f"Rows were mixed with the seed {mixture['seed']}; here `seed` shuffles everything.")
        put_sources(draft, sources)
    elif isinstance(given.get("dataset_mixer"), Mapping):
        names = given.get("dataset_configs") or [None] * len(given["dataset_mixer"])
        sources = [
            Source(path, train[0] if train else None, name, None, share)
            for (path, share), name in zip(given["dataset_mixer"].items(), names, strict=False)
        ]
        put_sources(draft, sources, test[0] if test else None)
    else:
        for key in ("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split"):
            if key in given:
                draft.put(key, given[key])


def is_orpo(location: str) -> bool:
    """Whether a recipe's place says that alignment-handbook's script for ORPO runs it: its keys do not."""
    return "orpo" in location.lower().replace("\\", "/").split("/")


HANDBOOK = Tool(
    "handbook",
    "alignment-handbook",
    frozenset({"dataset_mixer", "dataset_mixture", "dataset_splits", "auto_insert_empty_system_msg"}),
    _RULES,
    _TOGETHER,
    _finish,
    _DEFAULTS,
)
TRL = Tool(
    "trl",
    "an older TRL",
    frozenset({"max_prompt_length", "max_completion_length", "rpo_alpha", "torch_dtype", "warmup_ratio"}),
    _RULES,
    _TOGETHER,
    _finish,
    _DEFAULTS,
)
