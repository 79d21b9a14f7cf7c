"""What the package leans on inside datasets: one test per fact, whose failure names the place to mend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from datasets import config

from tests.support.seams import moved

MEND = "the module that defines default_folder"


def test_the_cache_is_a_folder_that_an_environment_variable_names(tmp_path) -> None:
    code = "from datasets import config; print(config.HF_DATASETS_CACHE)"
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    found = moved("datasets", "config.HF_DATASETS_CACHE is read from the environment", MEND)
    assert Path(done.stdout.strip()) == tmp_path / "cache", found
    assert os.fspath(config.HF_DATASETS_CACHE) == os.environ["HF_DATASETS_CACHE"], found
