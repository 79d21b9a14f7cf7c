"""Text of the code as Markdown: docstrings, help texts, and links."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SECTION = re.compile(r"^(Args|Returns|Raises|References|Note|Notes|Example|Examples):$", re.MULTILINE)
_CODE = re.compile(r"(`[^`\n]+`)")
_PAPER = re.compile(r"arXiv (\d{4}\.\d{5})")


def sections(docstring: str) -> dict[str, str]:
    """Take a docstring apart: its text under "", and the text of each section under its name, without indentation."""
    parts = _SECTION.split(docstring)
    found = {"": parts[0].strip("\n")}
    for name, text in zip(parts[1::2], parts[2::2], strict=True):
        found[name] = "\n".join(line.removeprefix("    ") for line in text.strip("\n").splitlines())
    return found


def escaped(text: str) -> str:
    """Return prose that Markdown shows as it is, except for code between single backticks and arXiv ids.

    >>> escaped("a < b, `x < y`, arXiv 2305.18290")
    'a \\\\< b, `x < y`, [arXiv 2305.18290](https://arxiv.org/abs/2305.18290)'
    """
    pieces = _CODE.split(text)
    pieces[::2] = (re.sub(r"([<*\[\]$|])", r"\\\1", piece) for piece in pieces[::2])
    return _PAPER.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", "".join(pieces))


def prose(text: str) -> str:
    """Return a docstring's text: paragraphs, and its indented formulas as blocks."""
    blocks = []
    for block in re.split(r"\n\n+(?=\S)|\n\n+(?=    )", text.strip("\n")):
        if block.startswith("    "):
            lines = "\n".join(line.removeprefix("    ") for line in block.splitlines())
            blocks.append(f"```{{code-block}} text\n:class: formula\n\n{lines}\n```")
        else:
            blocks.append(escaped(block))
    return "\n\n".join(blocks)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; a pipe in a cell must be escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def definition(name: str, facts: str, text: str, target: str) -> str:
    """Return an entry of a definition list, which can be linked to.

    Args:
        name: shown as code.
        facts: behind the name, such as type and default; Markdown.
        text: Markdown in one line.
        target: what a link names.
    """
    return f"[`{name}`]{{#{target}}} {facts}\n: {text or '(no description)'}\n"


def one_line(text: str) -> str:
    """Return a help text of several lines in one, as `escaped` prose; backticks without a partner are dropped."""
    text = " ".join(text.split())
    return escaped(text if text.count("`") % 2 == 0 else text.replace("`", ""))
