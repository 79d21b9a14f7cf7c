"""Expressions of `--keep`, `--relabel` and `--weigh`: Python's syntax, a few operations, whole columns, no code.

An expression is parsed, checked against a list of what may stand in it, and computed here with arrays of float64;
nothing is handed to Python for evaluation.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError
from .column_values import Vector
from .measures import sigmoid

_LONGEST = 10_000
"""Characters of an expression."""
_DEEPEST = 100
"""Levels of an expression."""

_ARITHMETIC: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
    ast.USub: np.negative,
    ast.UAdd: np.positive,
}
_COMPARISONS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
FUNCTIONS: Mapping[str, tuple[int, int | None]] = {
    "abs": (1, 1),
    "min": (1, None),
    "max": (1, None),
    "log": (1, 1),
    "exp": (1, 1),
    "sigmoid": (1, 1),
    "quantile": (2, 2),
}
"""Fewest and most arguments. `min` and `max` of one argument are those of the column; `quantile(column, share)`."""
_ELEMENTWISE = {"abs": np.abs, "log": np.log, "exp": np.exp, "sigmoid": sigmoid}
_MEANT = "Allowed are names, numbers, texts, + - * / **, comparisons, and, or, not, and"


@dataclass(frozen=True)
class Columns:
    """Named columns that expressions read.

    Attributes:
        names: of all columns, with and without the prefix of what `score` computes.
        read: returns a column, as `column_values.as_vector` does.
        rows: number of rows.
        doubtful: names that stand for two columns, each with a sentence.
    """

    names: Sequence[str]
    read: Callable[[str], Vector]
    rows: int
    doubtful: Mapping[str, str]


@dataclass(frozen=True)
class Expression:
    """A checked expression.

    Args:
        text: as given.
        flag: that it was given for; named in errors.
    """

    text: str
    flag: str

    def tree(self) -> ast.expr:
        """Parse the text.

        Raises:
            InputError: it is no expression, or too long or deep.
        """
        if len(self.text) > _LONGEST:
            raise self.error(f"the expression has {len(self.text)} characters; at most {_LONGEST} are read")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)
                tree = ast.parse(self.text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise self.error(f"not an expression ({getattr(error, 'msg', error)})") from None
        if _depth(tree) > _DEEPEST:
            raise self.error(f"the expression is nested more than {_DEEPEST} levels deep")
        return tree

    def problems(self, columns: Columns) -> list[str]:
        """Return what is wrong with the expression's words, before its columns exist."""
        try:
            tree = self.tree()
        except InputError as error:
            return error.problems
        return list(dict.fromkeys(str(self.error(each)) for each in _wrong(tree, columns)))

    def condition(self, columns: Columns) -> Vector:
        """Return where the expression is true, (rows,) of bool."""
        value = self._value(columns)
        if np.asarray(value).dtype != bool:
            raise self.error("a condition is needed, such as margin > 0")
        return np.broadcast_to(value, (columns.rows,))

    def number(self, columns: Columns) -> Vector:
        """Return the expression's value, (rows,) of float64; a condition is 1 or 0."""
        value = np.asarray(self._value(columns))
        if value.dtype == object:
            raise self.error("a number is needed, not a text")
        return np.broadcast_to(value.astype(np.float64), (columns.rows,))

    def error(self, what: str) -> InputError:
        """Return an error about this expression."""
        shown = self.text if len(self.text) <= 120 else f"{self.text[:117]}..."
        return InputError(f"--{self.flag} {shown!r}: {what}.")

    def _value(self, columns: Columns) -> Any:
        problems = self.problems(columns)
        if problems:
            raise InputError(*problems)
        with np.errstate(all="ignore"):
            return _Evaluation(self, columns).of(self.tree())


def _depth(tree: ast.AST) -> int:
    level, nodes = 0, [tree]
    while nodes:
        level, nodes = level + 1, [child for node in nodes for child in ast.iter_child_nodes(node)]
    return level


def _wrong(node: ast.AST, columns: Columns) -> Iterator[str]:
    """Sentences about nodes that may not stand in an expression, and names that nothing has."""
    if isinstance(node, ast.Name):
        if node.id in columns.doubtful:
            yield columns.doubtful[node.id]
        elif node.id not in columns.names:
            yield f"no column is called {node.id!r}; there are {', '.join(columns.names)}"
        return
    if isinstance(node, ast.Call):
        yield from _wrong_call(node, columns)
        return
    if isinstance(node, ast.Constant):
        if not isinstance(node.value, (bool, int, float, str)):
            yield _not_allowed(node)
        elif isinstance(node.value, int) and abs(node.value) > 1 << 1000:
            yield "a number is too large"
        return
    parts: tuple[ast.AST, ...]
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        parts = (node.left, node.right)
    elif isinstance(node, ast.UnaryOp) and (isinstance(node.op, ast.Not) or type(node.op) in _ARITHMETIC):
        parts = (node.operand,)
    elif isinstance(node, ast.BoolOp):
        parts = tuple(node.values)
    elif isinstance(node, ast.Compare) and all(type(each) in _COMPARISONS for each in node.ops):
        parts = (node.left, *node.comparators)
    else:
        yield _not_allowed(node)
        return
    for part in parts:
        yield from _wrong(part, columns)


def _wrong_call(node: ast.Call, columns: Columns) -> Iterator[str]:
    name = node.func.id if isinstance(node.func, ast.Name) else None
    if (
        name is None
        or name not in FUNCTIONS
        or node.keywords
        or any(isinstance(each, ast.Starred) for each in node.args)
    ):
        yield _not_allowed(node)
        return
    fewest, most = FUNCTIONS[name]
    if not fewest <= len(node.args) <= (most or len(node.args)):
        yield f"{name} takes {fewest}{'' if most == fewest else ' or more'} arguments; got {len(node.args)}"
    for each in node.args:
        yield from _wrong(each, columns)


def _not_allowed(node: ast.AST) -> str:
    text = ast.unparse(node)
    shown = text if len(text) <= 40 else f"{text[:37]}..."
    return f"{shown!r} is not allowed. {_MEANT} {', '.join(FUNCTIONS)}"


class _Evaluation:
    """Computes checked expressions: each value is a number, a condition or a text, or an array of them."""

    def __init__(self, expression: Expression, columns: Columns) -> None:
        self.error = expression.error
        self.columns = columns

    def of(self, node: ast.AST) -> Any:
        if isinstance(node, ast.Name):
            return self.columns.read(node.id)
        if isinstance(node, ast.Constant):
            value = node.value
            return value if isinstance(value, (bool, str)) else np.float64(value)  # type: ignore[arg-type]
        if isinstance(node, ast.Call):
            return self.call(node.func.id, [self.number(each) for each in node.args])  # type: ignore[attr-defined]
        if isinstance(node, ast.Compare):
            return self.comparison(node)
        if isinstance(node, ast.BoolOp):
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            parts = [self.condition(each) for each in node.values]
            return join.reduce(np.broadcast_arrays(*parts))
        if isinstance(node, ast.UnaryOp):
            if isinstance(node.op, ast.Not):
                return np.logical_not(self.condition(node.operand))
            return _ARITHMETIC[type(node.op)](self.number(node.operand))
        assert isinstance(node, ast.BinOp)
        return _ARITHMETIC[type(node.op)](self.number(node.left), self.number(node.right))

    def number(self, node: ast.AST) -> Any:
        value = np.asarray(self.of(node))
        if value.dtype.kind in "OU":
            raise self.error(f"{ast.unparse(node)} is a text; texts can only be compared")
        return value.astype(np.float64)

    def condition(self, node: ast.AST) -> Any:
        value = np.asarray(self.of(node))
        if value.dtype != bool:
            raise self.error(f"{ast.unparse(node)} is no condition; compare it with something")
        return value

    def comparison(self, node: ast.Compare) -> Any:
        operands = [node.left, *node.comparators]
        values = [self.of(each) for each in operands]
        found: Any = True
        for at, kind in enumerate(node.ops):
            pair = values[at], values[at + 1]
            texts = [np.asarray(value).dtype.kind in "OU" for value in pair]
            if texts[0] != texts[1]:
                sides = " and ".join(ast.unparse(each) for each in operands[at : at + 2])
                raise self.error(f"{sides} cannot be compared: one is a text, the other is not")
            compare = _COMPARISONS[type(kind)]
            found = np.logical_and(found, (_compared_texts if texts[0] else _compared_numbers)(compare, *pair))
        return found

    def call(self, name: str, values: list[Any]) -> Any:
        if name in _ELEMENTWISE:
            return _ELEMENTWISE[name](values[0])
        if name == "quantile":
            return self.quantile(*values)
        if len(values) > 1:
            return (np.minimum if name == "min" else np.maximum).reduce(np.broadcast_arrays(*values))
        known = values[0][~np.isnan(values[0])]
        return (known.min() if name == "min" else known.max()) if known.size else np.float64(np.nan)

    def quantile(self, values: Any, share: Any) -> Any:
        if share.ndim or not 0 <= share <= 1:
            raise self.error("the second argument of quantile is one number from 0 to 1")
        known = values[~np.isnan(values)]
        return np.quantile(known, share, method="inverted_cdf") if known.size else np.float64(np.nan)


def _compared_numbers(compare: Callable[..., Any], left: Any, right: Any) -> Any:
    """A comparison with NaN, which stands for null, is false; `!=` too."""
    left, right = (np.asarray(each).astype(np.float64) for each in (left, right))
    return compare(left, right) & ~(np.isnan(left) | np.isnan(right))


def _compared_texts(compare: Callable[..., Any], left: Any, right: Any) -> Any:
    pairs = np.broadcast(*(np.asarray(each, dtype=object) for each in (left, right)))
    found = [a is not None and b is not None and bool(compare(a, b)) for a, b in pairs]
    return np.array(found, dtype=bool).reshape(pairs.shape)
