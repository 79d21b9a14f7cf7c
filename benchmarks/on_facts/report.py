"""Tables and figure of what lists gain, from the records of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from on_sentiment.records import Record
from on_sentiment.report import table
from on_sentiment.statistics_of_runs import Estimate, estimate

from .cells import SEEDS, WAYS, grid

TASK = "task"
"""Key of the record that describes the task."""
BASELINE = WAYS[0].name
MEASURES = {
    "top1": "top-1 accuracy",
    "pairs": "accuracy over all pairs",
    "short": "right and short over right and padded",
    "right": "right and short over wrong and short",
}
"""Shares of held-out lists."""
OWN = {"own_right": "right", "own_right_and_short": "right and short", "own_tokens": "tokens"}
"""Of the own answers to held-out questions, decoded greedily after the whole budget."""
COLORS = ("#000000", "#999999", "#0072b2", "#d55e00", "#009e73")


def markdown(records: Sequence[Record]) -> str:
    """Return the report; `records` has that of the task and those of the runs."""
    task = next(record for record in records if record["key"] == TASK)
    runs = [record for record in records if "points" in record]
    last = len(runs[0]["points"]) - 1
    parts = [_facts(task, runs), _results(runs, last), _results(runs, 0), _cost(runs), _missing(runs)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(task: Record, runs: Sequence[Record]) -> str:
    before, plan = task["before"], task["plan"]
    return (
        f"{len(runs)} runs, {task['machine']}; commit {task['commit']}. A language model of {task['parameters']:,} "
        f"parameters; {task['train']} lists to train on, {task['held_out']} held out. A step takes {plan['lists']} "
        f"prompts, beta {plan['beta']:g}, learning rate {plan['rate']:g}. Before training, the share of own answers "
        f"that are right is {before['own_right']:.2f}, right and short {before['own_right_and_short']:.2f}; they have "
        f"{before['own_tokens']:.1f} tokens."
    )


def of_way(runs: Sequence[Record], way: str) -> list[Record]:
    """The runs of a way, by seed."""
    return sorted((run for run in runs if run["way"] == way), key=lambda run: run["seed"])


def value(runs: Sequence[Record], place: int, name: str) -> Estimate:
    """The mean over seeds of a measure at one of the stops."""
    return estimate([run["points"][place][name] for run in runs])


def gain(runs: Sequence[Record], way: str, place: int, name: str) -> Estimate:
    """The mean over seeds of a measure beyond that of the baseline in the same seed."""
    base = {run["seed"]: run["points"][place][name] for run in of_way(runs, BASELINE)}
    own = {run["seed"]: run["points"][place][name] for run in of_way(runs, way)}
    return estimate([own[seed] - base[seed] for seed in sorted(own.keys() & base.keys())])


def _shown(runs: Sequence[Record], way: str, place: int, name: str, digits: int) -> str:
    """A measure, and in parentheses what it is beyond the baseline's; bold if the interval leaves out 0."""
    text = value(of_way(runs, way), place, name).text(digits)
    if way == BASELINE:
        return text
    more = gain(runs, way, place, name)
    by = more.text(digits, sign=True)
    return f"{text} ({f'**{by}**' if more.differs else by})"


def _results(runs: Sequence[Record], place: int) -> str:
    rows = []
    for way in WAYS:
        found = of_way(runs, way.name)
        if not found:
            continue
        cells = [way.title, str(len(found)), *(_shown(runs, way.name, place, name, 2) for name in MEASURES)]
        rows.append(cells)
    head = ("trained on", "seeds", *MEASURES.values())
    budget = runs[0]["points"][place]["budget"]
    return f"## After {budget:,} positions\n\n" + table(head, rows)


def _cost(runs: Sequence[Record]) -> str:
    rows = []
    for way in WAYS:
        found = of_way(runs, way.name)
        if found:
            point = found[0]["points"][-1]
            seconds = estimate([run["seconds"] for run in found]).mean
            rows.append([
                way.title, f"{point['positions']:,}", str(point["step"]), f"{point['positions'] / point['step']:.0f}",
                f"{seconds:.0f}", value(found, -1, "best_drift").text(1, sign=True),
                *(_shown(runs, way.name, -1, name, 1 if name == "own_tokens" else 2) for name in OWN),
            ])  # fmt: skip
    head = (
        "trained on", "positions fed (seed 0)", "steps", "positions per step", "processor seconds, measuring included",
        "log-ratio of the best answer (nats)", *(f"own answers: {title}" for title in OWN.values()),
    )  # fmt: skip
    return "## Cost, and own answers\n\n" + table(head, rows)


def _missing(runs: Sequence[Record]) -> str:
    done = {run["key"] for run in runs}
    missing = [cell.key for cell in grid() if cell.key not in done]
    return f"Not run: {', '.join(missing)}." if missing else f"All {len(SEEDS) * len(WAYS)} runs have finished."


def figure(records: Sequence[Record], file: Path) -> None:
    """Draw each measure by the positions that were fed, one line for each way, with the range over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "list_gain", "font.size": 8})
    runs = [record for record in records if "points" in record]
    drawn = MEASURES | {"best_drift": "log-ratio of the best answer (nats)"}
    shape: Any = {"figsize": (2.9 * len(drawn), 3.2), "layout": "constrained"}
    panels, axes = plt.subplots(1, len(drawn), sharex=True, **shape)
    for axis, (name, title) in zip(axes, drawn.items(), strict=True):
        for way, color in zip(WAYS, COLORS, strict=True):
            found = of_way(runs, way.name)
            if not found:
                continue
            budgets = [point["budget"] / 1000 for point in found[0]["points"]]
            values = [[run["points"][place][name] for run in found] for place in range(len(budgets))]
            means = [sum(each) / len(each) for each in values]
            label = way.title.replace("`", "")
            axis.plot(budgets, means, "o-", color=color, markersize=3, linewidth=1.2, label=label)
            axis.fill_between(budgets, [*map(min, values)], [*map(max, values)], color=color, alpha=0.08, linewidth=0)
        axis.set_title(title)
        axis.set_xscale("log", base=2)
        axis.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
        axis.grid(alpha=0.3)
    axes[len(axes) // 2].set_xlabel("positions fed to the policy (thousands)")
    handles, labels = axes[0].get_legend_handles_labels()
    panels.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7)
    panels.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    plt.close(panels)
