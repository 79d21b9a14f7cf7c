"""Two versions of the package in one measurement: each is imported in a child process, and they take turns."""

from __future__ import annotations

import importlib
import multiprocessing
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Checkout:
    """An object in a process whose package is that of a folder. The process rests unless it is called.

    Args:
        folder: a checkout of this repository.
        module: of the benchmarks beside this file. It must not import the package when it is imported.
        name: of the class in it.
        arguments: the class is made with.
    """

    def __init__(self, folder: Path, module: str, name: str, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, str(folder), module, name, arguments), daemon=True)
        self._process.start()
        self._answer()

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method there, and wait for what it returns.

        Raises:
            RuntimeError: the method raised; the message is its traceback.
        """
        self._here.send((method, arguments))
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._here.close()
        self._process.join()

    def _answer(self) -> Any:
        failed, value = self._here.recv()
        if failed:
            raise RuntimeError(value)
        return value


def _serve(calls: Connection, folder: str, module: str, name: str, arguments: tuple[Any, ...]) -> None:
    sys.path[:0] = [folder, str(HERE)]
    try:
        import trl_dpo_ext

        assert Path(trl_dpo_ext.__file__).is_relative_to(folder), trl_dpo_ext.__file__
        served = getattr(importlib.import_module(module), name)(*arguments)
        calls.send((False, None))
        while True:
            method, given = calls.recv()
            calls.send((False, getattr(served, method)(*given)))
    except EOFError:
        return
    except Exception:
        calls.send((True, traceback.format_exc()))
