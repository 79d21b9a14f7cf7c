"""The only package that knows TRL's internals. Every fact it relies on is a *seam* with a test in tests/contract."""

from .adapter_copy import adapter_pairs
from .adapters import (
    FROZEN,
    NOT_THE_FORWARD,
    adapter_kind,
    adapters_of,
    adapts_head,
    are_switched_off,
    as_peft_model,
    has_adapter_inside,
    load_adapter,
    loaded_from_top,
    loading_policy,
    merged_adapters,
    missing_targets,
    outside_trains,
    saved_on_top,
    wraps_layer,
)
from .attention import has_interface, replace_attention
from .batch import (
    COMPLETION_IDS,
    COMPLETION_MASK,
    IMAGE_COLUMNS,
    REFERENCE_COLUMNS,
    TOKEN_IDS,
    column_names,
    image_columns,
    is_tokenized,
    keeps_end,
    labels_of,
    reads_token_ids,
)
from .borrowed import borrowed
from .compiled import without_compilation
from .constructor import (
    no_model_hash,
    no_reference_model,
    placed_reference,
    reference_entropy,
    stub_policy,
    trainer_arguments,
    without_devices,
    without_losses,
)
from .engine import Engine, planned_engine
from .flex_graphs import raise_flex_limit, warn_at_flex_limit
from .frozen_copy import copied_by_us, is_copied, start_kept, without_frozen_copy
from .generation import Speaker
from .host import Host
from .initializations import initialization_warnings
from .internals import TrainerInternals
from .json_text import typed_values
from .loss import HostLoss, Recorder, default_output_dir, scored_output, scored_tokens
from .metrics import COUNTERS, LOGGED, PAIR_METRICS, TOKEN_METRICS
from .modalities import outside_language_model, takes_text_alone
from .model_card import badges, card_made_by, citation_of_trl, quick_start
from .models import (
    gather_object,
    is_peft_model,
    override_attention_mask,
    scatter_to_batch,
    with_head,
    with_own_forward,
    without_adapter,
)
from .patching import evaluation_mode, temporarily
from .preparation import (
    is_template_error,
    kept_rows,
    pair_collator,
    preparation,
    prints_date,
    prompt_tokens,
    refused_rows,
    text_tokenizer,
    tokenized_with_images,
    tokenizer_of,
    tokens_kept,
)
from .reference import free_memory
from .refusals import late_refusals
from .renamed import rename_checkpointing, renamed_in_peft
from .reporting import tensorboard_writer, trackers
from .second_adapter import SecondAdapter, SyncRefModelCallback, without_sync

__all__ = [
    "COMPLETION_IDS",
    "COMPLETION_MASK",
    "COUNTERS",
    "FROZEN",
    "IMAGE_COLUMNS",
    "LOGGED",
    "NOT_THE_FORWARD",
    "PAIR_METRICS",
    "REFERENCE_COLUMNS",
    "TOKEN_IDS",
    "TOKEN_METRICS",
    "Engine",
    "Host",
    "HostLoss",
    "Recorder",
    "SecondAdapter",
    "Speaker",
    "SyncRefModelCallback",
    "TrainerInternals",
    "adapter_kind",
    "adapter_pairs",
    "adapters_of",
    "adapts_head",
    "are_switched_off",
    "as_peft_model",
    "badges",
    "borrowed",
    "card_made_by",
    "citation_of_trl",
    "column_names",
    "copied_by_us",
    "default_output_dir",
    "evaluation_mode",
    "free_memory",
    "gather_object",
    "has_adapter_inside",
    "has_interface",
    "image_columns",
    "initialization_warnings",
    "is_copied",
    "is_peft_model",
    "is_template_error",
    "is_tokenized",
    "keeps_end",
    "kept_rows",
    "labels_of",
    "late_refusals",
    "load_adapter",
    "loaded_from_top",
    "loading_policy",
    "merged_adapters",
    "missing_targets",
    "no_model_hash",
    "no_reference_model",
    "outside_language_model",
    "outside_trains",
    "override_attention_mask",
    "pair_collator",
    "placed_reference",
    "planned_engine",
    "preparation",
    "prints_date",
    "prompt_tokens",
    "quick_start",
    "raise_flex_limit",
    "reads_token_ids",
    "reference_entropy",
    "refused_rows",
    "rename_checkpointing",
    "renamed_in_peft",
    "replace_attention",
    "saved_on_top",
    "scatter_to_batch",
    "scored_output",
    "scored_tokens",
    "start_kept",
    "stub_policy",
    "takes_text_alone",
    "temporarily",
    "tensorboard_writer",
    "text_tokenizer",
    "tokenized_with_images",
    "tokenizer_of",
    "tokens_kept",
    "trackers",
    "trainer_arguments",
    "typed_values",
    "warn_at_flex_limit",
    "with_head",
    "with_own_forward",
    "without_adapter",
    "without_compilation",
    "without_devices",
    "without_frozen_copy",
    "without_losses",
    "without_sync",
    "wraps_layer",
]
