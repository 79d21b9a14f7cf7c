"""Send sampled answers to the trackers of a run, as tables, each row once."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from .. import _trl

NAME = "watch/samples"
COLUMNS = ("step", "prompt_id", "prompt", "completion", "length", "ended", "repetition", "previous")
Rows = Sequence[Mapping[str, Any]]


class SampleTables:
    """Logs rows of samples with the trackers that a run reports to and that know tables, or text.

    A tracker that fails is told once, and left alone from then on. The first process calls this.

    Args:
        host: the trainer, whose `report_to` names the trackers.
    """

    def __init__(self, host: _trl.Host) -> None:
        self.host = host
        self.trackers = {name: log for name, log in self._known.items() if name in (host.trainer.args.report_to or ())}
        self._wandb: Any = None

    def log(self, step: int, rows: Rows) -> None:
        """Log the rows of one step, which have the columns of `COLUMNS`."""
        for name, log in list(self.trackers.items()):
            try:
                log(step, rows)
            except Exception as error:  # whatever a tracker raises, the run goes on
                del self.trackers[name]
                warnings.warn(
                    f"Watching: {name} has not taken the table of samples, and gets no more of them. They are in "
                    f"samples.jsonl. {type(error).__name__}: {error}",
                    stacklevel=2,
                )

    @property
    def _known(self) -> dict[str, Any]:
        return {
            "wandb": self._to_wandb,
            "trackio": _to_trackio,
            "mlflow": _to_mlflow,
            "comet_ml": _to_comet,
            "tensorboard": self._to_tensorboard,
        }

    def _to_wandb(self, step: int, rows: Rows) -> None:
        """Add rows to one table of the run, of which only new ones are sent; older clients get one for each step."""
        wandb = importlib.import_module("wandb")
        if wandb.run is None:
            return
        table = self._wandb
        if table is None:
            try:
                table = self._wandb = wandb.Table(columns=list(COLUMNS), log_mode="INCREMENTAL")
            except TypeError:
                table = wandb.Table(columns=list(COLUMNS))
        for row in rows:
            table.add_data(*(row[column] for column in COLUMNS))
        wandb.run.log({NAME: table, "train/global_step": step})

    def _to_tensorboard(self, step: int, rows: Rows) -> None:
        writer = _trl.tensorboard_writer(self.host.trainer)
        if writer is not None:
            writer.add_text(NAME, as_markdown(rows), step)
            writer.flush()


def as_markdown(rows: Rows) -> str:
    """A table in which special tokens such as `<s>` can be read, and line ends do not break it."""
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    lines += [" | ".join(_cell(row[column]) for column in COLUMNS) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
    return "".join(f"&#{ord(sign)};" if sign in "&<>|\\*_`[]#~" else sign for sign in text).replace("\n", "↵")


def _columns(rows: Rows) -> dict[str, list[Any]]:
    return {column: [row[column] for row in rows] for column in COLUMNS}


def _to_trackio(step: int, rows: Rows) -> None:
    trackio, pandas = importlib.import_module("trackio"), importlib.import_module("pandas")
    trackio.log({NAME: trackio.Table(dataframe=pandas.DataFrame(_columns(rows))), "train/global_step": step})


def _to_mlflow(step: int, rows: Rows) -> None:
    """A file for each step: mlflow loads and sends all rows of a file that it appends to."""
    mlflow = importlib.import_module("mlflow")
    if mlflow.active_run() is not None:  # otherwise it would begin one
        mlflow.log_table(_columns(rows), artifact_file=f"{NAME}_step_{step:08d}.json")


def _to_comet(step: int, rows: Rows) -> None:
    comet, pandas = importlib.import_module("comet_ml"), importlib.import_module("pandas")
    experiment = comet.get_running_experiment()
    if experiment is not None:
        table = pandas.DataFrame(_columns(rows))
        experiment.log_table(f"{NAME.replace('/', '_')}_step_{step:08d}.csv", tabular_data=table)
