"""Lines of other libraries about parts that a run does not use are dropped, and no others."""

from __future__ import annotations

import logging

import pytest

from trl_dpo_ext.logging_setup import mute_import_messages

KERNEL = "Failed to load CPU gemm_4bit_forward from kernels-community: %s. Please make sure"
CPU = "Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it."


@pytest.mark.parametrize(
    ("name", "text", "launched", "shown"),
    [
        ("bitsandbytes.backends.cpu.ops", KERNEL, False, False),
        ("bitsandbytes.backends.cpu.ops", "Failed to load another kernel: %s", False, True),
        ("bitsandbytes.other", KERNEL, False, True),
        ("DeepSpeed", CPU, False, False),
        ("DeepSpeed", CPU, True, True),
        ("DeepSpeed", "async_io is not available", False, True),
    ],
)
def test_two_lines_are_dropped(
    name: str, text: str, launched: bool, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", str(launched).lower())
    mute_import_messages()
    mute_import_messages()
    logger = logging.getLogger(name)
    record = logger.makeRecord(name, logging.WARNING, "file", 1, text, ("reason",) if "%s" in text else (), None)
    assert bool(logger.filter(record)) is shown
