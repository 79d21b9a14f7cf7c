"""`Sampler`: samples answers to fixed prompts while a run trains, and measures them."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import _trl
from ..checks.tokenizers import eos_ids
from ..distributed.agreement import Agreement, SharedFailure
from ..distributed.shield import Shield
from ..reference.source import ReferenceSource
from ..run_files import SAMPLES_FILE, append_lines, cut_after, read_samples
from . import kl
from .generation import Runner, Sampling, Scored, Share
from .measures import Answer, summarize
from .prompts import Prompt, visible_text, watched_prompts
from .random_state import kept_random_state
from .sampled import Sampled
from .tables import SampleTables

logger = logging.getLogger(__name__)

_LARGE_SHARE = 0.05
"""From this share of a run's time on, sampling is said to be slow."""


@dataclass(frozen=True)
class _Answered:
    """One answer on its way between processes."""

    ids: tuple[int, ...]
    ended: bool
    logp: float
    ref_logp: float | None


class Sampler:
    """Samples answers of the policy to fixed prompts. Every process constructs one, and makes the same calls.

    A run trains the same weights with it and without. A failure on one process switches sampling off on all, is told
    once, and ends nothing.

    Args:
        host: a constructed trainer.
        args: the run's configuration; see `WatchOptions`.
        reference: of the run; a stored one has no log-probs of fresh answers.

    Raises:
        InputError: `watch_prompts_file` cannot be used.
    """

    def __init__(self, host: _trl.Host, args: Any, reference: ReferenceSource) -> None:
        self.host, self.args, self.has_live_reference = host, args, reference.is_live
        accelerator = host.trainer.accelerator
        self.agreement = Agreement(accelerator.device, accelerator.num_processes)
        self.file = Path(args.output_dir) / SAMPLES_FILE
        self.batch_size: int = args.per_device_eval_batch_size
        self.tables = SampleTables(host)
        self.estimator: str | None = None
        self.prompts: list[Prompt] = []
        self.source = ""
        self._last: dict[str, dict[str, Any]] = {}
        self._halved = self._told_slow = False
        self._ended: float | None = None
        problem = host.generation_problem()
        if problem is None:
            room = max(args.watch_max_new_tokens, self._kl_tokens)
            self.prompts, self.source = watched_prompts(host, args, room)
            if not self.prompts:
                problem = f"there are no prompts {self.source} that leave room for {room} tokens"
        self.problem = problem
        """Why nothing is sampled; None if it is."""
        if problem is None and reference.is_stored and args.watch_kl != "off" and host.is_main_process:
            logger.info(
                "Watching: no KL divergence, because a stored reference has no log-probs of samples; with evaluations, "
                "watch/logratio_chosen says how far the policy is from it on their chosen answers, per token."
            )
        if problem is not None:
            self._tell(f"Watching: no answers are sampled, because {problem}.")

    @property
    def is_on(self) -> bool:
        """Whether answers are sampled."""
        return self.problem is None

    def begin(self, step: int) -> None:
        """Begin or resume a run: remove the lines of samples.jsonl beyond the step. Every process calls this."""
        kept: list[dict[str, Any]] = []
        if self.host.is_main_process:
            cut_after(self.file, step or -1)
            kept = read_samples(self.file)
        for row in _trl.gather_object(kept)[0]:
            self._last[row["prompt_id"]] = row

    def sample(self, step: int) -> Sampled | None:
        """Sample, measure, and append to samples.jsonl; None if sampling is off. Every process calls this."""
        if not self.is_on:
            return None
        try:
            with kept_random_state():
                return self._sample_and_write(step)
        except SharedFailure as error:
            self.problem = str(error)
            self._tell(f"Watching: sampling failed at step {step} and is switched off; training goes on. {error}")
            return None

    def _sample_and_write(self, step: int) -> Sampled:
        started = time.perf_counter()
        answers, divergence = self._answers(step)
        metrics = summarize([Answer(each.ids, each.ended) for each in answers])
        metrics |= divergence.metrics if divergence else {}
        metrics["seconds"] = seconds = time.perf_counter() - started
        rows = [self._row(step, *each) for each in zip(self.prompts, answers, strict=True)]
        self.agreement.run(lambda: self._write(step, rows, seconds) if self.host.is_main_process else None)
        for row in rows:
            self._last[row["prompt_id"]] = row
        named = {f"watch/{name}": value for name, value in metrics.items()}
        return Sampled(named, rows, divergence.estimator if divergence else "")

    def _write(self, step: int, rows: list[dict[str, Any]], seconds: float) -> None:
        append_lines(self.file, rows)
        self.tables.log(step, [{**row, "previous": self._previous(row)} for row in rows])
        self._tell_time(step, seconds)

    def _previous(self, row: Mapping[str, Any]) -> str | None:
        """The completion that was sampled for the same prompt before."""
        return self._last.get(row["prompt_id"], {}).get("completion")

    @property
    def _kl_tokens(self) -> int:
        return min(kl.TOKENS, self.args.watch_max_new_tokens) if self.args.watch_kl != "off" else 0

    def _answers(self, step: int) -> tuple[list[_Answered], kl.Kl | None]:
        """Sample with the batch size of evaluations, and with half of it if memory runs out once."""
        try:
            return self._sample_together(step)
        except SharedFailure as error:
            if not error.out_of_memory or self._halved or self.batch_size == 1:
                raise
        self._halved, self.batch_size = True, self.batch_size // 2
        _trl.free_memory()
        return self._sample_together(step)

    def _sample_together(self, step: int) -> tuple[list[_Answered], kl.Kl | None]:
        settings = Sampling(self.args.watch_temperature, self.args.watch_max_new_tokens, self.args.seed + step)
        with contextlib.ExitStack() as stack:
            models = self._models(stack)
            mine = self._scored_answers(self._runner(*models, self.prompts), settings)
            divergence = self._divergence(*models)
        by_number = {number: each for part in _trl.gather_object(mine) for number, each in part.items()}
        return [by_number[number] for number in range(len(self.prompts))], divergence

    def _models(self, stack: contextlib.ExitStack) -> tuple[_trl.Speaker, Callable[..., Any] | None]:
        """The policy and what to call for the live reference, if there is one, until the stack is left."""

        def shielded(model: Any) -> Any:
            return stack.enter_context(Shield(model).put_on()) if self.host.is_sharded else model

        speaker = self.agreement.run(lambda: stack.enter_context(self.host.generating()))
        if speaker.in_lockstep:
            speaker = replace(speaker, forward=shielded(speaker.forward))
        if not self.has_live_reference:
            return speaker, None
        apart = self.host.reference_apart()
        model = speaker.forward if apart is None else shielded(apart)
        return speaker, lambda **inputs: self.host.as_reference(lambda: model(**inputs))

    def _runner(self, speaker: _trl.Speaker, reference: Callable[..., Any] | None, prompts: list[Prompt]) -> Runner:
        accelerator = self.host.trainer.accelerator
        share = Share.of([p.ids for p in prompts], accelerator.process_index, accelerator.num_processes)
        size = 1 if getattr(speaker.causal, "_is_stateful", False) else self.batch_size
        return Runner(
            speaker, reference, self.agreement, share, size, self._eos_ids, self.host.pad_token_id, self.host.is_sharded
        )

    def _scored_answers(self, runner: Runner, settings: Sampling) -> dict[int, _Answered]:
        """The answers to this process's prompts, with their log-probs under policy and live reference, by number."""
        answers = {number: Answer.of(ids, self._eos_ids) for number, ids in runner.answers(settings).items()}
        found: dict[int, _Answered] = {}

        def score(numbers: list[int], batch: Scored, turn: Callable[[], None]) -> None:
            turn()
            logps = batch.token_logps(runner.speaker.forward).sum(dim=1).tolist()
            theirs: list[float | None] = [None] * len(numbers)
            if runner.reference is not None:
                turn()
                theirs = batch.token_logps(runner.reference).sum(dim=1).tolist()
            for number, logp, ref_logp in zip(numbers, logps, theirs, strict=True):
                found[number] = _Answered(answers[number].ids, answers[number].ended, logp, ref_logp)

        runner.each_batch({number: list(answer.ids) for number, answer in answers.items()}, score)
        return {number: found[number] for number in runner.share.numbers[: runner.share.real]}

    def _divergence(self, speaker: _trl.Speaker, reference: Callable[..., Any] | None) -> kl.Kl | None:
        if self.args.watch_kl == "off" or reference is None:
            return None
        if self.estimator is None:
            vocabulary = self.host.vocabulary_size()
            self.estimator = kl.choose(self.args.watch_kl, vocabulary, self.batch_size, self.agreement.device)
        return kl.estimate(
            self._runner(speaker, reference, self.prompts[: kl.PROMPTS]), self.estimator, self._kl_tokens
        )

    @cached_property
    def _tokenizer(self) -> Any:
        return _trl.tokenizer_of(self.host.trainer.processing_class)

    @cached_property
    def _eos_ids(self) -> list[int]:
        """Tokens that end an answer: the tokenizer's, and those of the model's generation configuration."""
        own = self._tokenizer.eos_token_id
        of_model = eos_ids(self.host.causal_model(self.host.trainer.model))
        return list(dict.fromkeys([*([] if own is None else [own]), *of_model]))

    def _row(self, step: int, prompt: Prompt, sampled: _Answered) -> dict[str, Any]:
        answer = Answer(sampled.ids, sampled.ended)
        text = visible_text(self._tokenizer, answer.ids) + ("" if answer.ended else "...")
        return {
            "step": step,
            "epoch": self.host.trainer.state.epoch or 0.0,
            "prompt_id": prompt.name,
            "prompt": prompt.text,
            "last_message": prompt.last_message,
            "completion": text,
            "completion_ids": list(answer.ids),
            "ended": answer.ended,
            "length": answer.length,
            "repetition": answer.repetition,
            "logp": sampled.logp,
            "ref_logp": sampled.ref_logp,
        }

    def _tell(self, message: str) -> None:
        if self.host.is_main_process:
            warnings.warn(message, stacklevel=2)

    def _tell_time(self, step: int, seconds: float) -> None:
        """Say how long the first sampling took, and once that sampling takes much of the run's time."""
        now = time.perf_counter()
        if not self._last:
            logger.info("Watching: %d samples at step %d took %.1f s.", len(self.prompts), step, seconds)
        elapsed = None if self._ended is None else now - self._ended
        self._ended = now
        if elapsed is None or self._told_slow or seconds <= _LARGE_SHARE * elapsed:
            return
        self._told_slow = True
        logger.info(
            "Watching: sampling takes %.0f %% of the time. Decrease watch_prompts (%d) or watch_max_new_tokens (%d), "
            "or evaluate less often.",
            100 * seconds / elapsed, len(self.prompts), self.args.watch_max_new_tokens,
        )  # fmt: skip
