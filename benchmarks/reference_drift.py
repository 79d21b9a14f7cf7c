"""How far quantised references are from the model they were made of, and what each way to calibrate removes.

Every estimator is fitted on a few pairs of the demo's training set, many times over, and judged on pairs that it has
not seen: others of the training set, and the demo's held-out set, whose phrases differ. Errors are in nats.

Run: python benchmarks/reference_drift.py --model demo/work/model
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from trl_dpo_ext import load_reference
from trl_dpo_ext.reference.drift import answer_errors, shift_per_token

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
SIDES = ("chosen", "rejected")
Answer = dict[str, torch.Tensor]
"""Of one answer: `logp` of its tokens, the `entropy` before each, and the `position` of each."""
Pair = tuple[Answer, Answer]
Estimator = Callable[[list[tuple[Pair, Pair]]], Callable[[Answer], torch.Tensor]]
"""From measured pairs (quantised, exact) to the correction of an answer's tokens."""


def tokens_of(tokenizer: Any, pair: Mapping[str, Any], side: str) -> tuple[list[int], int]:
    start = tokenizer.apply_chat_template(pair["prompt"], add_generation_prompt=True, return_dict=False)
    return tokenizer.apply_chat_template(pair["prompt"] + pair[side], return_dict=False), len(start)


@torch.inference_mode()
def scored(model: Any, rows: list[tuple[list[int], int]], batch_size: int = 16) -> list[Answer]:
    found: dict[int, Answer] = {}
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(rows[index][0]) for index in batch], batch_first=True)
        hidden = model.base_model(input_ids=ids).last_hidden_state  # padding stands at the right
        for row, index in enumerate(batch):
            whole, prompt = rows[index]
            logps = model.lm_head(hidden[row, prompt - 1 : len(whole) - 1]).float().log_softmax(-1)
            picked = logps.gather(-1, ids[row, prompt : len(whole), None]).squeeze(-1).double()
            entropy = -(logps.exp() * logps).sum(-1).double()
            found[index] = {"logp": picked, "entropy": entropy, "position": torch.arange(len(picked)).double()}
    return [found[index] for index in range(len(rows))]


def in_pairs(answers: list[Answer]) -> list[Pair]:
    return list(zip(answers[::2], answers[1::2], strict=True))


def errors(pairs: list[tuple[Pair, Pair]], correction: Callable[[Answer], torch.Tensor] | None = None) -> torch.Tensor:
    """`answer_errors` of the package, (pairs, 2, 3), after a correction."""
    found = []
    for quantised, exact in pairs:
        width = max(len(answer["logp"]) for answer in exact)
        rows = torch.zeros(2, 2, width, dtype=torch.float64)
        for side in range(2):
            logp = quantised[side]["logp"] + (correction(quantised[side]) if correction else 0.0)
            rows[0, side, : len(logp)], rows[1, side, : len(logp)] = logp, exact[side]["logp"]
        mask = torch.stack([torch.arange(width) < len(answer["logp"]) for answer in exact])
        found.append(answer_errors(rows[0], rows[1], mask))
    return torch.cat(found)


def no_correction(_: list[tuple[Pair, Pair]]) -> Callable[[Answer], torch.Tensor]:
    return lambda answer: torch.zeros_like(answer["logp"])


def mean_per_answer(measured: list[tuple[Pair, Pair]]) -> Callable[[Answer], torch.Tensor]:
    shift = errors(measured)[..., 1].mean()
    return lambda answer: torch.full_like(answer["logp"], -float(shift) / len(answer["logp"]))


def mean_per_token(measured: list[tuple[Pair, Pair]]) -> Callable[[Answer], torch.Tensor]:
    found = errors(measured)
    shift = found[..., 1].sum() / found[..., 0].sum()
    return lambda answer: torch.full_like(answer["logp"], -float(shift))


def package(measured: list[tuple[Pair, Pair]]) -> Callable[[Answer], torch.Tensor]:
    shift = shift_per_token(errors(measured))
    return lambda answer: torch.full_like(answer["logp"], -shift)


def regression(features: Callable[[Answer], list[torch.Tensor]], ridge: float = 0.0) -> Estimator:
    """Least squares of a token's error on features of the quantised model; `ridge` shrinks all but the constant."""

    def columns(answer: Answer) -> torch.Tensor:
        return torch.stack([torch.ones_like(answer["logp"]), *features(answer)], dim=1)

    def estimator(measured: list[tuple[Pair, Pair]]) -> Callable[[Answer], torch.Tensor]:
        seen = [(q, e) for quantised, exact in measured for q, e in zip(quantised, exact, strict=True)]
        x = torch.cat([columns(quantised) for quantised, _ in seen])
        y = torch.cat([exact["logp"] - quantised["logp"] for quantised, exact in seen])
        penalty = ridge * torch.eye(x.size(1), dtype=x.dtype)
        penalty[0, 0] = 0
        weights = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
        return lambda answer: columns(answer) @ weights

    return estimator


ESTIMATORS: dict[str, Estimator] = {
    "none": no_correction,
    "mean shift per answer": mean_per_answer,
    "mean shift per token": mean_per_token,
    "mean shift per token, shrunk (kept)": package,
    "affine in the log-prob": regression(lambda a: [a["logp"]]),
    "the same, ridge 300": regression(lambda a: [a["logp"]], 300.0),
    "affine in log-prob and entropy": regression(lambda a: [a["logp"], a["entropy"]]),
    "log-prob, entropy, probability": regression(lambda a: [a["logp"], a["entropy"], a["logp"].exp()]),
    "log-prob, entropy, 1 / position": regression(lambda a: [a["logp"], a["entropy"], 1 / (1 + a["position"])]),
    "log-prob in pieces": regression(lambda a: [a["logp"], *(torch.relu(-a["logp"] - k) for k in (2.0, 4.0, 8.0))]),
}


def summary(found: torch.Tensor) -> list[float]:
    sums = found[..., 1]
    margins = sums[:, 0] - sums[:, 1]
    return [float(v) for v in (sums.mean(), sums.std(), margins.mean(), margins.std(), margins.square().mean().sqrt())]


def judged(
    estimator: Estimator, train: list[tuple[Pair, Pair]], held_out: list[tuple[Pair, Pair]], pairs: int, draws: int
) -> list[float]:
    """Mean over draws: mean and spread of an answer's error, and mean, spread and root mean square of a margin's, on
    training pairs not drawn; and the last three on the held-out pairs."""
    rows = []
    generator = torch.Generator().manual_seed(0)
    for _ in range(draws):
        order = torch.randperm(len(train), generator=generator).tolist()
        correction = estimator([train[index] for index in order[:pairs]])
        same = summary(errors([train[index] for index in order[pairs:]], correction))
        rows.append([*same, *summary(errors(held_out, correction))[2:]])
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
    rows = [tokens_of(tokenizer, pair, side) for pair in pairs for side in SIDES]
    exact = in_pairs(scored(load_reference(options.model, dtype="float32"), rows))
    measured = {}
    for name, settings in KINDS.items():
        reference = load_reference(options.model, **settings)
        measured[name] = list(zip(in_pairs(scored(reference, rows)), exact, strict=True))
        del reference
        gc.collect()
    print(tables(measured, options))


def tables(measured: dict[str, list[tuple[Pair, Pair]]], options: argparse.Namespace) -> str:
    lines = ["| reference | per token | per answer | margin |", "|---|---|---|---|"]
    for name, found in measured.items():
        all_errors = errors(found)
        tokens, sums, squares = (all_errors[..., which] for which in range(3))
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
        train, held_out = measured[name][: options.train], measured[name][options.train :]
        for estimator, fit in ESTIMATORS.items():
            a, a_std, m, m_std, rms, h, h_std, h_rms = judged(fit, train, held_out, options.pairs, options.draws)
            lines.append(
                f"| {estimator} | {a:+.2f} ± {a_std:.2f} | {m:+.2f} ± {m_std:.2f} | {rms:.2f} | "
                f"{h:+.2f} ± {h_std:.2f} | {h_rms:.2f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
