"""The command `trl-dpo-ext store`: what it shows, and when it fails."""

from __future__ import annotations

from tests.support.stored import (
    corrupt_values,
    filled,
    first_part,
    sequence,
)
from trl_dpo_ext.cli import main as cli


def test_the_command_shows_and_checks(tmp_path, capsys) -> None:
    store = filled(tmp_path / "refs", range(30), range(25, 50))
    assert cli.main(["store", str(store.folder)]) == 0
    said = capsys.readouterr().out
    tokens = sum(len(sequence(number)[2]) for number in [*range(30), *range(25, 50)])
    for expected in (
        "sequences        50 (5 more are stored twice)",
        f"tokens           {tokens}",
        "parts            2, ",
        "f00d",
        "torch 2",
    ):
        assert expected in said
    assert cli.main(["store", str(store.folder), "--verify"]) == 0
    assert "verified         2 parts, no problems" in capsys.readouterr().out
    corrupt_values(first_part(store))
    assert cli.main(["store", str(store.folder)]) == 0
    before = {path.name for path in store.folder.rglob("*")}
    assert cli.main(["store", str(store.folder), "--verify"]) == 1
    assert f"{first_part(store).name} is corrupt" in capsys.readouterr().out
    first_part(store).write_bytes(b"")
    assert cli.main(["store", str(store.folder), "--verify"]) == 1
    assert f"{first_part(store).name} is corrupt" in capsys.readouterr().out
    assert {path.name for path in store.folder.rglob("*")} == before  # it only looks


def test_the_command_says_what_is_no_store(tmp_path, capsys) -> None:
    assert cli.main(["store", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not a reference store" in capsys.readouterr().err
