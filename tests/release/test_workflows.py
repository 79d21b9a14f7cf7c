"""The workflows are valid, and what they run are targets of the Makefile."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.release.conftest import ROOT, output_of

pytestmark = pytest.mark.release

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
CHECK = (sys.executable, "-m", "check_jsonschema", "--builtin-schema")


def steps(file: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def test_they_fit_the_schema_of_workflows(tmp_path: Path) -> None:
    output_of(*CHECK, "vendor.github-workflows", *WORKFLOWS, cwd=tmp_path)
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("runs-on", "runs_on"))
    output_of(*CHECK, "vendor.github-workflows", wrong, cwd=tmp_path, succeeds=False)


def test_what_they_run_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [step["run"] for file in WORKFLOWS for step in steps(file) if "run" in step]
    assert ".ci/run" in commands
    made = [command.split()[1] for command in commands if command.startswith("make ")]
    assert {"check", "test-release", "build"} <= set(made) <= targets


def test_every_job_says_what_it_may_do_and_how_long() -> None:
    for file in WORKFLOWS:
        workflow = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert workflow["permissions"] == {"contents": "read"}
        assert all(job["timeout-minutes"] <= 60 for job in workflow["jobs"].values())


def test_a_text_of_an_event_is_not_put_into_a_shell() -> None:
    """`${{ ... }}` in `run` would execute what a branch or a tag is called."""
    for file in WORKFLOWS:
        assert not [step for step in steps(file) if "${{" in step.get("run", "")]


def test_the_tag_alone_publishes_and_with_its_version() -> None:
    release = yaml.safe_load((GITHUB / "workflows" / "release.yml").read_text(encoding="utf-8"))
    assert release[True] == {"push": {"tags": ["v[0-9]*"]}}  # YAML reads `on` as true
    publish = release["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["needs"] == "build"
    checkout = release["jobs"]["build"]["steps"][0]
    assert checkout["with"]["fetch-depth"] == 0
