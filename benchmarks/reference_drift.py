"""How far quantized references are from the model they were made of, and what each way to calibrate removes.

Every estimator is fitted on a few pairs of the demo's training set, many times over, and judged on pairs that it has
not seen: others of the training set, and the demo's held-out set, whose phrases differ. Errors are in nats.

Run: python benchmarks/reference_drift.py --model demo/work/model
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from trl_dpo_ext import load_reference
from trl_dpo_ext.reference.drift.measure import SHIFT, TOKENS, answer_errors, shift_per_token

sys.path.insert(0, str(Path(__file__).parent.parent))
from demo.evaluate import read_pairs
from demo.preferences import DATA

KINDS: dict[str, dict[str, Any]] = {
    "nf4": {"quantization": "nf4"},
    "nf4, double": {"quantization": "nf4", "double_quant": True},
    "fp4": {"quantization": "fp4"},
    "int8": {"quantization": "int8"},
    "bf16": {"dtype": "bfloat16"},
}


@dataclass(frozen=True)
class Scored:
    """Answers of some pairs: fields of their tokens, each (rows, tokens); rows = 2 x pairs, chosen half first."""

    logp: torch.Tensor
    entropy: torch.Tensor
    mask: torch.Tensor
    exact: torch.Tensor | None = None
    """Log-probs of the model that the reference stands for."""

    @property
    def position(self) -> torch.Tensor:
        """Place of every token in its answer, from 0 on."""
        return (self.mask.cumsum(dim=1) - 1).double()

    def pairs(self, indices: list[int]) -> Scored:
        """Some of the pairs."""
        rows = indices + [index + len(self.logp) // 2 for index in indices]
        return Scored(self.logp[rows], self.entropy[rows], self.mask[rows], self.exact[rows])

    def errors(self, correction: torch.Tensor | float = 0.0) -> torch.Tensor:
        """`answer_errors` of the package, (pairs, 2, 3), after a correction of every token."""
        return answer_errors(self.logp + correction, self.exact, self.mask)


Estimator = Callable[[Scored], Callable[[Scored], torch.Tensor]]
"""From measured pairs to the correction of any pairs' tokens, (rows, tokens)."""


def tokens_of(tokenizer: Any, pair: Mapping[str, Any], side: str) -> tuple[list[int], int]:
    start = tokenizer.apply_chat_template(pair["prompt"], add_generation_prompt=True, return_dict=False)
    return tokenizer.apply_chat_template(pair["prompt"] + pair[side], return_dict=False), len(start)


@torch.inference_mode()
def scored(model: Any, rows: list[tuple[list[int], int]], batch_size: int = 16) -> Scored:
    answers = max(len(whole) - prompt for whole, prompt in rows)
    logp, entropy = torch.zeros(2, len(rows), answers, dtype=torch.float64)
    mask = torch.zeros(len(rows), answers, dtype=torch.bool)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(rows[index][0]) for index in batch], batch_first=True)
        hidden = model.base_model(input_ids=ids).last_hidden_state  # padding stands at the right
        for row, index in enumerate(batch):
            whole, prompt = rows[index]
            length = len(whole) - prompt
            logps = model.lm_head(hidden[row, prompt - 1 : len(whole) - 1]).float().log_softmax(-1)
            logp[index, :length] = logps.gather(-1, ids[row, prompt : len(whole), None]).squeeze(-1).double()
            entropy[index, :length] = -(logps.exp() * logps).sum(-1).double()
            mask[index, :length] = True
    return Scored(logp, entropy, mask)


def no_correction(_: Scored) -> Callable[[Scored], torch.Tensor]:
    return lambda answers: torch.zeros_like(answers.logp)


def mean_per_answer(measured: Scored) -> Callable[[Scored], torch.Tensor]:
    shift = measured.errors()[..., SHIFT].mean()
    return lambda answers: -shift / answers.mask.sum(dim=1, keepdim=True).expand_as(answers.logp)


def mean_per_token(measured: Scored) -> Callable[[Scored], torch.Tensor]:
    found = measured.errors()
    shift = found[..., SHIFT].sum() / found[..., TOKENS].sum()
    return lambda answers: torch.zeros_like(answers.logp) - shift


def per_token_and_answer(measured: Scored) -> Callable[[Scored], torch.Tensor]:
    """A shift per token and one per answer, by least squares on answers, each weighed by 1 / its length."""
    found = measured.errors().flatten(0, 1)
    lengths, sums = found[:, TOKENS], found[:, SHIFT]
    x = torch.stack([lengths, torch.ones_like(lengths)], dim=1) / lengths.sqrt().unsqueeze(1)
    token, answer = torch.linalg.lstsq(x, (sums / lengths.sqrt()).unsqueeze(1)).solution.squeeze(1)
    return lambda answers: -token - answer / answers.mask.sum(dim=1, keepdim=True).expand_as(answers.logp)


def package(measured: Scored) -> Callable[[Scored], torch.Tensor]:
    shift = shift_per_token(measured.errors())
    return lambda answers: torch.zeros_like(answers.logp) - shift


def regression(features: Callable[[Scored], list[torch.Tensor]], ridge: float = 0.0) -> Estimator:
    """Least squares of a token's error on features of the quantized model; `ridge` shrinks all but the constant."""

    def columns(answers: Scored) -> torch.Tensor:
        return torch.stack([torch.ones_like(answers.logp), *features(answers)], dim=-1)

    def estimator(measured: Scored) -> Callable[[Scored], torch.Tensor]:
        x, y = columns(measured)[measured.mask], (measured.exact - measured.logp)[measured.mask]
        penalty = ridge * torch.eye(x.size(1), dtype=x.dtype)
        penalty[0, 0] = 0
        weights = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
        return lambda answers: columns(answers) @ weights

    return estimator


ESTIMATORS: dict[str, Estimator] = {
    "none": no_correction,
    "mean shift per answer": mean_per_answer,
    "mean shift per token": mean_per_token,
    "mean shift per token, shrunk (kept)": package,
    "shift per token and per answer": per_token_and_answer,
    "affine in the log-prob": regression(lambda a: [a.logp]),
    "the same, ridge 300": regression(lambda a: [a.logp], 300.0),
    "affine in log-prob and entropy": regression(lambda a: [a.logp, a.entropy]),
    "log-prob, entropy, probability": regression(lambda a: [a.logp, a.entropy, a.logp.exp()]),
    "log-prob, entropy, 1 / position": regression(lambda a: [a.logp, a.entropy, 1 / (1 + a.position)]),
    "log-prob in pieces": regression(lambda a: [a.logp, *(torch.relu(-a.logp - k) for k in (2.0, 4.0, 8.0))]),
}


def summary(found: torch.Tensor) -> list[float]:
    sums = found[..., SHIFT]
    margins = sums[:, 0] - sums[:, 1]
    return [float(v) for v in (sums.mean(), sums.std(), margins.mean(), margins.std(), margins.square().mean().sqrt())]


def judged(estimator: Estimator, train: Scored, held_out: Scored, pairs: int, draws: int) -> list[float]:
    """Mean over draws: mean and spread of an answer's error, and mean, spread and root mean square of a margin's, on
    training pairs not drawn; and the last three on the held-out pairs."""
    rows = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(draws):
        order = torch.randperm(len(train.logp) // 2, generator=generator).tolist()
        correction, rest = estimator(train.pairs(order[:pairs])), train.pairs(order[pairs:])
        held_out_errors = held_out.errors(correction(held_out))
        rows.append([*summary(rest.errors(correction(rest))), *summary(held_out_errors)[2:]])
    return [statistics.mean(column) for column in zip(*rows, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo/work/model")
    parser.add_argument("--pairs", type=int, default=16, help="pairs that a calibration is fitted on")
    parser.add_argument("--train", type=int, default=128, help="pairs of the training set to draw from")
    parser.add_argument("--draws", type=int, default=20)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    pairs = [*read_pairs(DATA / "train.jsonl")[: options.train], *read_pairs(DATA / "test.jsonl")]
    rows = [tokens_of(tokenizer, pair, side) for side in ("chosen", "rejected") for pair in pairs]
    exact = scored(load_reference(options.model, dtype="float32"), rows).logp
    measured = {}
    for name, settings in KINDS.items():
        reference = load_reference(options.model, **settings)
        measured[name] = dataclasses.replace(scored(reference, rows), exact=exact)
        del reference
        gc.collect()
    print(tables(measured, options))


def tables(measured: dict[str, Scored], options: argparse.Namespace) -> str:
    lines = ["| reference | per token | per answer | margin |", "|---|---|---|---|"]
    for name, found in measured.items():
        all_errors = found.errors()
        tokens, sums, squares = all_errors.unbind(dim=-1)
        mean = sums.sum() / tokens.sum()
        spread = (squares.sum() / tokens.sum() - mean.square()).sqrt()
        answer, answer_std, margin, margin_std, _ = summary(all_errors)
        lines.append(
            f"| {name} | {mean:+.4f} ± {spread:.4f} | {answer:+.2f} ± {answer_std:.2f} | {margin:+.2f} ± "
            f"{margin_std:.2f} |"
        )
    for name in ("nf4", "int8", "bf16"):
        lines += ["", f"### {name}, calibrated on {options.pairs} pairs", ""]
        lines.append("| calibration | per answer | margin | margin, rms | held-out margin | held-out margin, rms |")
        lines.append("|---|---|---|---|---|---|")
        count = len(measured[name].logp) // 2
        train, held_out = (
            measured[name].pairs(list(part)) for part in (range(options.train), range(options.train, count))
        )
        for estimator, fit in ESTIMATORS.items():
            a, a_std, m, m_std, rms, h, h_std, h_rms = judged(fit, train, held_out, options.pairs, options.draws)
            lines.append(
                f"| {estimator} | {a:+.2f} ± {a_std:.2f} | {m:+.2f} ± {m_std:.2f} | {rms:.2f} | "
                f"{h:+.2f} ± {h_std:.2f} | {h_rms:.2f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
