"""Every error and warning of the package, read from its source: for the page on troubleshooting."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "trl_dpo_ext"

TOPICS = {
    "Command line and configuration": ("cli/", "config", "legacy_keys", "mapping_options", "loss_options", "hyper"),
    "Losses": ("core/", "losses/"),
    "Models, tokenizers, and the machine": ("checks/", "trainer", "preflight", "first_step", "evaluation", "__init__"),
    "Adapters": ("policy/",),
    "Data": ("data/", "inspection/", "lists/"),
    "References and the store": ("reference/",),
    "Shared prompts and attention": ("forward/", "_trl/"),
    "Distributed training and checkpoints": ("distributed/",),
    "Memory and known pitfalls": ("estimate/",),
    "Recipes": ("recipe_registry",),
    "Watching a run": ("watch/", "run_files"),
    "Reports and model cards": ("reports/", "model_card/", "pages/"),
    "Scoring": ("scoring/",),
    "Migrating from other tools": ("migration/",),
}
"""Heading -> the modules whose messages stand under it, by the start of their path."""
PAGES = {
    "Command line and configuration": "reference/configuration.md",
    "Losses": "reference/losses.md",
    "Adapters": "guides/sft_adapter.md",
    "Data": "guides/data.md",
    "References and the store": "guides/references.md",
    "Shared prompts and attention": "guides/shared_prompts.md",
    "Distributed training and checkpoints": "guides/distributed.md",
    "Memory and known pitfalls": "guides/memory.md",
    "Recipes": "guides/recipes.md",
    "Watching a run": "guides/watch.md",
    "Reports and model cards": "guides/report.md",
    "Scoring": "guides/score.md",
    "Migrating from other tools": "guides/migrating_from_other_tools.md",
}
"""Heading -> the page of `docs/` on it."""

_COLLECTED = re.compile(r"problem|warning|wrong|doubt|finding|refus")
"""Part of the name of a list or a function whose texts users see."""
_TELLS = re.compile(
    r"(Error|Stop|Finding|Alarm|Problem)$|^(warn\w*|warning|found|tell|append|drop|fail\w*|error|stop)$"
)
"""Names of what is called with texts that users see."""
_FLAG = re.compile(r"--(\w+)|\b([a-z]+_[a-z_]+)\b")
_REMEDY = re.compile(
    r"(?:[.;:,]|\band|\bor|\bto|>|^)\s*(?:Add|Apply|Ask|Build|Call|Change|Check|Choose|Compare|Convert|Copy|Create|Delete|Drop"
    r"|Fill|Filter|Fix|Freeze|Give|Hold|Increase|Install|Keep|Leave|Load|Look|Lower|Make|Merge|Move|Name|Pass|Put|Raise|Read|Reduce"
    r"|Register|Reinstall|Remove|Rename|Replace|Restore|Resume|Run|Save|Score|Set|Shorten|Split|Start|Store|Switch|Take|Train"
    r"|Translate|Try|Turn|Unfreeze|Update|Upgrade|Use|Wait|Write)\b"
    r"|\bmust (?:be|have|hold|end|start|match)\b|\bone of\b|\bDid you mean\b|\bwas (?:renamed|replaced|removed)\b"
    r"|\bignore_\w+|\bis ignored\b",
    re.IGNORECASE,
)
_BEGINS = re.compile(r"[A-Z`<]|--|\w+_\w+|\w+ (must|was|cannot|has|names)\b")
_SHORTEST = 4  # words: what is shorter is a part of another text


@dataclass(frozen=True)
class Message:
    """A text as users see it, with `<name>` where a value stands."""

    text: str
    module: str
    """Path inside the package."""
    line: int

    @property
    def topic(self) -> str:
        """The heading that it stands under."""
        return next(topic for topic, starts in TOPICS.items() for start in starts if self.module.startswith(start))

    @property
    def is_whole(self) -> bool:
        """Whether it is a sentence; others are filled into one."""
        return bool(_BEGINS.match(self.text)) and self.text[-1] in ".>"

    @property
    def says_what_to_do(self) -> bool:
        """Whether it names a remedy, or what is allowed, or ends with a text that does."""
        return bool(_REMEDY.search(self.text)) or self.text.endswith(">")

    @property
    def parts(self) -> tuple[str, str]:
        """What is wrong, and all that follows: what to do about it."""
        cause, _, rest = re.sub(r"([\w>)`'][.])(?= (?:[A-Z`<]|--))", "\\1\0", self.text).partition("\0")
        return cause.strip(), rest.replace("\0", "").strip()

    def options(self, known: frozenset[str]) -> list[str]:
        """The options that it names, in order."""
        named = (flag or word for flag, word in _FLAG.findall(self.text))
        return list(dict.fromkeys(name for name in named if name in known))


def collect(package: Path = PACKAGE) -> list[Message]:
    """Return every message of the package once, by module and line."""
    found: dict[str, Message] = {}
    for file in sorted(package.rglob("*.py")):
        module = file.relative_to(package).as_posix()
        for text, line in read(file.read_text(encoding="utf-8")):
            found.setdefault(text, Message(text, module, line))
    return list(found.values())


def read(source: str) -> list[tuple[str, int]]:
    """Return the messages in the source of one module, with their lines."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    told = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and _is_told(node, parents)}
    texts = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.JoinedStr, ast.Constant, ast.BinOp)) and not isinstance(
            parents.get(node), (ast.JoinedStr, ast.FormattedValue, ast.Expr)
        ):
            text = _text(node)
            key = _key(node, parents)
            if text and key and re.match("was (renamed|replaced|removed)", text):
                text = f"{key} {text}."
            if text and len(text.split()) >= _SHORTEST and (_is_told(node, parents) or _names(node, parents) & told):
                texts.append((text, node.lineno))
    return sorted(set(texts), key=lambda each: each[1])


def _key(node: ast.expr, parents: dict[ast.AST, ast.AST]) -> str | None:
    """The key of a dictionary whose value this is."""
    table = parents.get(node)
    if not isinstance(table, ast.Dict) or node not in table.values:
        return None
    key = table.keys[table.values.index(node)]
    return key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else None


def _text(node: ast.expr) -> str | None:
    """The text of a string in one line; None for another expression."""
    if isinstance(node, ast.Constant):
        return " ".join(node.value.split()) if isinstance(node.value, str) else None
    if isinstance(node, ast.BinOp):
        left, right = _text(node.left), _text(node.right)
        return f"{left} {right}" if isinstance(node.op, ast.Add) and left and right else None
    if isinstance(node, ast.JoinedStr):
        parts = [str(part.value) if isinstance(part, ast.Constant) else _placeholder(part) for part in node.values]
        return " ".join("".join(parts).split())
    return None


def _placeholder(node: ast.expr) -> str:
    """What stands for a value: the last name in its expression."""
    names = [each for each in ast.walk(node) if isinstance(each, (ast.Name, ast.Attribute))]
    words = [each.attr if isinstance(each, ast.Attribute) else each.id for each in names]
    plain = [word.strip("_").lower() for word in words if word not in ("join", "map", "len", "str", "self", "repr")]
    return f"<{plain[0].replace('_', ' ')}>" if plain else "<value>"


def _is_told(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether an expression is a part of what users are told."""
    for above in _above(node, parents):
        if isinstance(above, ast.Call) and above.func is not node and _TELLS.search(_name(above.func)):
            return True
        targets = (
            above.targets
            if isinstance(above, ast.Assign)
            else [above.target]
            if isinstance(above, (ast.AugAssign, ast.AnnAssign))
            else []
        )
        if any(_COLLECTED.search(_name(target).lower()) for target in targets):
            return True
        if isinstance(above, (ast.FunctionDef, ast.Lambda)):
            return isinstance(above, ast.FunctionDef) and _hands_on(node, above, parents)
    return False


def _hands_on(node: ast.AST, function: ast.FunctionDef, parents: dict[ast.AST, ast.AST]) -> bool:
    """Whether a function that returns or yields an expression makes messages."""
    returned = any(isinstance(above, (ast.Return, ast.Yield, ast.YieldFrom)) for above in _above(node, parents))
    return returned and bool(_COLLECTED.search(function.name) or _returns_texts(function))


def _returns_texts(function: ast.FunctionDef) -> bool:
    kind = ast.unparse(function.returns) if function.returns else ""
    checks = any(ast.unparse(each).startswith("_check") for each in function.decorator_list)
    return checks or (kind in ("Iterator[Finding]", "Iterator[str]") and "problem" in ast.unparse(function))


def _names(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> set[str]:
    """The names that an expression is assigned to."""
    for above in _above(node, parents):
        if isinstance(above, (ast.Assign, ast.AnnAssign)):
            targets = above.targets if isinstance(above, ast.Assign) else [above.target]
            return {_name(target) for target in targets} - {""}
    return set()


def _above(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> Iterator[ast.AST]:
    while node in parents:
        node = parents[node]
        yield node


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def as_markdown(known: frozenset[str] | None = None) -> str:
    """Return all messages by topic, as the page on troubleshooting shows them.

    Args:
        known: names of options; None for those of the command line.
    """
    if known is None:
        from trl_dpo_ext.cli.arguments import option_names

        known = option_names()
    messages = sorted(collect(), key=lambda message: (message.module, message.line))
    parts = []
    for topic in TOPICS:
        ours = [message for message in messages if message.topic == topic]
        page = f"\n\nBackground: [{_title(PAGES[topic])}]({PAGES[topic]})." if topic in PAGES else ""
        whole = [_entry(message, known) for message in ours if message.is_whole]
        rest = [f"- {_code(message.text)}" for message in ours if not message.is_whole]
        below = ["", "Parts of these messages:", "", *rest] if rest else []
        parts.append("\n".join([f"## {topic}{page}", "", *whole, *below]))
    return "\n\n".join(parts)


def _entry(message: Message, known: frozenset[str]) -> str:
    """One item: what is wrong, what to do about it, and the options that it names."""
    cause, remedy = message.parts
    options = ", ".join(f"`{name}`" for name in message.options(known))
    lines = [f"- {_code(cause)}"]
    lines += [f"  : {_code(remedy)}"] if remedy else []
    lines += [f"  : Options: {options}."] if options else []
    return "\n".join(line.replace("  : ", "\n  ") for line in lines)


def _code(text: str) -> str:
    """A message as code, whatever it has in it."""
    ticks = "``" if "`" in text else "`"
    return f"{ticks} {text} {ticks}" if "`" in text else f"`{text}`"


def _title(page: str) -> str:
    """The words of a page's file name."""
    return Path(page).stem.replace("_", " ")
