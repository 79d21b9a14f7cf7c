"""Build one row of token ids from a prompt and its completions, so that the prompt is computed once.

    ids        p0 ... p(n-2) | p(n-1) c0 ... c(k-2) | p(n-1) r0 ... r(m-2)
    positions  0 ...   n-2   |  n-1   n  ...        |  n-1   n  ...
    branch     0 ...   0     |  1     1  ...        |  2     2  ...
    sees       causal        | prefix + itself      | prefix + itself
    labels     -             | c0     c1 ... c(k-1) | r0     r1 ... r(m-1)

The last prompt token heads every branch, so that each branch predicts its own first token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

SHARED_PREFIX, PADDING, UNSCORED = 0, -1, -100


@dataclass(frozen=True, slots=True)
class TreeRows:
    """Rows of token ids with branches; every field has shape (rows, width) and dtype long, padded on the right."""

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    """Position of each token in its own sequence; 0 on padding."""
    branch: torch.Tensor
    """0 on the shared prefix, 1, 2, ... on the branches in order, -1 on padding."""
    labels: torch.Tensor
    """The next token where it is scored, already shifted; -100 elsewhere."""

    @property
    def has_trees(self) -> bool:
        """Return True if any row has more than one branch; otherwise the rows are ordinary causal ones."""
        return bool((self.branch > 1).any())


def row_width(prompt_length: int, completion_lengths: Sequence[int]) -> int:
    """Return the token positions of a prompt with these completions, whose last tokens are predicted and not fed."""
    return prompt_length - 1 + sum(completion_lengths)


def build_tree_rows(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Sequence[int]]], pad_token_id: int
) -> TreeRows:
    """Build one row per prompt with all its completions.

    The scored positions in row-major order are row by row, completion by completion, token by token. A prompt with one
    completion is an ordinary causal row.

    Args:
        prompts: token ids of each prompt, at least one.
        completions: for each prompt, the token ids of one or more completions.
        pad_token_id: fills rows up to the longest.

    Raises:
        ValueError: a prompt is empty or has no completion, or the numbers of both differ.
    """
    rows = [list(_tokens(p, c)) for p, c in zip(prompts, completions, strict=True)]
    width = max((len(row) for row in rows), default=0)
    padding = (pad_token_id, 0, PADDING, UNSCORED)
    padded = torch.tensor([row + [padding] * (width - len(row)) for row in rows], dtype=torch.long)
    fields = padded.reshape(len(rows), width, len(padding)).unbind(-1)
    return TreeRows(*(field.contiguous() for field in fields))


def _tokens(prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> Iterator[tuple[int, int, int, int]]:
    """Yield the id, position, branch and label of every token of a row."""
    if not prompt or not completions:
        raise ValueError(
            f"A row needs a prompt of at least one token and at least one completion; got {len(prompt)} tokens and "
            f"{len(completions)} completions."
        )
    last = len(prompt) - 1
    for position in range(last):
        yield prompt[position], position, SHARED_PREFIX, UNSCORED
    for branch, completion in enumerate(completions, start=1):
        fed = [prompt[last], *completion[:-1]] if completion else []
        for offset, (token, label) in enumerate(zip(fed, completion, strict=True)):
            yield token, last + offset, branch, label
