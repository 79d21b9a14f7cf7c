"""The source distribution and the wheel hold what they should, and their metadata is what an index accepts."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest
from trove_classifiers import classifiers as known_classifiers

from tests.release.conftest import ROOT, output_of

pytestmark = pytest.mark.release

MEBIBYTE = 2**20
JUNK = re.compile(r"(^|/)(__pycache__|\.venv|\.ruff_cache|\.hypothesis|build|dist|out)(/|$)|\.(pyc|so|log|bin|pt)$|~$")


def tracked(*folders: str) -> set[str]:
    found = subprocess.run(["git", "ls-files", "-z", *folders], cwd=ROOT, capture_output=True, check=True).stdout
    return {name for name in found.decode().split("\0") if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def in_sdist(distributions: dict[str, Path]) -> set[str]:
    with tarfile.open(distributions["sdist"]) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


@pytest.fixture(scope="module")
def in_wheel(distributions: dict[str, Path]) -> set[str]:
    with zipfile.ZipFile(distributions["wheel"]) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(distributions: dict[str, Path]) -> Message:
    with zipfile.ZipFile(distributions["wheel"]) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_string(archive.read(name).decode())


def test_an_index_accepts_both(distributions: dict[str, Path], tmp_path: Path) -> None:
    printed = output_of(sys.executable, "-m", "twine", "check", "--strict", *distributions.values(), cwd=tmp_path)
    assert printed.count("PASSED") == 2


def test_the_source_distribution_can_be_tested_and_has_no_junk(in_sdist: set[str]) -> None:
    wanted = tracked("trl_dpo_ext", "recipes", "tests", "tools", "demo", "benchmarks", "docs", "notebooks")
    assert not wanted - in_sdist
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "Makefile"} <= in_sdist
    assert not in_sdist - tracked() - {"PKG-INFO"}
    assert not [name for name in in_sdist if JUNK.search(name)]


def test_the_wheel_holds_the_package_and_the_recipes_alone(in_wheel: set[str]) -> None:
    package = tracked("trl_dpo_ext")
    recipes = {f"trl_dpo_ext/{name}" for name in tracked("recipes")}
    files = {name for name in in_wheel if ".dist-info/" not in name}
    assert files == package | recipes
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in in_wheel)
    assert "trl_dpo_ext/py.typed" in files


def test_they_are_small(distributions: dict[str, Path]) -> None:
    assert distributions["wheel"].stat().st_size < MEBIBYTE
    assert distributions["sdist"].stat().st_size < 3 * MEBIBYTE


def test_the_metadata_says_what_pyproject_says(metadata: Message) -> None:
    assert metadata["Name"] == "trl-dpo-ext"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    classifiers = metadata.get_all("Classifier") or []
    assert "Typing :: Typed" in classifiers
    assert set(classifiers) <= known_classifiers  # an index refuses others
    assert not [line for line in classifiers if line.startswith("License ::")]  # the expression replaces it
    assert {"demo", "plot", "deepspeed", "test", "dev"} <= set(metadata.get_all("Provides-Extra") or [])


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=n", "-c", "user.email=a@b", "-c", "tag.gpgSign=false", "-c", "commit.gpgSign=false")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def version_of(folder: Path) -> str:
    return output_of(sys.executable, "-m", "hatchling", "version", cwd=folder).splitlines()[-1]


def test_the_version_comes_from_the_tag_and_from_less_where_there_is_less(tmp_path: Path) -> None:
    """In a clone, a shallow clone, an archive as code hosts offer it, and a copy without anything."""
    source = tmp_path / "source"
    for name in ("pyproject.toml", ".git_archival.txt", ".gitattributes", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    assert version_of(source) == "0.1.0.dev0"
    git(source, "init", "--quiet")
    git(source, "add", "--all")
    git(source, "commit", "--quiet", "--message", "first")
    assert re.fullmatch(r"0\.1\.0\.dev1\+g[0-9a-f]+(\.d\d+)?", version_of(source))
    git(source, "tag", "v1.2.3")
    assert version_of(source) == "1.2.3"
    git(tmp_path, "clone", "--quiet", "--depth", "1", source.as_uri(), "shallow")
    assert version_of(tmp_path / "shallow") == "1.2.3"
    archive = tmp_path / "archive"
    archive.mkdir()
    git(source, "archive", "--output", str(archive / "it.tar"), "HEAD")
    with tarfile.open(archive / "it.tar") as packed:
        packed.extractall(archive, filter="data")
    assert version_of(archive) == "1.2.3"
    git(source, "commit", "--quiet", "--allow-empty", "--message", "second")
    assert version_of(source).startswith("1.2.4.dev1+g")
