"""The `train` and `precompute` commands: from parsed arguments to a finished run, or to a filled store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .. import _trl
from ..checks.models import NO_MODEL
from ..data.loading import load_preferences
from ..distributed.checkpoints import checkpoint_to_resume
from ..errors import InputError, collecting
from ..model_card import Origin
from ..preflight import RunSpec
from ..trainer import DPOExtTrainer
from .arguments import Arguments, TrainParser, adapter_config, quantization_config, with_loading
from .run_summary import print_run_summary

STOPPED_BY_ALARM = 3
"""Exit status of a run that an alarm has ended."""


def run(argv: Sequence[str], prog: str | None = None) -> int:
    """Train, save, and push to the hub if asked to."""
    arguments = TrainParser(prog=prog).read(argv)
    args, checkpoint, problems = arguments.args, None, []
    with collecting(problems):
        checkpoint = checkpoint_to_resume(args.resume_from_checkpoint, str(args.output_dir))
    trainer = build_trainer(arguments, problems)
    trainer.origin = Origin.of_command(argv, arguments, os.environ)
    print_run_summary(trainer, arguments.model, arguments.recipe_file)
    trainer.train(resume_from_checkpoint=checkpoint)
    usable = trainer.has_usable_weights
    if usable:
        trainer.save_model(args.output_dir)
    trainer.save_state()  # the log of the run, which `trl-dpo-ext report` reads
    if trainer.accelerator.is_main_process:  # one process of all machines, not one on each
        print(f"Saved to {args.output_dir}." if usable else "Not saved: the weights are not finite.", flush=True)
    if args.push_to_hub and usable:
        trainer.push_to_hub()
    getattr(trainer, "end", trainer.accelerator.end_training)()  # older versions of transformers have no `end`
    return _ended_by_alarm(trainer)


def _ended_by_alarm(trainer: DPOExtTrainer) -> int:
    """Print which alarm has ended the run; return the exit status."""
    stopped = trainer.stopped_by
    if stopped is None:
        return 0
    if trainer.accelerator.is_main_process:
        where = f"step {stopped['step']} of {trainer.state.max_steps}"
        print(f"Stopped at {where} by the alarm {stopped['name']}: {stopped['message']}", flush=True)
    return STOPPED_BY_ALARM


def run_precompute(argv: Sequence[str], prog: str | None = None) -> int:
    """Fill a store with the reference log-probs that `train` would read with the same arguments."""
    arguments = TrainParser(prog=prog).read([*argv, "--precompute_ref_log_probs", "true"])
    args = arguments.args
    if arguments.script.dataset_streaming and args.max_steps < 1:
        args.max_steps = 1  # transformers needs a length, which a stream does not have; no step is run
    policy: Any = contextlib.nullcontext()
    if args.describes_reference:  # only the reference is run, and the policy would take memory for nothing
        arguments, policy = _without_policy(arguments), _trl.stub_policy()
    with policy:
        trainer = build_trainer(arguments)
    trainer.precompute_reference()
    if trainer.accelerator.is_main_process:
        print(f"Reference: {trainer.describe_reference()}", flush=True)
    trainer.accelerator.end_training()
    return 0


def _without_policy(arguments: Arguments) -> Arguments:
    """Return the arguments without the adapter and the quantization of the policy."""
    return replace(arguments, model=replace(arguments.model, use_peft=False, load_in_4bit=False, load_in_8bit=False))


def build_trainer(arguments: Arguments, problems: Sequence[str] = ()) -> DPOExtTrainer:
    """Build the trainer that the arguments describe, with model and data loaded.

    Args:
        arguments: the arguments, valid or not.
        problems: what else is known to be wrong.

    Raises:
        InputError: listing everything that is wrong with the run, before a model is loaded.
    """
    found = [*arguments.problems, *problems]
    model, args = arguments.model, with_loading(arguments)
    names_no_data = not arguments.script.dataset_name and not arguments.data.datasets
    datasets: dict[str, Any] = {"train_dataset": None, "eval_dataset": None}
    if not (arguments.is_partial and names_no_data):
        with collecting(found):
            datasets = dict(zip(datasets, load_preferences(arguments.script, arguments.data, args), strict=True))
    load: dict[str, Any] = {}
    with collecting(found, ValueError, ImportError):
        load = {"quantization_config": quantization_config(model), "peft_config": adapter_config(model)}
    name: Any = model.model_name_or_path
    if not found and name is not None:
        return DPOExtTrainer(name, args=args, **datasets, **load)
    with collecting(found):
        RunSpec.build(args, name, None, **datasets, **load, tokenizes=False)
    raise InputError(*[problem for problem in found if not (arguments.is_partial and problem == NO_MODEL)])
