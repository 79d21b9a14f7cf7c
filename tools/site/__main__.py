"""Build the documentation: `python -m tools.site [OUT]`, into build/site by default. Every warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path

from sphinx.cmd.build import build_main

ROOT = Path(__file__).parents[2]


def build(out: Path, *options: str) -> int:
    """Build the site into `out`; returns Sphinx's exit status."""
    strict = ["--fail-on-warning", "--keep-going", "--nitpicky", "--quiet", "--fresh-env", "--jobs", "auto"]
    doctrees = str(out.with_name(f"{out.name}-doctrees"))
    return build_main(["-b", "html", *strict, "-d", doctrees, *options, str(ROOT / "docs"), str(out)])


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "site"
    status = build(out)
    print(f"{out}/index.html" if status == 0 else "The documentation has the problems above.")
    sys.exit(status)
