"""Tables and figure of the frontier, from the records of runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cells import FAMILIES, Cell, grid
from .records import Record
from .statistics_of_runs import (
    BASELINE,
    Estimate,
    above,
    above_at_all_strengths,
    by_setting,
    curves,
    estimate,
    holm,
    paired,
)  # fmt: skip

TASK = "task"
"""Key of the record that describes the task."""


def markdown(records: Sequence[Record]) -> str:
    """Return the report; `records` has that of the task and those of the runs."""
    task = next(record for record in records if record["key"] == TASK)
    runs = [record for record in records if "points" in record]
    parts = [
        _facts(task, runs),
        _best_of_n(task),
        _losses(task, runs),
        _frontier(task, runs),
        _flips(task, runs),
        _store(runs),
        _missing(runs),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(task: Record, runs: Sequence[Record]) -> str:
    facts = task["facts"]
    return (
        f"{len(runs)} runs, {task['machine']}; commit {task['commit']}. {facts['sentences']} sentences, a language "
        f"model of {facts['parameters']:,} parameters (held-out loss {facts['held_out_loss']:.2f} nats per token), "
        f"{task['pairs']} pairs, {task['held_out']} held-out prefixes. A run takes {task['plan']['steps']} steps of "
        f"{task['plan']['pairs']} pairs. The reference's expected reward is {task['start']:.3f}."
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _best_of_n(task: Record) -> str:
    rows = [[str(point["n"]), f"{point['kl']:.2f}", f"{point['reward']:.3f}"] for point in task["best_of_n"]]
    return "## Best of n\n\n" + table(("n", "KL, at most (nats)", "expected reward"), rows)


def _last(runs: Sequence[Record], name: str) -> Estimate:
    return estimate([run["points"][-1][name] for run in runs])


def _on_right_labels(runs: Sequence[Record]) -> dict[str, list[Record]]:
    """The runs of each setting that the frontier consists of."""
    return {
        setting: found
        for setting, found in by_setting(runs).items()
        if not (found[0]["flips"] or found[0]["reference"] == "own store" or _is_costed_only(found[0]))
    }


def _losses(task: Record, runs: Sequence[Record]) -> str:
    """Each loss over all its strengths, beside the baseline."""
    baseline = curves(runs, task["start"])
    by_loss: dict[str, list[Record]] = {}
    for found in _on_right_labels(runs).values():
        by_loss.setdefault(found[0]["loss"], []).extend(found)
    by_loss.pop(BASELINE, None)
    differences = {loss: above_at_all_strengths(found, baseline) for loss, found in by_loss.items()}
    tested = {loss: each for loss, each in differences.items() if each and not math.isnan(each.p)}
    corrected = dict(zip(tested, holm([each.p for each in tested.values()]), strict=True))
    rows = []
    for loss, found in sorted(by_loss.items(), key=lambda item: _mean(differences[item[0]])):
        difference = differences[loss]
        reached = sum(above([run], baseline) is not None for run in found)
        rows.append([
            f"`{loss}`", str(len({run["setting"] for run in found})), f"{reached} of {len(found)}",
            difference.text(3, sign=True) if difference else "beyond its curve",
            f"{tested[loss].p:.3f}" if loss in tested else "", f"{corrected[loss]:.2f}" if loss in tested else "",
            _range(found, "chosen_drift", "+.1f"), _range(found, "tokens", ".1f"),
        ])  # fmt: skip
    head = (
        "loss", "strengths", "runs on DPO's curve", "above DPO's curve, mean of strengths", "p", "p, Holm",
        "chosen log-ratio, range", "tokens, range",
    )  # fmt: skip
    return "## Losses\n\n" + table(head, rows) if rows else ""


def _mean(found: Estimate | None) -> float:
    return found.mean if found else -math.inf


def _range(runs: Sequence[Record], name: str, digits: str) -> str:
    """Smallest and largest mean over seeds of a setting."""
    means = [_last(found, name).mean for found in by_setting(runs).values()]
    return f"{min(means):{digits}} to {max(means):{digits}}"


def _frontier(task: Record, runs: Sequence[Record]) -> str:
    baseline, rows = curves(runs, task["start"]), []
    for found in _on_right_labels(runs).values():
        first = found[0]
        difference = above(found, baseline)
        shown = "beyond its curve" if difference is None else _bold(difference)
        rows.append((_order(first), [
            f"`{first['loss']}`", _setting(first), str(len(found)),
            _last(found, "kl").text(2), _last(found, "reward").text(3), shown if first["loss"] != BASELINE else "",
            _last(found, "accuracy").text(2), _last(found, "chosen_drift").text(1, sign=True),
            _last(found, "rejected_drift").text(1, sign=True), _last(found, "tokens").text(1),
        ]))  # fmt: skip
    head = (
        "loss", "setting", "seeds", "KL (nats)", "expected reward", "above DPO's curve at that KL",
        "held-out accuracy", "chosen log-ratio", "rejected log-ratio", "tokens",
    )  # fmt: skip
    return "## Frontier\n\n" + table(head, [row for _, row in sorted(rows, key=lambda row: row[0])])


def _is_costed_only(record: Record) -> bool:
    return record["loss"] == BASELINE and record["reference"] == "live"


def _order(record: Record) -> tuple[Any, ...]:
    names = [family.loss for family in FAMILIES]
    place = names.index(record["loss"]) if record["loss"] in names else len(names)
    return place, record["loss"], record["rate"], record["value"]


def _setting(record: Record) -> str:
    shown = f"{record['knob']} {record['value']:g}"
    return shown if record["knob"] == "learning_rate" else f"{shown}, rate {record['rate']:g}"


def _bold(found: Estimate | None) -> str:
    """An estimate, bold where its interval leaves out 0."""
    shown = found.text(3, sign=True) if found else ""
    return f"**{shown}**" if found and found.differs else shown


def _flips(task: Record, runs: Sequence[Record]) -> str:
    """Each loss that was trained on flipped labels, at the setting of those runs, by share of flips."""
    settings = {(run["loss"], run["value"], run["rate"]) for run in runs if run["flips"]}
    if not settings:
        return ""
    rows = []
    known = [run for run in runs if run["reference"] == "shared store"]
    for loss, value, rate in sorted(settings, key=lambda each: (each[0] != BASELINE, *each)):
        same = [run for run in known if (run["loss"], run["value"], run["rate"]) == (loss, value, rate)]
        for share in sorted({run["flips"] for run in same}):
            found = [run for run in same if run["flips"] == share]
            lost = paired(found, [run for run in same if not run["flips"]], "reward") if share else None
            difference = above(found, curves(runs, task["start"], share))
            shown = "beyond its curve" if difference is None else _bold(difference)
            rows.append([
                f"`{loss}`", _setting(found[0]), f"{100 * share:.0f} %", str(len(found)), _last(found, "kl").text(2),
                _last(found, "reward").text(3), _bold(lost), shown if loss != BASELINE else "",
                _last(found, "accuracy").text(2), _last(found, "chosen_drift").text(1, sign=True),
            ])  # fmt: skip
    head = (
        "loss", "setting", "flipped", "seeds", "KL (nats)", "expected reward", "change through flips",
        "above DPO's curve with the same flips", "held-out accuracy", "chosen log-ratio",
    )  # fmt: skip
    return "## Flipped labels\n\n" + table(head, rows)


def _store(runs: Sequence[Record]) -> str:
    """What the reference costs a run, and a sweep."""
    middle = [run for run in runs if run["loss"] == BASELINE and not run["flips"]]
    own, live = ([run for run in middle if run["reference"] == kind] for kind in ("own store", "live"))
    if not own:
        return ""
    same = [run for run in middle if all(run[name] == own[0][name] for name in ("value", "rate"))]
    shared = [run for run in same if run["reference"] == "shared store" and not run["ref_positions"]]
    filled = [run for run in runs if run["reference"] == "shared store" and run["ref_positions"]]
    rows = [
        _cost_row("first run of the sweep: fills the store", filled, shared),
        _cost_row("every other run: looks it up", shared, shared),
        _cost_row("a run with a store of its own", own, shared),
        _cost_row("a run with a live reference model", live, shared),
    ]
    swept = sum(1 for run in runs if run["reference"] == "shared store" and _reads_reference(run))
    fed = sum(run["ref_positions"] for run in runs if run["reference"] == "shared store")
    alone = swept * own[0]["ref_positions"]
    head = ("", "runs", "reference positions", "policy positions", "processor seconds (median)", "time / looked up")
    text = (
        f"The {swept} runs of the sweep that read the reference fed {fed} positions to it in all; with a store of its "
        f"own each, they would feed {alone}."
    )
    return "\n\n".join(("## One store for the sweep", table(head, [row for row in rows if row]), text))


def _reads_reference(run: Record) -> bool:
    from trl_dpo_ext import get_loss

    return get_loss(run["loss"]).needs_reference


def _cost_row(name: str, runs: Sequence[Record], base: Sequence[Record]) -> list[str]:
    if not runs or not base:
        return []
    middle, least = (statistics.median(run["seconds"] for run in found) for found in (runs, base))
    return [
        name, str(len(runs)), str(runs[0]["ref_positions"]), str(runs[0]["positions"]), f"{middle:.1f}",
        f"{middle / least:.2f}",
    ]  # fmt: skip


def _missing(runs: Sequence[Record]) -> str:
    done = {run["key"] for run in runs}
    cells = list(grid())
    missing: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.record["key"] not in done:
            missing.setdefault(cell.loss, []).append(cell)
    if not missing:
        return f"All {len(cells)} runs of the grid have finished."
    listed = "; ".join(f"`{loss}` {len(found)}" for loss, found in missing.items())
    count = sum(map(len, missing.values()))
    return (
        f"## Missing\n\n{count} of the grid's {len(cells)} runs have not run: {listed}. The same command goes on with "
        "them."
    )


def figure(records: Sequence[Record], file: Path) -> None:
    """Draw reward by divergence: one panel for each loss, over the baseline's points and best of n."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "frontier", "font.size": 8})
    task = next(record for record in records if record["key"] == TASK)
    runs = [run for run in records if "points" in run and not run["flips"] and run["reference"] != "own store"]
    runs = [run for run in runs if not _is_costed_only(run)]
    names = [family.loss for family in FAMILIES if any(run["loss"] == family.loss for run in runs)]
    columns = min(5, len(names))
    lines = -(-len(names) // columns)
    shape = (2.3 * columns, 2.0 * lines + 0.4)
    panels, axes = plt.subplots(
        lines, columns, figsize=shape, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    base = [(p["kl"], p["reward"]) for run in runs if run["loss"] == BASELINE for p in run["points"]]
    best = [(p["kl"], p["reward"]) for p in task["best_of_n"]]
    for axis, name in zip(axes.flat, names, strict=False):
        axis.plot(*zip(*best, strict=True), "--", color="#999999", linewidth=0.8, label="best of n")
        axis.scatter(*zip(*base, strict=True), s=8, color="#bbbbbb", label=BASELINE)
        for setting in by_setting([run for run in runs if run["loss"] == name]).values():
            own = [(p["kl"], p["reward"]) for run in setting for p in run["points"]]
            axis.scatter(*zip(*own, strict=True), s=10, color="#0072b2")
        axis.set_title(name)
        axis.grid(alpha=0.3)
    for axis in axes.flat[max(0, len(names) - columns) :]:  # with nothing below
        axis.tick_params(labelbottom=True)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    panels.supxlabel("KL(policy ‖ reference) of sequences (nats)")
    panels.supylabel("expected reward")
    axes.flat[0].legend(fontsize=6)
    metadata = {"Date": None} if file.suffix == ".svg" else None
    panels.savefig(file, dpi=120, metadata=metadata)
    plt.close(panels)
