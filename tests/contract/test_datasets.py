"""What the package leans on inside datasets: one test per fact, whose failure names the place to mend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, config

from tests.support.seams import moved
from trl_dpo_ext import _trl

MEND = "the module that defines default_folder"


def test_the_cache_is_a_folder_that_an_environment_variable_names(tmp_path) -> None:
    code = "from datasets import config; print(config.HF_DATASETS_CACHE)"
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    found = moved("datasets", "config.HF_DATASETS_CACHE is read from the environment", MEND)
    assert Path(done.stdout.strip()) == tmp_path / "cache", found
    assert os.fspath(config.HF_DATASETS_CACHE) == os.environ["HF_DATASETS_CACHE"], found


@pytest.mark.parametrize("processes", [None, 2])
def test_a_filtered_dataset_knows_the_places_of_its_rows(processes: int | None, monkeypatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ)  # with processes, `map` leaves a copy in its place
    data = Dataset.from_dict({"number": [*range(20)]}).map(lambda row: row, num_proc=processes)
    found = moved("datasets", "filter keeps places in _indices", "trl_dpo_ext/_trl/preparation.py")
    for wanted in ([3, 4, 11, 19], [*range(20)]):
        filtered = data.filter(lambda row, wanted=wanted: row["number"] in wanted, num_proc=processes)
        assert _trl.kept_rows(filtered).tolist() == wanted, found
    assert _trl.kept_rows(data).tolist() == [*range(20)], found
