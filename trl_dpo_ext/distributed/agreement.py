"""Work that may fail on one process: all processes learn of the failure before any of them waits for another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate.utils import gather

from .. import _trl
from ..checks.machine import is_out_of_memory

T = TypeVar("T")
_FINE, _OUT_OF_MEMORY, _FAILED = range(3)


class SharedFailure(Exception):
    """One process has failed, and every process raises this.

    Args:
        message: what went wrong, on the first process that failed.
        out_of_memory: whether memory ran out, and nothing else went wrong.
    """

    def __init__(self, message: str, out_of_memory: bool) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory


class Agreement:
    """Lets all processes of a run go on together or fail together.

    Every process makes the same calls in the same order. A call costs one collective of two numbers; with one process
    nothing is sent.

    Args:
        device: of this process, for the collectives.
        processes: of the run.
    """

    def __init__(self, device: torch.device, processes: int) -> None:
        self.device, self.processes = device, processes

    def run(self, work: Callable[[], T]) -> T:
        """Do this process's part of some work in which the processes do not wait for each other.

        Raises:
            SharedFailure: on every process, if the work failed on one of them.
        """
        result: Any = None
        failure: Exception | None = None
        try:
            result = work()
        except SharedFailure:  # all processes are on their way out already
            raise
        except Exception as error:
            failure = error
        self._exchange(False, failure)
        return result

    def run_in_lockstep(self, work: Callable[[Callable[[], None]], T], idle: Callable[[], Any]) -> T:
        """Do this process's part of some work in which processes wait for each other, as sharded forwards do.

        A process that is done, or has failed between two forwards, takes part in the forwards of the others, or ends
        them.

        Args:
            work: is given a function to call right before each forward.
            idle: runs a forward whose result is not needed.

        Raises:
            SharedFailure: as `run`.
        """
        result: Any = None
        failure: Exception | None = None
        try:
            result = work(lambda: self._take_turn())
        except SharedFailure:
            raise
        except Exception as error:
            failure = error
        while self._exchange(False, failure):
            idle()
        return result

    def _take_turn(self) -> None:
        self._exchange(True, None)

    def _exchange(self, goes_on: bool, failure: Exception | None) -> bool:
        """Tell the others how this process is doing; return whether any of them is about to run a forward."""
        if self.processes == 1:
            if failure is not None:
                raise SharedFailure(_message(failure), is_out_of_memory(failure)) from failure
            return goes_on
        state = _FINE if failure is None else _OUT_OF_MEMORY if is_out_of_memory(failure) else _FAILED
        mine = torch.tensor([[int(goes_on), state]], device=self.device)
        going, worst = torch.as_tensor(gather(mine)).amax(dim=0).tolist()
        if worst != _FINE:
            messages = _trl.gather_object(None if failure is None else _message(failure))
            first = next(message for message in messages if message is not None)
            raise SharedFailure(first, worst == _OUT_OF_MEMORY) from failure
        return bool(going)


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n", 1)[0]
