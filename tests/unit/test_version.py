"""The version is that of the distribution that runs, not of another one on the path."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from tests.architecture.imports import internal_imports
from trl_dpo_ext.version import UNRELEASED, running_version

ROOT = Path(__file__).parents[2]


def distribution(folder: Path, version: str, editable: Path | None = None) -> Path:
    """A folder of installed packages with the metadata of one of this name."""
    info = folder / f"trl_dpo_ext-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: trl-dpo-ext\nVersion: {version}\n")
    if editable is not None:
        origin = {"url": editable.as_uri(), "dir_info": {"editable": True}}
        (info / "direct_url.json").write_text(json.dumps(origin))
    return folder


def test_of_several_distributions_the_one_that_holds_the_package_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = distribution(tmp_path / "first", "1.0"), distribution(tmp_path / "second", "2.0")
    checkout = tmp_path / "check out"  # a space is %20 in the URL
    third = distribution(tmp_path / "third", "3.0.dev4+gabc.d20260101", editable=checkout)
    monkeypatch.setattr("sys.path", [str(first), str(second), str(third)])
    assert running_version(first / "trl_dpo_ext") == "1.0"
    assert running_version(second / "trl_dpo_ext") == "2.0"
    assert running_version(checkout / "trl_dpo_ext") == "3.0.dev4+gabc.d20260101"
    assert running_version(tmp_path / "other checkout" / "trl_dpo_ext") == UNRELEASED


def test_a_distribution_from_a_local_folder_that_is_not_editable_is_not_that_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = distribution(tmp_path / "installed", "1.0")
    (installed / "trl_dpo_ext-1.0.dist-info" / "direct_url.json").write_text(
        json.dumps({"url": tmp_path.as_uri(), "dir_info": {}})
    )
    monkeypatch.setattr("sys.path", [str(installed)])
    assert running_version(tmp_path / "trl_dpo_ext") == UNRELEASED


def test_the_fallback_of_the_build_is_that_of_a_checkout() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["version"]["fallback-version"] == UNRELEASED


def test_the_version_is_shown_and_recorded_and_keys_nothing() -> None:
    """Stores, references, and checkpoints keep their names when only the version of this package changes."""
    readers = {one.importer for one in internal_imports() if one.imported == "version.py"}
    assert readers == {
        "__init__.py",
        *(f"cli/{name}.py" for name in ("inspect", "main", "report", "score")),
        "model_card/training.py",
    }
