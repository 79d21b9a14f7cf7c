"""Measures what `inspect` adds to TRL's tokenization: seconds and memory. Needs no GPU.

Rows have the lengths of HH-RLHF: about 490 tokens for prompt and both answers. Prints a Markdown table: rows, tokens,
seconds of TRL's tokenization and of everything else, how many of the latter were spent on the CPU (the rest is other
programs' time on a busy machine, and the disk), and by how much the memory in use has grown meanwhile.

Run: python benchmarks/inspection.py --model MODEL --rows 100000
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from datasets import Dataset, concatenate_datasets, load_dataset
from transformers import AutoTokenizer

from trl_dpo_ext import DPOExtConfig, _trl
from trl_dpo_ext.inspection import split
from trl_dpo_ext.inspection.preferences import inspect_preferences

WORDS = (
    "the of and to in that is was for it with as his on be at by this had not are but from or have an they which one "
    "you were her all she there would their we him been has when who will more no if out so said what up its about "
    "into than them can only other new some could time these two may then do first any my now such like our over man"
)


def write_rows(file: Path, count: int, messages: bool) -> None:
    """Write pairs with prompts of about 240 tokens, and answers of about 125."""
    source, words = random.Random(0), WORDS.split()

    def text(least: int, most: int) -> str:
        return " ".join(source.choices(words, k=source.randint(least, most)))

    def rows() -> Any:
        for number in range(count):
            prompt, chosen, rejected = f"{number} {text(40, 430)}", text(5, 235), text(5, 245)
            if messages:
                yield {
                    "prompt": [{"role": "user", "content": prompt}],
                    "chosen": [{"role": "assistant", "content": chosen}],
                    "rejected": [{"role": "assistant", "content": rejected}],
                }
            else:
                yield {
                    "prompt": f"\n\nHuman: {prompt}\n\nAssistant:",
                    "chosen": f" {chosen}",
                    "rejected": f" {rejected}",
                }

    Dataset.from_generator(rows, cache_dir=str(file.parent / "cache")).to_parquet(str(file))


def memory() -> float:
    """Return the largest resident memory so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a tokenizer: its name, or its folder")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument(
        "--copies", type=int, default=1, help="tokenize the rows once, and inspect so many copies of them"
    )
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--messages", action="store_true", help="messages, and not texts")
    parser.add_argument("--folder", help="where the data is kept (default: a temporary folder)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(given.folder or temporary)
        file = folder / f"rows-{given.rows}-{given.messages}.parquet"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_rows(file, given.rows, given.messages)
        data = load_dataset("parquet", data_files=str(file), cache_dir=str(folder / "cache"))["train"]
        args = DPOExtConfig(
            str(folder / "out"),
            max_length=given.max_length,
            dataset_num_proc=given.processes,
            use_cpu=True,
            bf16=False,
        )
        print(measured(data, AutoTokenizer.from_pretrained(given.model), args, given.copies))


def measured(data: Dataset, tokenizer: Any, args: Any, copies: int) -> str:
    """Inspect twice, the second time with the tokenization in the cache of `datasets`; return a table."""
    lines = [
        "| run | rows | tokens fed | TRL's tokenization | ours | of this, on the CPU | memory added |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in ("first", "cached"):
        spent, worked, grown = [], [], []

        def preparation(processing_class: Any, spent: list = spent, worked: list = worked, grown: list = grown) -> Any:
            prepare = _trl_preparation(processing_class)

            def timed(*given: Any) -> Any:
                start, began = time.perf_counter(), time.process_time()
                result = concatenate_datasets([prepare(data, *given[1:])] * copies)
                spent.append(time.perf_counter() - start)
                worked.append(time.process_time() - began)
                grown.append(memory())
                return result

            return timed

        start, began = time.perf_counter(), time.process_time()
        with mock.patch.object(split._trl, "preparation", preparation):
            result = inspect_preferences(concatenate_datasets([data] * copies), tokenizer, args)
        seconds, cpu = time.perf_counter() - start, time.process_time() - began
        fed = result.data["splits"]["train"]["tokens"]["fed"]["plain"]
        lines.append(
            f"| {run} | {copies * len(data):,} | {fed:,} | {sum(spent):.0f} s | {seconds - sum(spent):.1f} s | "
            f"{cpu - sum(worked):.1f} s | "
            f"{memory() - grown[0]:.2f} GiB |"
        )
    return "\n".join(lines)


_trl_preparation = _trl.preparation

if __name__ == "__main__":
    main()
