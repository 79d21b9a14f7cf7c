"""Every loss variant at its own default hyperparameters, on the demo's preference set, from the same small start.

A two-layer model with a vocabulary of the set's own words is first taught to give both kinds of answer (to all prompts:
what is held out is the preference, not the words). From there each variant trains for the same steps with the same
learning rate. One row per variant: held-out accuracy (the chosen answer gained more log-prob than the rejected one),
margin of the log-ratios, drift of the chosen log-prob, KL to the start.

Run: python benchmarks/compare_losses.py [--losses sigmoid dpop] [--plot losses.png]

Rows of one run can be put among those of another where `sigmoid`, run beside them, has the row that it has there: then
the start is the same.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from counting import commit, machine
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback

from trl_dpo_ext import DPOExtConfig, DPOExtTrainer, list_losses
from trl_dpo_ext.core.registry import LossVariant

DATA = Path(__file__).parent.parent / "demo" / "data"
SCORES = {
    "score_chosen": 4.0,
    "score_rejected": 2.0,
    "margin": 0.5,
    "p_chosen": 0.95,
    "delta_r": 0.8,
    "quantile_chosen": 1.0,
    "quantile_rejected": 0.0,
}
"""Values for the columns that some variants read: every pair of this set is as clear as the next."""

REASONS = {
    "discopop": "its slope at a margin of 0 is positive at the published tau: it needs a policy that already prefers",
    "sft": "imitates the chosen answers and knows nothing of the rejected ones",
}
"""Why a variant may fail to prefer the chosen side at its published defaults."""


@dataclass(frozen=True)
class Result:
    """What a variant did to the held-out pairs."""

    name: str
    accuracy: float
    margin: float
    chosen_drift: float
    kl: float

    @property
    def learned(self) -> bool:
        """Whether the chosen answers are preferred, and by more than rounding."""
        return self.accuracy >= 0.9 and self.margin > 0.5


def rows(split: str) -> list[dict[str, str]]:
    lines = [json.loads(line) for line in (DATA / f"{split}.jsonl").read_text().splitlines()]
    return [
        {
            "prompt": row["prompt"][0]["content"],
            "chosen": " " + row["chosen"][0]["content"],
            "rejected": " " + row["rejected"][0]["content"],
        }
        for row in lines
    ]


def words_of(texts: list[str]) -> PreTrainedTokenizerFast:
    splitter = pre_tokenizers.Whitespace()
    words = sorted({word for text in texts for word, _ in splitter.pre_tokenize_str(text)})
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<unk>", "<eos>", *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = splitter
    # The end-of-sequence token is appended to texts, so it must be split off as one piece.
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>")


def start(tokenizer: PreTrainedTokenizerFast, train: list[dict[str, str]], steps: int) -> LlamaForCausalLM:
    """A model that gives both kinds of answer about equally well."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        pad_token_id=0,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    texts = [row["prompt"] + row[side] + "<eos>" for row in train for side in ("chosen", "rejected")]
    for _ in range(steps):
        batch = tokenizer([texts[i] for i in torch.randint(len(texts), (32,))], padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def with_columns(data: list[dict[str, str]], variant: LossVariant, tokenizer: Any) -> datasets.Dataset:
    """The pairs, with whatever columns the variant declares."""
    dataset = datasets.Dataset.from_list(data)
    for column in variant.columns:
        if column in SCORES:
            dataset = dataset.add_column(column, [SCORES[column]] * len(dataset))
        else:  # one weight for each token of a completion
            side = "chosen" if column.startswith("chosen") else "rejected"
            lengths = [len(tokenizer(row["prompt"] + row[side] + "<eos>")["input_ids"]) for row in data]
            prompts = [len(tokenizer(row["prompt"])["input_ids"]) for row in data]
            values = [[1.0] * (whole - prompt) for whole, prompt in zip(lengths, prompts, strict=True)]
            dataset = dataset.add_column(column, values)
    return dataset


def train(
    variant: LossVariant,
    begin: LlamaForCausalLM,
    tokenizer: Any,
    data: Any,
    steps: int,
    rate: float,
    held_out: Any = None,
    **settings: Any,
) -> DPOExtTrainer:
    """A trainer that has trained a copy of `begin`; `settings` are further ones of the configuration."""
    smoothing = {"label_smoothing": 0.1} if any(p.name == "label_smoothing" for p in variant.hyperparameters) else {}
    with tempfile.TemporaryDirectory() as folder:
        args = DPOExtConfig(
            loss_type=variant.name,
            **smoothing,
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=rate,
            lr_scheduler_type="constant",
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **{"output_dir": folder, "logging_strategy": "no", **settings},
        )
        trainer = DPOExtTrainer(
            copy_of(begin), copy_of(begin), args, train_dataset=with_columns(data, variant, tokenizer),
            eval_dataset=None if held_out is None else with_columns(held_out, variant, tokenizer),
            processing_class=tokenizer,
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)  # the table is the output
        trainer.train()
    return trainer


def copy_of(model: LlamaForCausalLM) -> LlamaForCausalLM:
    twin = LlamaForCausalLM(model.config)
    twin.load_state_dict(model.state_dict())
    return twin


@torch.no_grad()
def completion_logits(model: Any, tokenizer: Any, prompt: str, completion: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities (tokens, vocabulary) at the completion's positions, and its tokens."""
    ids = tokenizer(prompt + completion + "<eos>", return_tensors="pt")["input_ids"]
    begin = len(tokenizer(prompt)["input_ids"])
    return model(input_ids=ids).logits[0, begin - 1 : -1].log_softmax(-1), ids[0, begin:]


def measure(name: str, model: Any, begin: Any, tokenizer: Any, held_out: list[dict[str, str]]) -> Result:
    model.eval(), begin.eval()
    ratios: dict[str, list[float]] = {"chosen": [], "rejected": []}
    divergences = []
    for row in held_out:
        for side, found in ratios.items():
            policy, tokens = completion_logits(model, tokenizer, row["prompt"], row[side])
            reference, _ = completion_logits(begin, tokenizer, row["prompt"], row[side])
            found.append((policy - reference).gather(-1, tokens[:, None]).sum().item())
            divergences.append((policy.exp() * (policy - reference)).sum(-1).mean().item())
    chosen, rejected = (torch.tensor(ratios[side]) for side in ("chosen", "rejected"))
    return Result(
        name=name,
        accuracy=(chosen > rejected).float().mean().item(),
        margin=(chosen - rejected).mean().item(),
        chosen_drift=chosen.mean().item(),
        kl=sum(divergences) / len(divergences),
    )


def table(results: list[Result]) -> str:
    lines = [
        "| variant | held-out accuracy | margin (nats) | chosen drift (nats) | KL to the start (nats per token) | |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for r in sorted(results, key=lambda r: (-r.accuracy, -r.margin)):
        note = "" if r.learned else REASONS.get(r.name, "too small a step at this learning rate")
        lines.append(
            f"| `{r.name}` | {r.accuracy:.2f} | {r.margin:.2f} | {r.chosen_drift:+.2f} | {r.kl:.3f} | {note} |"
        )
    return "\n".join(lines)


def plot(results: list[Result], file: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    ordered = sorted(results, key=lambda r: r.margin)
    figure, axes = plt.subplots(1, 3, figsize=(14, 0.22 * len(ordered) + 1.5), sharey=True, layout="constrained")
    for axis, field, label in zip(
        axes, ("margin", "chosen_drift", "kl"),
        ("margin of log-ratios (nats)", "chosen log-ratio (nats)", "KL to the start (nats per token)"), strict=True,
    ):  # fmt: skip
        axis.barh([r.name for r in ordered], [getattr(r, field) for r in ordered], color="#0072b2")
        axis.set_xlabel(label)
        axis.set_ylim(-1, len(ordered))
        axis.grid(axis="x", alpha=0.3)
    figure.savefig(file, dpi=120)


def add_losses(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses losses of pairs, by the names of the registry."""
    names = [variant.name for variant in list_losses(reads="pairs")]
    parser.add_argument("--losses", nargs="+", default=names, choices=names, metavar="LOSS", help="only these")


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_losses(parser)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--plot", metavar="PNG")
    return parser.parse_args(arguments)


def main() -> None:
    options = parsed()
    warnings.simplefilter("ignore")
    datasets.disable_progress_bars()
    data, held_out = rows("train"), rows("test")
    tokenizer = words_of([text for row in data + held_out for text in row.values()])
    begin = start(tokenizer, data + held_out, steps=100)
    results = []
    for variant in list_losses(reads="pairs"):  # on pairs, losses of lists are these
        if variant.name not in options.losses:
            continue
        trainer = train(variant, begin, tokenizer, data, options.steps, options.learning_rate)
        results.append(measure(variant.name, trainer.model, begin, tokenizer, held_out))
        print(results[-1], file=sys.stderr, flush=True)
    print(f"{machine('cpu')}; commit {commit()}\n\n{table(results)}")
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
