"""What `Host` reads of a trainer: the attributes of TRL's and transformers' trainers that this package leans on."""

from __future__ import annotations

from typing import Any, Protocol


class TrainerInternals(Protocol):
    """Attributes of `trl.DPOTrainer`, most of them undocumented. tests/contract has a test for each use."""

    args: Any
    model: Any
    """The policy, as the user gave it or with its adapter."""
    model_wrapped: Any
    """The policy as the distributed engine has wrapped it; `model` before training."""
    ref_model: Any
    """The live reference model. None when the policy is its own reference, and when no reference is needed."""
    optimizer: Any
    """As the user gave it, or None; from the start of training on the one that steps."""
    accelerator: Any
    processing_class: Any
    state: Any
    callback_handler: Any
    train_dataset: Any
    eval_dataset: Any
    data_collator: Any
    deepspeed: Any
    is_fsdp_enabled: bool
    is_deepspeed_enabled: bool
    precompute_ref_logps: bool
    f_divergence_type: str
    _metrics: Any
    _total_train_tokens: int
    _tp_size: Any
    _signature_columns: Any
    _is_vision_dataset: bool
    _tokenizer: Any

    def log(self, logs: dict[str, float]) -> None: ...

    def evaluate(self, eval_dataset: Any = None, *, metric_key_prefix: str = "eval") -> Any: ...

    def add_callback(self, callback: Any) -> None: ...

    def remove_callback(self, callback: Any) -> Any: ...

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any: ...

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any: ...

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any: ...

    def _prepare_inputs(self, inputs: Any) -> Any: ...

    def _set_signature_columns_if_needed(self) -> None: ...
