"""Lines of other libraries about parts that a run does not use are dropped; ours stand beside progress bars."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from trl_dpo_ext.logging_setup import mute_import_messages, show_messages

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


def test_a_progress_bar_makes_room_for_a_message_and_is_drawn_again(capsys: pytest.CaptureFixture[str]) -> None:
    show_messages(SimpleNamespace(log_level="passive", should_log=True, disable_tqdm=False))
    with tqdm(total=2, file=sys.stderr, ascii=True, ncols=60):
        capsys.readouterr()
        logging.getLogger("trl_dpo_ext.watch").info("a message")
        shown = capsys.readouterr()
    assert shown.out == "a message\n"
    assert shown.err.startswith(f"\r{' ' * 40}")
    assert "0/2" in shown.err
