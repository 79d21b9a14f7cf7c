"""The result of `report`: one object for JSON and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..result_heading import result_heading
from ..statistics import finite
from . import shapes
from .arguments import arguments_of, differing
from .metrics import values_of
from .run_data import RunData


def report_of(runs: Sequence[RunData], version: str) -> dict[str, Any]:
    """Return what there is to say of runs, as JSON has it.

    Args:
        runs: at least one.
        version: of this package.

    Returns:
        `kind`, `format`, `versions`, `date`, `arguments`, `runs`, and for several runs `differing` (the arguments that
        are not the same in all, with the value of each run) and `comparison`.
    """
    arguments = [{} if run.problem else arguments_of(run) for run in runs]
    found = {
        **result_heading("report"),
        "versions": {"trl_dpo_ext": version},
        "arguments": {"folders": [str(run.folder) for run in runs]},
        "runs": [_of_run(run, of_run) for run, of_run in zip(runs, arguments, strict=True)],
    }
    if len(runs) > 1:
        found["differing"] = differing(arguments, [bool(run.record) for run in runs])
        found["comparison"] = compare(runs)
    return finite(found)


def _of_run(run: RunData, arguments: dict[str, str]) -> dict[str, Any]:
    return {
        "name": run.name,
        "folder": str(run.folder),
        "problem": run.problem,
        "status": run.status,
        "recorded": bool(run.record),
        "last_step": run.last_step,
        "max_steps": run.max_steps,
        "pairs_per_step": run.pairs_per_step,
        "arguments": arguments,
        "launch": run.record.get("launch"),
        "versions": run.record.get("versions", {}),
        "evaluation_data": evaluation_data(run),
        "evaluation_rows": {name: evaluation_rows(run, name) for name in run.evaluation_sets},
        "values": values_of(run),
        "series": {name: {"step": steps, "value": values} for name, (steps, values) in run.series.items()},
        "epochs": _epochs(run),
        "alarms": list(run.alarms),
        "samples": list(run.samples),
        "documents": dict(run.documents),
    }


def _epochs(run: RunData) -> dict[str, list[float]]:
    """Steps, and the epoch at each."""
    steps = sorted({entry["step"] for entry in run.entries})
    return {"step": steps, "epoch": run.epochs_at(steps)}


def evaluation_data(run: RunData) -> dict[str, str | None]:
    """The fingerprint of each evaluation set; None where it was not recorded."""
    return {name: _evaluated_on(run, name).get("fingerprint") for name in run.evaluation_sets}


def evaluation_rows(run: RunData, name: str) -> int | None:
    """Number of pairs of an evaluation set, if it was recorded."""
    return _evaluated_on(run, name).get("rows")


def _evaluated_on(run: RunData, name: str) -> Mapping[str, Any]:
    """What was recorded of an evaluation set; empty without."""
    return run.record["data"]["evaluation"].get(name, {}) if run.record else {}


def compare(runs: Sequence[RunData]) -> dict[str, Any]:
    """Say which values of runs must not be compared.

    Returns:
        `evaluation_sets`: for each run a letter, the same for the same data; `?` where it was not recorded, None where
        there was no evaluation. `same_evaluation`: whether all evaluations are known to be on the same data.
        `same_losses`, `same_beta`: whether those that were recorded are the same. `warnings`: sentences.
    """
    seen: dict[str, str] = {}
    letters: list[str | None] = []
    for run in runs:
        data = evaluation_data(run)
        if not data:
            letters.append(None)
        elif None in data.values():
            letters.append("?")
        else:
            letters.append(seen.setdefault(repr(sorted(data.items())), _letter(len(seen))))
    used = sorted({letter for letter in letters if letter})
    losses, betas = _scales(runs)
    warnings = _evaluation_warnings(runs, letters, used)
    if not losses:
        warnings.append(
            "The runs minimize different losses, so values of the loss are not comparable. Compare "
            f"accuracies{' and margins' if betas else ''}."
        )
    if not betas:
        warnings.append(
            "Rewards and margins are not comparable: beta differs between the runs, or rewards of a loss without a "
            "reference are of another kind. Compare accuracies."
        )
    return {
        "evaluation_sets": letters,
        "same_evaluation": len(used) == 1 and used != ["?"],
        "same_losses": losses,
        "same_beta": betas,
        "warnings": warnings,
    }


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"A{number}"


def _evaluation_warnings(runs: Sequence[RunData], letters: Sequence[str | None], used: Sequence[str]) -> list[str]:
    if len([letter for letter in letters if letter]) < 2:
        return []
    groups = [
        f"{letter}: {', '.join(run.name for run, own in zip(runs, letters, strict=True) if own == letter)}"
        for letter in used
    ]
    found = []
    if len([letter for letter in used if letter != "?"]) > 1:
        found.append(
            "Not comparable: the runs were evaluated on different data. Compare evaluation values only within one set "
            f"({'; '.join(groups)})."
        )
    if "?" in used:
        unknown = ", ".join(run.name for run, letter in zip(runs, letters, strict=True) if letter == "?")
        found.append(
            f"It was not recorded which data {unknown} was evaluated on, so it may be other data. "
            "Compare only runs whose data you know."
        )
    return found


def _scales(runs: Sequence[RunData]) -> tuple[bool, bool]:
    """Whether the losses, and whether the scale of rewards, are the same in all runs that recorded them."""
    records = [run.record for run in runs if run.record]
    losses = {repr(record["losses"]) for record in records}
    free = [record for record in records if any(line.startswith("None") for line in record["reference"])]
    own = {repr(record["losses"][:1]) for record in free}  # rewards are those of the first loss
    used = [loss["hyperparameters"] for record in records if record not in free for loss in record["losses"]]
    betas = {shapes.number(hyper["beta"]) for hyper in used if "beta" in hyper} - {shapes.MISSING}
    same = len(betas) < 2 and len(own) < 2 and len(free) in (0, len(records))
    return len(losses) < 2, same
