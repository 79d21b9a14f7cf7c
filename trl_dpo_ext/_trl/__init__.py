"""The only package that knows TRL's internals. Every fact it relies on is a *seam* with a test in tests/contract."""

from .batch import COMPLETION_IDS, COMPLETION_MASK, REFERENCE_COLUMNS, TOKEN_IDS, keeps_end, labels_of
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
from .host import Host
from .internals import TrainerInternals
from .loss import PAIR_METRICS, HostLoss, Recorder, default_output_dir, scored_output, scored_tokens
from .models import gather_object, is_peft_model, override_attention_mask, scatter_to_batch, with_head
from .patching import evaluation_mode, temporarily
from .reference import free_memory
from .renamed import rename_checkpointing, renamed_in_peft
from .reporting import trackers

__all__ = [
    "COMPLETION_IDS",
    "COMPLETION_MASK",
    "PAIR_METRICS",
    "REFERENCE_COLUMNS",
    "TOKEN_IDS",
    "Host",
    "HostLoss",
    "Recorder",
    "TrainerInternals",
    "default_output_dir",
    "evaluation_mode",
    "free_memory",
    "gather_object",
    "is_peft_model",
    "keeps_end",
    "labels_of",
    "no_model_hash",
    "no_reference_model",
    "override_attention_mask",
    "placed_reference",
    "reference_entropy",
    "rename_checkpointing",
    "renamed_in_peft",
    "scatter_to_batch",
    "scored_output",
    "scored_tokens",
    "stub_policy",
    "temporarily",
    "trackers",
    "trainer_arguments",
    "with_head",
    "without_devices",
    "without_losses",
]
