"""Runs the Python of a page in a child process, and compares what it promises."""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import os
import re
import signal
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.docs.blocks import Block
from tests.docs.stand_ins import FILES, IMAGES, OWNERS, StandIns, prepare

PROMISE = re.compile(r"#\s*(?:->\s*(.+)|(tensor\(.+))$")
LONGEST = 300
"""Seconds after which a page is given up."""


def run_blocks(blocks: Sequence[Block], folder: Path) -> str:
    """Run blocks in one namespace, in a child process; returns what went wrong, or nothing."""
    report = folder / "report.txt"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.alarm(LONGEST)
            report.write_text(_in_child(blocks, folder))
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if status:
        return f"the process ended with {status} (a signal if below 256): {', '.join(map(str, blocks))}"
    return report.read_text()


def _in_child(blocks: Sequence[Block], folder: Path) -> str:
    import torch

    torch.set_num_threads(1)
    os.chdir(folder)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    at = None
    try:
        loads = any(name in block.text for block in blocks for name in (*OWNERS, *FILES))
        images = any(name in block.text for block in blocks for name in IMAGES)
        model = prepare(folder, images) if loads or images else ""
        for block in blocks:
            at = block
            problem = _doctest(block, namespace) if block.language == "pycon" else _run(block, namespace, model)
            if problem:
                return problem
    except BaseException:
        return f"{at}:\n{traceback.format_exc()}"
    return ""


def _run(block: Block, namespace: dict[str, Any], model: str) -> str:
    lines = block.text.splitlines()
    for statement in ast.parse(block.text, filename=str(block)).body:
        promise = PROMISE.search(lines[(statement.end_lineno or 1) - 1])
        promised = (promise[1] or promise[2]).strip() if promise else None
        got = _execute(statement, namespace, model, block)
        if promised is not None and got != promised:
            return f"{block}: {ast.unparse(statement)} gives {got!r}, not {promised!r}"
    return ""


def _execute(statement: ast.stmt, namespace: dict[str, Any], model: str, block: Block) -> str:
    """Run one statement; returns what it printed, or the repr of its value."""
    statement = StandIns(model).visit(statement)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if isinstance(statement, ast.Expr):
            code = ast.fix_missing_locations(ast.Expression(statement.value))
            value = eval(compile(code, str(block), "eval"), namespace)
        else:
            code = ast.fix_missing_locations(ast.Module([statement], []))
            value = exec(compile(code, str(block), "exec"), namespace)
    return printed.getvalue().strip() or repr(value)


def _doctest(block: Block, namespace: dict[str, Any]) -> str:
    test = doctest.DocTestParser().get_doctest(block.text, namespace, str(block), block.page, block.line)
    said: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    runner.run(test, out=said.append, clear_globs=False)
    namespace.update(test.globs)
    return "".join(said) if runner.failures else ""
