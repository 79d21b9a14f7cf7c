"""cuDNN's attention is turned off where its gradients can be NaN, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.torch_version import TorchVersion

from tests.support import architectures, runs
from trl_dpo_ext import trainer as trainer_module
from trl_dpo_ext.forward.cudnn_attention import avoid_cudnn_attention

CUDA = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def hopper(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An H100 with the versions for which NaN gradients were measured."""
    machine(monkeypatch)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


def machine(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0), version: str = "2.11.0", cudnn: Any = 91900
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    monkeypatch.setattr(torch.version, "hip", None)


def avoided(case: str = "llama", dtype: torch.dtype = torch.bfloat16, packed: bool = False, **where: Any) -> bool:
    found = avoid_cudnn_attention(
        architectures.build(case), where.get("device", CUDA), dtype, packed, announce=where.get("announce", False)
    )
    assert found is not torch.backends.cuda.cudnn_sdp_enabled()
    return found


def test_padded_batches_in_half_precision_are_kept_off_it(caplog) -> None:
    assert avoided(announce=True)
    assert "Turned off cuDNN's attention" in caplog.text
    assert "enable_cudnn_sdp(True)" in caplog.text


def test_other_processes_say_nothing(caplog) -> None:
    assert avoided(dtype=torch.float16)
    assert not caplog.text


@pytest.mark.parametrize("version", ["2.11.0+cu130", "2.13.0", "2.14.1", "3.0.0"])
@pytest.mark.parametrize("capability", [(9, 0), (10, 0), (10, 3)])
def test_no_later_version_is_trusted(monkeypatch, version: str, capability: tuple[int, int]) -> None:
    machine(monkeypatch, capability, version, cudnn=92600)
    assert avoided()


@pytest.mark.parametrize(
    "other",
    [
        {"capability": (8, 0)},
        {"capability": (8, 9)},
        {"capability": (12, 0)},
        {"version": "2.10.0"},
        {"version": "2.8.0+cu128"},
        {"cudnn": 91002},
        {"cudnn": None},
    ],
    ids=str,
)
def test_where_it_is_not_preferred_it_stays(monkeypatch, other: dict[str, Any]) -> None:
    machine(monkeypatch, **other)
    assert not avoided()


def test_where_attention_has_no_mask_or_another_kernel_it_stays() -> None:
    assert not avoided(device=torch.device("cpu"))
    assert not avoided(dtype=torch.float32)  # cuDNN's attention is for half precision
    assert not avoided("llama-eager")
    assert not avoided(packed=True)


@pytest.mark.parametrize("case", ["gemma3", "mixtral-window", "qwen3-window"])
def test_windows_have_masks_in_packed_rows_too(case: str) -> None:
    assert avoided(case, packed=True)


def test_the_user_has_the_last_word() -> None:
    torch.backends.cuda.enable_cudnn_sdp(False)
    assert not avoid_cudnn_attention(architectures.build("llama"), CUDA, torch.bfloat16, False, announce=True)


@pytest.mark.parametrize("flags", [{}, {"share_prompt": True}], ids=str)
def test_a_trainer_asks_with_what_it_trains(monkeypatch, tmp_path: Any, flags: dict[str, Any]) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(trainer_module, "avoid_cudnn_attention", lambda *given: asked.append(given))
    run = runs.trainer(tmp_path, bf16=True, **flags)
    ((model, device, dtype, packed, announce),) = asked
    assert model is run.host.causal_model(run.model)
    assert (device, dtype, packed, announce) == (run.accelerator.device, torch.bfloat16, bool(flags), True)
