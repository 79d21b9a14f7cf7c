"""The store of image data under two processes: one store, each image decoded once, and errors on all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed import engines
from tests.distributed.test_stored_reference_engines import assert_equal, stored
from tests.features import vision
from tests.support import pictures

pytestmark = pytest.mark.distributed
FLAGS = ["--mixed_precision", "no"]
TRAIN = "tests.distributed.storing:train_images"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and an odd number of rows, one of them without an image."""
    folder = tmp_path_factory.mktemp("files")
    vision.saved_model(str(folder / "model"))
    pictures.on_disk(pictures.pictured(7, each=[1, 2, 1, 0, 1, 3, 1]), folder)
    return folder


@pytest.fixture(scope="module")
def by_one(files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, np.ndarray]:
    folder = job(tmp_path_factory.mktemp("one"), files)
    record = engines.launch(folder, "single_gpu", TRAIN, processes=1, flags=FLAGS)
    assert record["decoded"] == 9
    return stored(folder / "refs")


def job(folder: Path, files: Path) -> Path:
    for name in ("model", "data.parquet"):
        (folder / name).symlink_to(files / name)
    return folder


@pytest.mark.parametrize("settings", [{}, {"lora": True}], ids=["whole", "LoRA"])
def test_two_processes_share_a_store_and_decode_each_image_once(tmp_path, files, by_one, settings) -> None:
    folder = job(tmp_path, files)
    settings = {"per_device_train_batch_size": 2, "dataloader_num_workers": 1, **settings}
    first = engines.launch(folder, "multi_gpu", TRAIN, settings, flags=FLAGS)
    assert_equal(stored(folder / "refs"), by_one)
    assert first["report"]["computed"] == len(by_one) == 14
    assert [rank["decoded"] for rank in first.ranks] == [9, 0]
    if "lora" not in settings:
        assert first.steps[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    again = engines.launch(folder, "multi_gpu", TRAIN, {**settings, "seed": 3}, flags=FLAGS)
    assert (again["report"]["found"], again["report"]["computed"]) == (14, 0)
    assert [rank["decoded"] for rank in again.ranks] == [0, 0]


def test_an_image_that_cannot_be_decoded_ends_every_process(tmp_path) -> None:
    data = pictures.pictured(4)
    arrow: Any = data.with_format("arrow")[:]
    images = arrow.column("images").to_pylist()
    images[2][0]["bytes"] = images[2][0]["bytes"][:40]
    data = data.remove_columns("images").add_column("images", images, feature=data.features["images"])
    pictures.on_disk(data, tmp_path)
    vision.saved_model(str(tmp_path / "model"))
    with pytest.raises(engines.JobFailed) as caught:
        engines.launch(tmp_path, "multi_gpu", TRAIN, flags=FLAGS)
    assert "an image cannot be decoded" in str(caught.value)
    assert "in 1 of 4 rows (2)" in str(caught.value)
