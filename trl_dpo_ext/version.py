"""Which version of this package runs."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

UNRELEASED = "0.1.0.dev0"
"""The version of a source tree that is not installed; `fallback-version` in pyproject.toml."""

_DISTRIBUTION = "trl-dpo-ext"


def running_version(package: Path = Path(__file__).parent) -> str:
    """Return the version of the distribution that a folder of this package belongs to.

    The first distribution of this name on the path may be another one: of a second checkout, or of an environment that
    this one builds on.

    Args:
        package: the folder that is imported.
    """
    package = package.resolve()
    for found in metadata.distributions(name=_DISTRIBUTION):
        if Path(str(found.locate_file(package.name))).resolve() == package or _editable_root(found) == package.parent:
            return found.version
    return UNRELEASED


def _editable_root(distribution: metadata.Distribution) -> Path | None:
    """The source tree of an editable installation; None for another one."""
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    if not origin.get("dir_info", {}).get("editable"):
        return None
    return Path(url2pathname(urlparse(origin["url"]).path)).resolve()


__version__: str = running_version()
