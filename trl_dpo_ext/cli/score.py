"""The `score` command: preference data by the implicit rewards of a trained policy."""

from __future__ import annotations

import argparse
import contextlib
import copy
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..checks.models import NO_MODEL
from ..data.loading import load_splits
from ..errors import InputError, collecting
from ..inspection.terminal import make_console
from ..logging_setup import show_messages
from ..scoring.arrangement import Arrangement
from ..scoring.compare import compare
from ..scoring.dry_run import dry_run
from ..scoring.output import Written, output_problems, write_scored
from ..scoring.page import list_page, page, sample
from ..scoring.plan import Scored, ScorePlan
from ..scoring.ranking.result import RankedCompletions, check_ranking
from ..scoring.reference_of import Wanted
from ..scoring.score import PreferenceScores, work_folder
from ..scoring.selection import Selection
from ..scoring.summary import SummaryOptions
from ..scoring.terminal import show, show_counts
from ..scoring.texts import texts_of
from ..version import __version__
from .arguments import Arguments, quantization_config, with_loading
from .output import write_json, write_output
from .score_arguments import read_score_arguments


def run(argv: Sequence[str], prog: str) -> int:
    """Print how a policy scores a dataset, and write the rows; return 1 if the accuracy is below `--min_accuracy`."""
    ours, arguments = read_score_arguments(argv, prog)
    if ours.dry_run:
        return _count(ours, arguments)
    job = _Job.checked(ours, arguments)
    with work_folder(job.work_dir, job.rows.plan.args) as folder:
        result = job.scored(folder)
        if job.is_first:
            job.show(result)
    status = job.finished(result)
    if job.rows.plan.args.world_size > 1:
        PartialState().destroy_process_group()
    return status


def _count(ours: argparse.Namespace, arguments: Arguments) -> int:
    problems = [
        *arguments.problems,
        *([] if ours.output else ["--dry_run counts rows of an existing --output: set it."]),
    ]
    if problems:
        raise InputError(*problems)
    show_counts(dry_run(Path(ours.output), _selection(ours, arguments)).counts(), ours.output, make_console())
    return 0


def _selection(ours: argparse.Namespace, arguments: Arguments) -> Selection:
    return Selection(
        *(ours.keep, ours.relabel, ours.weigh, ours.weight_column, ours.signed_columns),
        dataset_columns=getattr(arguments.args, "dataset_columns", None),
    )


@dataclass
class _Job:
    """A checked command line, and what it asks for."""

    ours: argparse.Namespace
    arguments: Arguments
    rows: Arrangement
    other: Arrangement | None
    """Of the policy to compare with."""
    selection: Selection
    options: SummaryOptions

    @classmethod
    def checked(cls, ours: argparse.Namespace, arguments: Arguments) -> _Job:
        """Check everything that can be checked before a model is loaded.

        Raises:
            InputError: listing all problems.
        """
        selection = _selection(ours, arguments)
        scores = tuple(ours.score_columns) if ours.score_columns else None
        options = SummaryOptions(ours.normalize, ours.reference_free, ours.subset_column, scores)  # type: ignore[arg-type]
        problems = [*arguments.problems]
        dataset, rows, other = None, None, None
        with collecting(problems):
            dataset = _rows(ours, arguments)
        if dataset is not None and hasattr(dataset, "features"):
            problems += options.problems(dataset)
            if ours.output:
                problems += output_problems(Path(ours.output), dataset, selection, ours.overwrite)
        if arguments.model.model_name_or_path is None:
            problems.append(NO_MODEL)
        elif dataset is not None:
            rows, other = _arranged(ours, arguments, dataset, problems)
            if ours.rank and rows is not None and not problems:
                check_ranking(rows, options)
        if problems or rows is None:
            raise InputError(*problems)
        show_messages(rows.plan.args)
        return cls(ours, arguments, rows, other, selection, options)

    @property
    def work_dir(self) -> Path | None:
        """Where log-probs are kept until the output is written; None for a temporary folder."""
        if self.ours.work_dir:
            return Path(self.ours.work_dir)
        return Path(f"{self.ours.output}.work") if self.ours.output else None

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rows.plan.args.process_index == 0

    def scored(self, folder: Path) -> PreferenceScores | RankedCompletions:
        """Run the passes of the policy, and of a second one."""
        script, plan = self.arguments.script, self.rows.plan
        described = {"dataset": script.dataset_name, "split": _split_name(self.ours, self.arguments)}
        ours, theirs = _policies(self.ours, self.arguments)
        with _naming(ours):
            found = plan.run(folder)
        if self.ours.rank:
            return RankedCompletions.of(self.rows, found, self.options, described)
        result = PreferenceScores(self.rows.pairs(found), self.options, described)
        if self.other is not None:
            same = self.other.plan.reference.described == plan.reference.described
            with _naming(theirs):
                found = self.other.plan.run(folder / "compare", folder / "reference" if same else None)
                margins = PreferenceScores(self.other.pairs(found), self.options).measures.margin
            result.data["compare"] = {**compare(result.measures.margin, margins), **_named(found)}
        return result

    def show(self, result: PreferenceScores | RankedCompletions) -> None:
        """Write the files and print the summary."""
        data = result.data
        data["versions"]["trl_dpo_ext"] = __version__
        data["output"] = self._written(result).as_json() if self.ours.output else None
        if self.ours.json:
            write_json(self.ours.json, result.json())
        if self.ours.html:
            write_output(self.ours.html, self._page(result))
        if self.ours.json != "-":
            show(data, make_console())

    def _page(self, result: PreferenceScores | RankedCompletions) -> str:
        if isinstance(result, RankedCompletions):
            return list_page(result.data, result.groups, self.rows.read(), self.ours.html_rows)
        texts = texts_of(result.scored, sample(result.pairs, result.measures, self.ours.html_rows))
        return page(result.data, result.pairs, texts)

    def _written(self, result: PreferenceScores | RankedCompletions) -> Written:
        recorded = {**result.data["arguments"], "versions": result.data["versions"]}
        if isinstance(result, RankedCompletions):
            return result.write(Path(self.ours.output), recorded, self.ours.overwrite)
        return write_scored(
            Path(self.ours.output), result.pairs, result.measures, self.selection, recorded, self.ours.overwrite
        )

    def finished(self, result: PreferenceScores | RankedCompletions) -> int:
        """Remove the work folder of the output, and return the exit status."""
        if self.is_first and self.ours.output and not self.ours.work_dir and self.work_dir is not None:
            shutil.rmtree(self.work_dir, ignore_errors=True)
        found, least = result.accuracy, self.ours.min_accuracy
        if least is None or (found is not None and found >= least):
            return 0
        if self.is_first:
            print(f"The accuracy {found} is below --min_accuracy {least}.", file=sys.stderr)
        return 1


def _arranged(
    ours: argparse.Namespace, arguments: Arguments, dataset: Any, problems: list[str]
) -> tuple[Arrangement | None, Arrangement | None]:
    """What to run for the policy and for the one to compare with; problems are added to a list."""
    arranged: list[Arrangement | None] = [None, None]
    args = _args(ours, arguments)
    wanted = Wanted.of(args, adapter=ours.ref_adapter, free=ours.reference_free is not None)
    found: list[list[str]] = [[], []]
    for at, name in enumerate((arguments.model.model_name_or_path, ours.compare)):
        if name is None:
            continue
        if at:  # the revision is the first policy's
            args = copy.copy(args)
            args.model_init_kwargs = {**(args.model_init_kwargs or {}), "revision": "main"}
        with collecting(found[at], ImportError):
            plan = ScorePlan.build(name, dataset, None, args, wanted, quantization_config(arguments.model))
            arranged[at] = Arrangement.of(plan, ours.protocol, ours.rank)
    problems += [problem for problem in found[0] if problem in found[1]]  # of the rows, or of both
    for at, who in enumerate(_policies(ours, arguments)):
        problems += [who + problem for problem in found[at] if problem not in found[1 - at]]
    return arranged[0], arranged[1]


def _policies(ours: argparse.Namespace, arguments: Arguments) -> tuple[str, str]:
    """What problems of each policy begin with, so that they say which one they are about if there are two."""
    if ours.compare is None:
        return "", ""
    return f"--model_name_or_path {arguments.model.model_name_or_path}: ", f"--compare {ours.compare}: "


@contextlib.contextmanager
def _naming(policy: str) -> Iterator[None]:
    """Begin the problems of an error inside with the policy that they are about."""
    try:
        yield
    except InputError as error:
        raise InputError(*(policy + problem for problem in error.problems)) from None


def _named(found: Scored) -> dict[str, Any]:
    return {name: found.described[name] for name in ("policy", "reference", "policy_identity", "reference_identity")}


def _rows(ours: argparse.Namespace, arguments: Arguments) -> Any:
    """The split to score, as it was loaded."""
    splits = load_splits(arguments.script, arguments.data, arguments.args)
    split = _split_name(ours, arguments)
    if split not in splits:
        flag = "dataset_test_split" if ours.split == "test" else "dataset_train_split"
        raise InputError(f"The dataset has no split {split!r}; it has {', '.join(splits)}. Set --{flag}.")
    return splits[split]


def _split_name(ours: argparse.Namespace, arguments: Arguments) -> str:
    script = arguments.script
    return script.dataset_test_split if ours.split == "test" else script.dataset_train_split


def _args(ours: argparse.Namespace, arguments: Arguments) -> Any:
    """The run's configuration, with the options of the reference that were given on the command line."""
    args = copy.copy(with_loading(arguments))
    for name, value in ours.reference_options.items():
        setattr(args, name, value)
    if ours.beta is not None:  # which the losses of the run may not take
        args.beta, args.loss_type, args.loss_weights = ours.beta, ["sigmoid"], None
    if ours.max_tokens is not None:
        args.precompute_ref_max_tokens = ours.max_tokens
    return args
