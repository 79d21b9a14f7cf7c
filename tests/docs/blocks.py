"""The code blocks of README and docs, and what their authors say about them.

Every block runs, or is parsed by what would read it; which, depends on its language:

- `python`: the blocks of a page run one after the other, as in a notebook, in a process of their own and an empty folder. Models
  and datasets of the Hub are replaced by tiny ones, and training takes one step (stand_ins.py). A page that trains is `slow`.
  An expression that ends in `# -> TEXT` must have TEXT as its repr; a call that ends in it must print TEXT.
- `pycon`: checked by doctest, in the same namespace.
- `sh`: each line of `trl-dpo-ext`, `python -m trl_dpo_ext` and `accelerate launch` is parsed by the parser of its command, every
  flag and value; `make` and `pip install` must name targets and extras that exist.
- `yaml`: parsed strictly, as `train --config` does; a configuration of accelerate's is loaded by accelerate.
- `json`, `toml`: parsed.
- `text` or no language: what a program prints; not checked.

A comment on the line before the block says more; it shows nowhere:

- `<!-- not run: REASON -->`: the block is not run, for a reason that the reader of the source can check.
- `<!-- file: NAME -->`: the block is that file, which the blocks behind it may name. Without it, a file that a command reads and
  that no block names stands for the page's last configuration before it.
- `<!-- flags: COMMAND -->`: each line is flags of that command.
- `<!-- tool: NAME -->`: a configuration of another tool, which `trl-dpo-ext migrate --from NAME` must translate.
- `<!-- slow -->`: the page takes more than half a second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
LANGUAGES = ("python", "pycon", "sh", "yaml", "json", "toml", "text", "")
FENCE = re.compile(
    r"(?P<comment>^[ ]*<!--[^\n]*-->\n\n?)?^(?P<indent>[ ]*)(?P<fence>`{3,})(?P<info>[^`\n]*)\n(?P<text>.*?)^[ ]*(?P=fence)[ ]*$",
    re.MULTILINE | re.DOTALL,
)
MARK = re.compile(r"<!-- (not run|file|flags|tool|slow)(?:: (.+?))? -->")
TRAINS = re.compile(r"\bDPOExtTrainer\(|\bscore_preferences\(|\brank_completions\(|\bload_reference\(")


@dataclass(frozen=True)
class Block:
    """One block of a page."""

    page: str
    """Path from the root."""
    line: int
    """Of its first line of code."""
    language: str
    text: str
    mark: str = ""
    """What the comment before it says: `not run`, `file`, `flags`, `tool`, `slow`, or nothing."""
    value: str = ""
    """What stands behind the mark's colon."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Page:
    """A page with its blocks, in their order."""

    name: str
    blocks: tuple[Block, ...]

    def of(self, *languages: str) -> list[Block]:
        """The blocks of these languages that run."""
        return [block for block in self.blocks if block.language in languages and block.mark != "not run"]

    @property
    def is_slow(self) -> bool:
        """Whether its Python takes more than half a second."""
        return any(block.mark == "slow" or TRAINS.search(block.text) for block in self.of("python", "pycon"))


def blocks_of(name: str, text: str) -> tuple[Block, ...]:
    """The code blocks of a page; MyST's directives, such as a toctree, are none."""
    found = []
    for each in FENCE.finditer(text):
        words = each["info"].split()
        if words and words[0].startswith("{"):
            continue
        mark = MARK.search(each["comment"] or "")
        indent = each["indent"]
        code = "".join(line.removeprefix(indent) for line in each["text"].splitlines(keepends=True))
        line = text.count("\n", 0, each.start("text")) + 1
        marks = (mark[1], (mark[2] or "").strip()) if mark else ()
        found.append(Block(name, line, words[0] if words else "", code, *marks))
    return tuple(found)


def pages() -> list[Page]:
    """README, the READMEs of folders, and every page of docs/ that is committed."""
    files = [*ROOT.glob("*.md"), *ROOT.glob("recipes/*.md"), *ROOT.glob("benchmarks/*.md"), *ROOT.glob("docs/**/*.md")]
    written = ROOT / "docs" / "reference" / "losses"  # with the site; their examples are the docstrings'
    names = sorted(file.relative_to(ROOT).as_posix() for file in files if written not in file.parents)
    return [Page(name, blocks_of(name, (ROOT / name).read_text(encoding="utf-8"))) for name in names]
