"""The flags of `score`: those of its own, those of the reference, and all others of `train`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from ..checks.machine import precision_problems
from ..scoring.arrangement import protocol_problems
from .arguments import Arguments, TrainParser, given_options
from .output import file_problems

_PRECISION = {"bf16", "fp16", "use_cpu", "bf16_full_eval"}
_REFERENCE: dict[str, dict[str, Any]] = {
    "ref_store": {"metavar": "DIR", "help": "store of the reference's log-probs, which is read, and filled"},
    "ref_model_name_or_path": {"metavar": "NAME", "help": "the reference, if it is not the adapter's base"},
    "ref_model_revision": {"metavar": "REVISION", "help": "revision of the reference"},
    "ref_quantization": {"metavar": "KIND", "help": "quantize the reference: nf4, fp4 or int8"},
    "ref_double_quant": {
        "nargs": "?",
        "const": "true",
        "choices": ("true", "false"),
        "help": "quantize scales",
    },
    "ref_compute_dtype": {"metavar": "DTYPE", "help": "in which a 4-bit reference multiplies"},
    "ref_skip_modules": {"nargs": "+", "metavar": "NAME", "help": "modules of the reference to leave unquantized"},
    "ref_dtype": {"metavar": "DTYPE", "help": "dtype of the reference's weights"},
}


def read_score_arguments(argv: Sequence[str], prog: str) -> tuple[argparse.Namespace, Arguments]:
    """Read the command line: our flags, with those of the reference as `reference_options`, and the run's.

    Problems of the run's flags are listed in the second, as `TrainParser.read` does.
    """
    ours, flags = _parser(prog).parse_known_args(argv)
    given = {name: vars(ours).pop(name) for name in _REFERENCE}
    ours.reference_options = {name: value for name, value in given.items() if value is not None}
    if "ref_double_quant" in ours.reference_options:
        ours.reference_options["ref_double_quant"] = given["ref_double_quant"] == "true"
    default = SimpleNamespace(bf16=None, bf16_full_eval=False, fp16=False, use_cpu=False)
    if precision_problems(default) and not _PRECISION & given_options(flags):
        flags = [*flags, "--bf16", "false"]  # a machine without a GPU computes in float32
    arguments = TrainParser(prog).read(flags)
    problems = [*arguments.problems, *_problems(ours)]
    return ours, replace(arguments, problems=tuple(problems))


def _problems(ours: argparse.Namespace) -> list[str]:
    problems = []
    if not ours.output:
        unused = [name for name in ("keep", "relabel", "weigh", "overwrite") if getattr(ours, name)]
        problems += [f"--{name} changes what is written: set --output." for name in unused]
    problems += protocol_problems(ours.protocol, ours.normalize, ours.beta)
    if ours.rank:
        pairs = ("keep", "relabel", "weigh", "compare", "score_columns")
        problems += [f"--{name} is about pairs: remove it, or --rank." for name in pairs if getattr(ours, name)]
    if ours.min_accuracy is not None and not 0 <= ours.min_accuracy <= 1:
        problems.append(f"--min_accuracy must be between 0 and 1; got {ours.min_accuracy}.")
    if ours.html_rows < 0:
        problems.append(f"--html_rows must be 0 or more; got {ours.html_rows}.")
    problems += file_problems({"json": ours.json, "html": ours.html})
    if ours.max_tokens is not None and ours.max_tokens < 1:
        problems.append(f"--max_tokens must be at least 1; got {ours.max_tokens}.")
    return problems


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog,
        allow_abbrev=False,
        description="Score preference data by the implicit rewards of a trained policy, beta * (log pi - log ref): "
        "accuracy, margins, calibration. The rows are read as `train` reads them. Accepts all flags of `train`, too; "
        "--model_name_or_path is the policy, a model or an adapter.",
    )
    add: Callable[..., Any] = parser.add_argument
    for name, settings in _REFERENCE.items():
        add(f"--{name}", **settings)
    _add_outputs(add)
    _add_selection(add)
    _add_scores(add)
    return parser


def _add_outputs(add: Callable[..., Any]) -> None:
    """Add the flags of what is read and written."""
    splits = "score the split that --dataset_train_split names, or --dataset_test_split (default: train)"
    add("--split", choices=("train", "test"), default="train", help=splits)
    add("--output", metavar="FILE", help="write the rows with their scores (.parquet or .jsonl)")
    add("--overwrite", action="store_true", help="replace an existing output")
    add("--json", metavar="FILE", help="write everything as JSON; - for standard output")
    add("--html", metavar="FILE", help="write a page that works without network")
    add("--html_rows", type=int, default=2000, metavar="N", help="rows in the page (default: 2000)")
    add("--subset_column", metavar="COLUMN", help="group by this column (default: subset, if there is one)")
    add(
        "--score_columns",
        nargs=2,
        metavar=("CHOSEN", "REJECTED"),
        help="columns to compare margins with (default: score_chosen score_rejected, if there are)",
    )


def _add_selection(add: Callable[..., Any]) -> None:
    """Add the flags of expressions over rows."""
    add("--keep", metavar="EXPR", help='which rows to write, such as "margin > 0"')
    add("--relabel", metavar="EXPR", help='where to exchange the sides, such as "margin < -1"')
    add("--signed_columns", nargs="+", metavar="COLUMN", help="columns that --relabel negates (default: margin)")
    add("--weigh", metavar="EXPR", help="a weight for each row")
    add("--weight_column", default="weight", metavar="COLUMN", help="where weights are written (default: weight)")
    add("--dry_run", action="store_true", help="count what the expressions do with an existing output; loads no model")


def _add_scores(add: Callable[..., Any]) -> None:
    """Add the flags of how rows are scored."""
    add(
        "--normalize",
        choices=("sum", "mean"),
        default="sum",
        help="what log-ratios of tokens become (default: sum)",
    )
    add("--reference_free", choices=("sum", "mean", "norm"), help="score without a reference")
    add(
        "--protocol",
        choices=("train", "rewardbench"),
        default="train",
        help="how rows become tokens: as in training, or as in RewardBench, with its beta of 1 (default: train)",
    )
    add("--rank", action="store_true", help="score any number of completions per prompt, and compare their order")
    add("--compare", metavar="POLICY", help="compare with a second policy on the same rows, by a paired test")
    add("--min_accuracy", type=float, metavar="X", help="exit with status 1 below this accuracy")
    add("--work_dir", metavar="DIR", help="keep log-probs here (default: OUTPUT.work, removed at the end)")
    add("--beta", type=float, metavar="X", help="scale of the rewards (default: the run's, 0.1)")
    add("--max_tokens", type=int, metavar="N", help="token positions per batch (default: by free memory)")
    add("--ref_adapter", metavar="DIR", help="the adapter that the run started from, as the reference")
