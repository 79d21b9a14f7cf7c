"""Sampled answers: for each prompt, what the model said at each step, with the difference to the step before."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...pages import LARGEST, Markup, data_text, element, fitting, join, table

_STEPS, _PROMPTS, _OPEN, _LONGEST = 12, 40, 3, 3000
_WORD = re.compile(
    r"\s*(?:[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+)|\s+"
)
"""Words with the blanks before them; single characters of scripts that are written without blanks."""
_MOST_COMPARED = 100_000
"""Pairs of words, beyond which all between the common start and the common end counts as replaced."""

Sample = Mapping[str, Any]


def samples_of(samples: Sequence[Sample], runs: int = 1) -> list[Markup]:
    """One run's answers: a table of steps for each prompt.

    Args:
        samples: the lines of its file.
        runs: in the page, which share the room for answers: half of a page.
    """
    prompts = _by_prompt(samples)
    shown = list(prompts.items())[: max(_OPEN, _PROMPTS // runs)]
    blocks = (_block(prompt, answers, is_open=place < _OPEN) for place, (prompt, answers) in enumerate(shown))
    kept = fitting(blocks, LARGEST // 2 // runs)
    if len(kept) < len(prompts):
        kept.append(element("p", f"{len(kept)} of {len(prompts)} prompts are shown.", class_="about"))
    return kept


def _block(prompt: str, answers: Sequence[Sample], *, is_open: bool) -> Markup:
    """The answers to one prompt."""
    chosen = _evenly(answers, _STEPS)
    left_out = f" ({len(chosen)} of {len(answers)} steps)" if len(chosen) < len(answers) else ""
    summary = element("summary", data_text(_short(prompt)), left_out)
    return element("details", summary, _history(chosen), open=is_open, class_="samples")


def last_samples(runs: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """The last answer of several runs to each prompt that at least two of them have."""
    of_runs = [_by_prompt(run["samples"]) for run in runs]
    prompts = dict.fromkeys(prompt for each in of_runs for prompt in each)
    shared = [prompt for prompt in prompts if sum(prompt in each for each in of_runs) > 1]
    blocks = []
    for place, prompt in enumerate(shared[:_PROMPTS]):
        rows = [
            [run["name"], each[prompt][-1]["step"], *_facts(each[prompt][-1]), _text([_said(each[prompt][-1])])]
            for run, each in zip(runs, of_runs, strict=True)
            if prompt in each
        ]
        made = table(["run", "step", "", "tokens", "repetition", "answer"], rows, class_="answers")
        summary = element("summary", data_text(_short(prompt)))
        blocks.append(element("details", summary, made, open=place < _OPEN, class_="samples"))
    return blocks


def _history(answers: Sequence[Sample]) -> Markup:
    rows, before = [], None
    for answer in answers:
        said = _said(answer)
        if before is None:
            shown = _text([said])
        elif said == before:
            shown = element("span", "(unchanged)", class_="about")
        else:
            shown = _text(difference(before, said))
        rows.append([answer["step"], *_facts(answer), shown])
        before = said
    return table(["step", "", "tokens", "repetition", "answer"], rows, class_="answers")


def difference(before: str, after: str) -> list[Any]:
    """The later of two texts with what was inserted, and what was deleted from the earlier one, marked."""
    old, new = _WORD.findall(before), _WORD.findall(after)
    parts: list[Any] = []
    for kind, a0, a1, b0, b1 in _changes(old, new):
        if kind == "equal":
            parts.append("".join(new[b0:b1]))
            continue
        if a1 > a0:
            parts.append(element("del", "".join(old[a0:a1])))
        if b1 > b0:
            parts.append(element("ins", "".join(new[b0:b1])))
    return parts


def _changes(old: Sequence[str], new: Sequence[str]) -> list[tuple[str, int, int, int, int]]:
    """The operations of difflib that make one list of words of another."""
    start, most = 0, min(len(old), len(new))
    while start < most and old[start] == new[start]:
        start += 1
    end = 0
    while end < most - start and old[-1 - end] == new[-1 - end]:
        end += 1
    old_end, new_end = len(old) - end, len(new) - end
    if (old_end - start) * (new_end - start) > _MOST_COMPARED:
        middle = [("replace", start, old_end, start, new_end)]
    else:
        matcher = difflib.SequenceMatcher(None, old[start:old_end], new[start:new_end], autojunk=False)
        opcodes = matcher.get_opcodes()
        middle = [(kind, a0 + start, a1 + start, b0 + start, b1 + start) for kind, a0, a1, b0, b1 in opcodes]
    return [("equal", 0, start, 0, start), *middle, ("equal", old_end, len(old), new_end, len(new))]


def _facts(answer: Sample) -> list[Any]:
    ended, repetition = answer.get("ended"), answer.get("repetition")
    state = "" if ended is None else "ended" if ended else "cut off"
    return [state, answer.get("length", ""), "" if repetition is None else f"{repetition:.2f}"]


def _by_prompt(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, dict[int, Sample]] = {}
    for sample in samples:
        found.setdefault(str(sample.get("prompt", "")), {})[sample["step"]] = sample
    return {prompt: [of_steps[step] for step in sorted(of_steps)] for prompt, of_steps in found.items()}


def _evenly(answers: Sequence[Sample], most: int) -> list[Sample]:
    """At most so many, the first and the last among them."""
    if len(answers) <= most:
        return list(answers)
    return [answers[round(at * (len(answers) - 1) / (most - 1))] for at in range(most)]


def _said(answer: Sample) -> str:
    return _short(str(answer.get("completion", "")))


def _short(text: str) -> str:
    """A text whose middle is left out if it is long."""
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} characters ...] {text[-half:]}"


def _text(parts: Sequence[Any]) -> Markup:
    return element("span", join(parts), class_="text", dir="auto")
