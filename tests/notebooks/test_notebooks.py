"""The notebooks run from the top to the end, and what they show is so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 300
"""Limit of one cell on a busy machine; each notebook takes less than a minute on a quiet one."""


def executed(name: str, asked: str) -> Any:
    """Run a notebook and return the value of an expression at its end, through JSON."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json; print(json.dumps({asked}))"))
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()
    return json.loads(notebook.cells[-1].outputs[0]["text"])


def test_both_are_committed_without_outputs() -> None:
    assert [file.stem for file in FILES] == ["comparing_losses", "first_dpo_run"]
    for file in FILES:
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert len(code) >= 4
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code), file


@pytest.mark.notebooks
def test_the_first_run_starts_at_log_2_and_prefers_the_chosen_answers() -> None:
    losses, margins = executed(
        "first_dpo_run", "[[entry['loss'] for entry in log], [entry['rewards/margins'] for entry in log]]"
    )
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[-1] < losses[0]
    assert margins[-1] > margins[0] + 0.01


@pytest.mark.notebooks
def test_the_losses_are_compared_by_their_values() -> None:
    turn, table = executed("comparing_losses", "[turn, {name: values.tolist() for name, values in table.items()}]")
    assert turn == pytest.approx(10 * math.log(9), abs=0.5)
    learned, not_learned, fell, _ = table["sigmoid"]
    assert learned < math.log(2) < not_learned
    assert fell < math.log(2)  # content with a pair whose chosen answer lost 20 nats
    assert table["dpop"][2] > 10 * table["dpop"][0]
