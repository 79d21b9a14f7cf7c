"""Data with images: a training step with a live reference and with a store, and the reference pass beside a plain loop.

A model in the shape of Qwen2.5-VL-3B, or a quarter as wide, with as many layers in the vision tower as in the language
model and random weights; JPEG images of real sizes, through the processor of that family. Prints what does not depend
on the machine (positions fed to the language model, calls of the vision tower, images that it was given), and times,
in turn in one process. Summed log-probs of all passes, and losses of all steps, must agree.

Run: python benchmarks/images.py [--sizes 640x480 1024x768] [--device cuda --dtype bfloat16 --model-shape qwen2.5-vl-3b]

On a CPU, set OMP_NUM_THREADS=1 where other work runs, and read the ratio of processor time. The plain loop calls TRL's
`compute_ref_log_probs` on TRL's collator, in the order of the data. The pass prepares images in this process, as the
loop does, unless `--workers` says otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as Pictures
from trl import DPOConfig, DPOTrainer

sys.path.insert(0, str(Path(__file__).parent.parent))
from counting import Seconds, commit, machine, now, show, timed

from tests.support import tiny, vision_families

SHAPES: dict[str, dict[str, dict[str, int]]] = {
    "qwen2.5-vl-3b": {
        "vision": {"hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "depth": 32},
        "text": {
            "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
            "num_attention_heads": 16, "num_key_value_heads": 2,
        },
    },
    "quarter": {
        "vision": {"hidden_size": 320, "intermediate_size": 855, "num_heads": 4, "depth": 4},
        "text": {
            "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 2752, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 1,
        },
    },
    "toy": {
        "vision": {"hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "depth": 1},
        "text": {
            "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1,
        },
    },
}  # fmt: skip
PATCH = 14
IN_WORDS = {"TRL": "TRL, live reference", "live": "ours, live reference", "stored": "ours, from a store"}
OURS, TWICE = "the pass", "the pass, each side's images through the tower"


@dataclass
class Cost:
    """What a step or a pass cost, of all models in it."""

    seconds: Seconds = field(default_factory=lambda: Seconds(0.0, 0.0))
    collating: Seconds = field(default_factory=lambda: Seconds(0.0, 0.0))
    """Of `seconds`, those in the collator; 0 where workers do that."""
    fed: int = 0
    """Positions given to language models."""
    attended: int = 0
    """Positions of these that are no padding."""
    forwards: int = 0
    tower_calls: int = 0
    images: int = 0
    """Images given to vision towers."""
    results: list[float] = field(default_factory=list)
    """The loss of a step; the summed log-probs of a pass, chosen and rejected side of each row."""


class Bench:
    """One policy, one reference, the data, and trainers around them."""

    def __init__(self, options: argparse.Namespace) -> None:
        from trl_dpo_ext import DPOExtConfig, DPOExtTrainer

        self.options, self._folder = options, tempfile.TemporaryDirectory()
        self.processor = processor()
        self.policy, self.reference = model(options, self.processor, 0), model(options, self.processor, 1)
        self.data = rows(options.rows, options.sizes)
        settings = {"bf16": False, "use_cpu": options.device == "cpu", "report_to": "none", "disable_tqdm": True}
        settings |= {"max_length": None, "gradient_checkpointing": options.gradient_checkpointing}
        settings |= {"dataloader_num_workers": options.workers, "dataloader_pin_memory": options.device != "cpu"}
        data = {"train_dataset": self.data, "processing_class": self.processor}
        pair = self.policy, self.reference
        self.trainers = {
            "TRL": DPOTrainer(*pair, args=DPOConfig(f"{self._folder.name}/trl", **settings), **data),
            "live": DPOExtTrainer(*pair, args=DPOExtConfig(f"{self._folder.name}/live", **settings), **data),
        }
        if not options.no_step:
            stored = {"precompute_ref_log_probs": True, "ref_store": f"{self._folder.name}/refs"}
            stored |= {"precompute_ref_max_tokens": options.max_tokens}
            args = DPOExtConfig(f"{self._folder.name}/stored", **settings, **stored)
            self.trainers["stored"] = DPOExtTrainer(*pair, args=args, **data)
        self.collator = self.trainers["TRL"].data_collator

    @contextlib.contextmanager
    def counted(self) -> Iterator[Cost]:
        """Count what models are given inside."""
        cost = Cost()

        def text(_module: Any, _args: Any, keywords: dict[str, Any]) -> None:
            cost.fed, cost.forwards = cost.fed + keywords["input_ids"].numel(), cost.forwards + 1
            cost.attended += int(keywords["attention_mask"].sum())

        def tower(_module: Any, _args: Any, keywords: dict[str, Any]) -> None:
            cost.tower_calls, cost.images = cost.tower_calls + 1, cost.images + len(keywords["grid_thw"])

        hooks = []
        for each in (self.policy, self.reference):
            hooks.append(each.model.register_forward_pre_hook(text, with_kwargs=True))
            hooks.append(each.model.visual.register_forward_pre_hook(tower, with_kwargs=True))
        yield cost
        for hook in hooks:
            hook.remove()

    def step(self, way: str, number: int) -> Cost:
        """Collate a batch, and run a step on it without the optimizer's."""
        trainer, size = self.trainers[way], self.options.micro_batch
        chosen = [(number * size + place) % len(self.data) for place in range(size)]
        self.policy.train()
        with self.counted() as cost:
            before = now(self.options.device)
            batch = trainer.data_collator([dict(self.data[place]) for place in chosen])
            cost.collating = now(self.options.device) - before
            loss = trainer.compute_loss(self.policy, trainer._prepare_inputs(batch))
            loss.backward()
            cost.seconds = now(self.options.device) - before
        self.policy.zero_grad()
        cost.results = [float(loss.detach())]
        return cost

    def run_pass(self, way: str) -> Cost:
        """Compute the reference log-probs of all rows."""
        with self.counted() as cost, torch.no_grad():
            collate, spent = self.collator, []

            def collating(examples: list[dict[str, Any]]) -> Any:
                before = now("cpu")
                batch = collate(examples)
                spent.append(now("cpu") - before)
                return batch

            run = self._pass(way, collating) if way in (OURS, TWICE) else self._loop(int(way.split()[-1]), collating)
            sums: list[Any] = []
            cost.seconds = timed(lambda: sums.append(run()), self.options.device)
            cost.results = sums[0]() if callable(sums[0]) else sums[0]
            for each in spent:
                cost.collating += each
        return cost

    def finding(self) -> Seconds:
        """The time to find what is missing, without the image processor."""
        from trl_dpo_ext.reference.precompute.image_keys import keys_of

        examples = [dict(self.data[row]) for row in range(len(self.data))]
        return timed(lambda: keys_of(examples, self.collator), self.options.device)

    def _loop(self, size: int, collate: Any) -> Any:
        trainer = self.trainers["TRL"]

        def run() -> list[float]:
            sums: list[torch.Tensor] = []
            for start in range(0, len(self.data), size):
                places = range(start, min(start + size, len(self.data)))
                batch = trainer._prepare_inputs(collate([dict(self.data[place]) for place in places]))
                sums.append(torch.stack(trainer.compute_ref_log_probs(self.reference, batch)).float().cpu())
            return torch.cat(sums, dim=1).T.flatten().tolist()

        return run

    def _pass(self, way: str, collate: Any) -> Any:
        from trl_dpo_ext import _trl
        from trl_dpo_ext.reference.identity.identity import Identity
        from trl_dpo_ext.reference.precompute.image_keys import keys_of
        from trl_dpo_ext.reference.precompute.image_pass import image_pass
        from trl_dpo_ext.reference.precompute.image_rows import ImageRows
        from trl_dpo_ext.reference.store.keys import unpack_keys
        from trl_dpo_ext.reference.store.store import Store

        found = keys_of([dict(self.data[row]) for row in range(len(self.data))], self.collator)
        store = Store.open(tempfile.mkdtemp(dir=self._folder.name), Identity(weights="memory", config="{}"))
        given = {"store": store, "dataset": self.data, "collator": collate}
        host = _trl.Host(self.trainers["TRL"])
        made = image_pass(host, self.reference, self.reference, self.options.max_tokens, **given)
        made.images_once = way == OURS

        def sums() -> list[float]:
            keys = unpack_keys(found.keys.reshape(-1, 2))
            return [float(values.sum()) for values in store.load(keys).values(keys)]

        def run() -> Any:
            made.run(ImageRows.of(found, np.ones((len(self.data), 2), bool)))
            return sums

        return run


def processor() -> Any:
    """Of Qwen2.5-VL, with a tokenizer of a few words."""
    tokens = vision_families.qwen_processor()
    images = transformers.Qwen2VLImageProcessorPil()
    return type(tokens)(images, tokens.tokenizer, chat_template=tokens.chat_template)


def model(options: argparse.Namespace, known: Any, seed: int) -> Any:
    """Random weights in a shape of `SHAPES`."""
    shape = SHAPES[options.model_shape]
    vision, text = dict(shape["vision"]), dict(shape["text"])
    if options.layers:
        vision["depth"] = text["num_hidden_layers"] = options.layers
    whole = [layer for layer in range(vision["depth"]) if layer % 8 == 7] or [vision["depth"] - 1]
    half = text["hidden_size"] // text["num_attention_heads"] // 2
    rope = {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [half - 2 * (3 * half // 8), *[3 * half // 8] * 2],
    }
    names = {"vision_start": "<|vision_start|>", "image": "<|image_pad|>", "video": "<|video_pad|>"}
    names["vision_end"] = "<|vision_end|>"
    ids = {f"{name}_token_id": known.tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    config = transformers.Qwen2_5_VLConfig(
        vision_config={
            **vision, "out_hidden_size": text["hidden_size"], "patch_size": PATCH, "window_size": 8 * PATCH,
            "fullatt_block_indexes": whole,
        },
        text_config={
            **text, "rope_parameters": rope, "tie_word_embeddings": True, "bos_token_id": None,
            "eos_token_id": known.tokenizer.eos_token_id,
        },
        **ids,
    )  # fmt: skip
    torch.manual_seed(seed)
    with torch.device(options.device):
        kind = transformers.Qwen2_5_VLForConditionalGeneration
        made = kind._from_config(config, dtype=getattr(torch, options.dtype))
    return made


def rows(count: int, sizes: list[str]) -> Dataset:
    """Preferences about JPEG images of the given sizes in turn, with answers of 20 to 150 words."""
    draw = random.Random(0)
    words = list(dict.fromkeys(tiny.SENTENCE.split()))

    def text(least: int, most: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(least, most)))

    columns: dict[str, list[Any]] = {"prompt": [], "chosen": [], "rejected": [], "images": []}
    for row in range(count):
        columns["prompt"].append([{"role": "user", "content": text(8, 40)}])
        for side in ("chosen", "rejected"):
            columns[side].append([{"role": "assistant", "content": text(20, 150)}])
        columns["images"].append([{"bytes": picture(sizes[row % len(sizes)], row), "path": None}])
    messages = List({"role": Value("string"), "content": Value("string")})
    features = Features(dict.fromkeys(("prompt", "chosen", "rejected"), messages) | {"images": List(Image())})
    return Dataset.from_dict(columns, features)


def picture(size: str, seed: int) -> bytes:
    """A JPEG file of soft noise, of some 100 kB."""
    width, height = map(int, size.split("x"))
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Pictures.fromarray(coarse).resize((width, height), Pictures.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def steps(options: argparse.Namespace, bench: Bench) -> dict[str, list[Cost]]:
    """What each way to run a step cost, batch by batch; the first batch warms up."""
    found: dict[str, list[Cost]] = {way: [] for way in bench.trainers}
    for number in range(options.steps + 1):
        for way in list(found)[:: 1 if number % 2 else -1]:
            cost = bench.step(way, number)
            if number:
                found[way].append(cost)
    return found


def passes(options: argparse.Namespace, bench: Bench) -> dict[str, list[Cost]]:
    """What each kind of pass cost, repeat by repeat."""
    ways = [OURS, TWICE, *(f"plain loop, rows in a batch: {size}" for size in options.batch_sizes)]
    found: dict[str, list[Cost]] = {way: [] for way in ways}
    for turn in range(options.repeats):
        for way in ways[:: -1 if turn % 2 else 1]:
            found[way].append(bench.run_pass(way))
    return found


def apart(found: dict[str, list[Cost]]) -> float:
    """The largest difference of what all must agree on."""
    results = [torch.tensor([each.results for each in of]).double() for of in found.values()]
    return max(float((each - results[0]).abs().max()) for each in results)


def table(found: dict[str, list[Cost]], base: str, names: dict[str, str]) -> str:
    lines = [
        "| | fed | padding | forwards | tower calls | images through towers | seconds | in the collator | "
        "time / first (range) | processor time |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, of in found.items():
        fed, attended, forwards, calls, images = (
            sum(getattr(each, what) for each in of) / len(of)
            for what in ("fed", "attended", "forwards", "tower_calls", "images")
        )
        wall, collating = (statistics.median(getattr(each, w).wall for each in of) for w in ("seconds", "collating"))
        clocks = (ratios(of, found[base], clock) for clock in ("wall", "processor"))
        lines.append(
            f"| {names.get(name, name)} | {fed:.0f} | {1 - attended / fed:.1%} | {forwards:.1f} | {calls:.1f} | "
            f"{images:.0f} | {wall:.2f} | {collating:.2f} | {' | '.join(clocks)} |"
        )
    return "\n".join([*lines, "", f"Largest difference of what all compute: {apart(found):.2g}."])


def ratios(of: list[Cost], base: list[Cost], clock: str) -> str:
    """Median, and the smallest and the largest."""
    found = [getattr(a.seconds, clock) / getattr(b.seconds, clock) for a, b in zip(of, base, strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--model-shape", default="quarter", choices=sorted(SHAPES))
    parser.add_argument("--layers", type=int, help="of vision tower and language model each, in place of the shape's")
    parser.add_argument("--sizes", nargs="+", default=["640x480", "1024x768"], help="of images, in turn")
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--micro-batch", type=int, default=2, help="pairs in a step")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--no-step", action="store_true")
    parser.add_argument("--batch-sizes", nargs="*", type=int, default=[2, 4], help="of the plain loop, in rows")
    parser.add_argument("--max-tokens", type=int, help="of the pass, positions in a batch")
    parser.add_argument("--workers", type=int, default=0, help="that prepare images for the pass")
    parser.add_argument("--repeats", type=int, default=2, help="of passes")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--output", type=Path, help="append the tables to this file")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    where = machine(options.device)
    show(options, where)
    settings = {name: value for name, value in vars(options).items() if name not in ("output", "json")}
    bench, written = Bench(options), {"machine": where, "commit": commit(), "options": settings}
    about = f"{options.model_shape}, {options.rows} rows, images of {', '.join(options.sizes)}"
    if not options.no_step:
        found = steps(options, bench)
        assert apart(found) < (1e-3 if options.dtype == "float32" else 5e-2), found
        head = f"\n### A step of {options.micro_batch} pairs, {options.steps} batches: {about}\n"
        show(options, f"{head}\n{table(found, 'stored', IN_WORDS)}")
        written["steps"] = {name: [asdict(each) for each in of] for name, of in found.items()}
    if options.repeats:
        found, finding = passes(options, bench), bench.finding()
        show(options, f"\n### The pass, {options.repeats} repeats: {about}\n\n{table(found, OURS, {})}")
        show(options, f"\nFinding what is missing: {finding.wall:.2f} s, {finding.processor:.2f} s of processor time.")
        written |= {"passes": {name: [asdict(each) for each in of] for name, of in found.items()}}
        written |= {"finding": asdict(finding)}
    show(options, f"\nAt the end: {machine(options.device)}")
    if options.json:
        options.json.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
