"""One process reads the data for all, and all of them learn what is wrong with it."""

from __future__ import annotations

import pytest

from tests.distributed.engines import launch


@pytest.mark.distributed
def test_the_first_process_checks_a_dataset_for_all(tmp_path) -> None:
    data = {
        "chosen": ["a", "", "b"],
        "rejected": ["a", "c", "d"],
        "chosen_ids": [[1], [], [2]],
        "chosen_token_weights": [[1.0], [], [1.0, 1.0]],
    }
    record = launch(tmp_path / "job", "multi_gpu", "tests.distributed.launched:check_data", {"data": data})
    first, second = record.ranks
    assert len(first["problems"]) == 2
    assert "the chosen completion is empty; wrong in 1 of 3 rows, first in row 1" in first["problems"][0]
    assert "row 2 has 2 for a chosen completion of 1 tokens" in first["problems"][1]
    assert len(first["warnings"]) == 1
    assert {**second, "batches": first["batches"]} == first
    assert (first["batches"], second["batches"]) == (2, 0)
