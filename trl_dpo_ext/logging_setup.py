"""What a run prints: the package's loggers, shown on standard output unless the run is asked to be silent."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm


class _StandardOutput(logging.StreamHandler):
    """A handler for whatever `sys.stdout` is when a message comes."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(message)s"))

    @property
    def stream(self) -> Any:
        return sys.stdout

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):  # progress bars make room, and are drawn again
            super().emit(record)


def show_messages(args: Any) -> None:
    """Show the package's messages as the run's configuration asks for.

    Args:
        args: training arguments. `log_level` sets the lowest level shown (its default, "passive", shows information),
            and `disable_tqdm` hides information, as it hides progress bars.
    """
    logger = logging.getLogger(__package__)
    if not logger.handlers:
        logger.addHandler(_StandardOutput())
        logger.propagate = False
    passive = args.log_level == "passive" and args.should_log
    level = logging.INFO if passive else args.get_process_log_level()
    logger.setLevel(max(level, logging.WARNING) if args.disable_tqdm else level)


def is_unicode(encoding: str | None) -> bool:
    """Whether an encoding of a stream has every character; True where it is not known.

    >>> is_unicode("UTF-8"), is_unicode("cp1252")
    (True, False)
    """
    return not encoding or encoding.lower().startswith("utf")


# Lines that other libraries log when they are imported, about parts that the run does not use: logger -> its start.
_ABOUT_UNUSED_PARTS = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward from kernels-community",
    "DeepSpeed": "Setting accelerator to CPU.",
}


def mute_import_messages() -> None:
    """Drop the lines that bitsandbytes and DeepSpeed log when they are imported, unless DeepSpeed was launched.

    Everything else that they log is shown. Call this before they are imported.
    """
    for name in _ABOUT_UNUSED_PARTS:
        logging.getLogger(name).addFilter(_is_shown)  # which is added once


def _is_shown(record: logging.LogRecord) -> bool:
    launched = record.name == "DeepSpeed" and os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"
    return launched or not record.getMessage().startswith(_ABOUT_UNUSED_PARTS[record.name])


@contextlib.contextmanager
def muted(logger: str, start: str) -> Iterator[None]:
    """Keep a logger from saying what begins with `start`, inside the block."""

    def passes(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(start)

    logging.getLogger(logger).addFilter(passes)
    try:
        yield
    finally:
        logging.getLogger(logger).removeFilter(passes)
