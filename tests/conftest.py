"""Settings of every test: no network, no progress bars, no warnings about the host's own deprecations."""

import atexit
import gc
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
from accelerate.state import GradientState

gc.disable()  # until everything is imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# What a test caches, stores of reference log-probs among it, is gone with the tests.
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="trl-dpo-ext-tests-")
atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)

import datasets  # noqa: E402  (it reads the variable when it is imported)

datasets.disable_progress_bars()


def pytest_collection_finish() -> None:
    """Keep what is imported by now out of garbage collection.

    Each training run collects garbage, which would look at all of torch and transformers: half a second each time.
    """
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def verbosity() -> Iterator[None]:
    """Undo what `log_level` does to a whole process: with another verbosity, transformers has other defaults."""
    logger = logging.getLogger("transformers")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def no_loader_is_left_open() -> Iterator[None]:
    """Let accelerate forget the loaders that a test has left before their end; it has one list for all trainers."""
    state = GradientState()
    before = state.dataloader_references
    yield
    state.dataloader_references = before
