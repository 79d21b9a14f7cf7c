"""One build of the source distribution and the wheel, and an environment that has the wheel and no checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}


def output_of(*command: str | Path, cwd: Path, succeeds: bool = True) -> str:
    """What a command prints, errors included."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    text = done.stdout.decode(errors="replace")
    assert (done.returncode == 0) == succeeds, text
    return text


@dataclass(frozen=True)
class Installed:
    """The installed wheel."""

    environment: Path
    elsewhere: Path
    """A folder outside the checkout, to run in."""

    def run(self, *arguments: str | Path, succeeds: bool = True) -> str:
        """Call the command `trl-dpo-ext` of the environment."""
        return output_of(self.environment / "bin" / "trl-dpo-ext", *arguments, cwd=self.elsewhere, succeeds=succeeds)

    def python(self, code: str) -> str:
        """Run code with the environment's Python."""
        return output_of(self.environment / "bin" / "python", "-c", code, cwd=self.elsewhere)


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation: hatchling and hatch-vcs are installed, and nothing is downloaded.
    output_of(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


@pytest.fixture(scope="session")
def installed(distributions: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in a new environment, on top of the libraries of this one.

    The libraries come from this environment's folder, named in a `.pth` file: what is proven is that the wheel is whole
    and its declared requirements hold for these versions, not that an index resolves them. The `.pth` files in that
    folder are not read, so that an editable installation there stays out of sight.
    """
    environment = tmp_path_factory.mktemp("installed") / "environment"
    output_of(sys.executable, "-m", "venv", environment, cwd=environment.parent)
    python = environment / "bin" / "python"
    paths = (sysconfig.get_path("purelib"), *(path for path in sys.path if path.endswith("site-packages")))
    (own,) = environment.glob("lib/python*/site-packages")
    (own / "libraries.pth").write_text("\n".join(dict.fromkeys(paths)) + "\n")
    install = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed")
    output_of(python, *install, distributions["wheel"], cwd=environment.parent)
    return Installed(environment, tmp_path_factory.mktemp("elsewhere"))
