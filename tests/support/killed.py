"""Trains tiny runs that are killed at a step: python -m tests.support.killed FOLDER STEP LOSS..."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tests.support import runs, tiny


def settings(loss: str) -> dict[str, Any]:
    """What the killed run, the one that goes on with it, and the whole one have in common."""
    data = tiny.preferences(8)
    saves = {"save_strategy": "steps", "save_steps": 1, "max_steps": 6, "save_total_limit": 2}
    return {"loss_type": loss, "ref_model": tiny.model(1), "train_dataset": data, "learning_rate": 3e-3, **saves}


class Kill(TrainerCallback):
    """Ends the process before the step is saved, as the kernel does when memory runs out."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def main(folder: str, step: str, *losses: str) -> None:
    for loss in losses:
        child = os.fork()  # before any thread of torch has started
        if not child:
            runs.trained(Path(folder) / loss, callbacks=[Kill(int(step))], **settings(loss))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"{loss}: not killed, but ended with {status}")


if __name__ == "__main__":
    main(*sys.argv[1:])
