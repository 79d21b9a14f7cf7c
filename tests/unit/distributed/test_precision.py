"""Log-probs keep their precision, as far as one process shows it; tests/distributed launches the rest."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy

from trl_dpo_ext.distributed import precision


def test_fsdp2_keeps_the_precision_of_outputs_and_computes_in_bf16() -> None:
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16)
    plugin = SimpleNamespace(fsdp_version=2, mixed_precision_policy=policy)
    precision.keep_precision(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)))
    assert plugin.mixed_precision_policy == MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, None)


def test_without_fsdp_there_is_no_policy_to_change() -> None:
    precision.keep_precision(SimpleNamespace(state=SimpleNamespace()))
    plugin = SimpleNamespace(fsdp_version=2, mixed_precision_policy=None)
    precision.keep_precision(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin)))
    assert plugin.mixed_precision_policy is None


def test_reference_log_probs_and_columns_are_kept_from_casts() -> None:
    exact = torch.tensor([-184.514])
    batch = {
        "input_ids": torch.tensor([1]),
        "pixel_values": torch.tensor([0.1]),
        "ref_token_logps": exact,
        "ref_chosen_logps": exact,
        "margin": exact,
    }
    kept, rest = precision.split_uncast(batch, ["margin"], torch.device("cpu"))
    assert set(kept) == {"ref_token_logps", "ref_chosen_logps", "margin"}
    assert set(rest) == {"input_ids", "pixel_values"}
    assert all(value.dtype == torch.float32 for value in kept.values())
