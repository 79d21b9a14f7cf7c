"""Executes RewardBench's inference code on the cases, and writes what it gives.

    python -m tests.unit.scoring.execute_rewardbench CHECKOUT
    python -m tests.unit.scoring.execute_rewardbench CHECKOUT demo  # the demo's model and held-out pairs: minutes

`CHECKOUT` is a folder of https://github.com/allenai/reward-bench at `COMMIT`. Its modules are imported from there; what
they import and the cases do not need (other reward models, result files) is replaced by empty modules. The collator that
its script takes from TRL is no longer in TRL; it pads on the right.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch

from tests.unit.scoring import rewardbench_cases as cases

COMMIT = "05a9005efb607249822c193590c8ecab87c77052"
EXECUTED = f"allenai/reward-bench at {COMMIT}: "
VECTORS = Path(__file__).with_name("rewardbench_vectors.json")
DEMO_VECTORS = Path(__file__).with_name("rewardbench_demo_vectors.json")


def load(checkout: str) -> Any:
    """Import their modules `dpo`, `utils`, `constants` and the script of section scores."""
    for name in ("rewardbench", "analysis"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(checkout) / name)]
        sys.modules[name] = package
    for name, attribute in (("rewardbench.models", "REWARD_MODEL_CONFIG"), ("analysis.utils", "load_results")):
        sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[name], attribute, {})
    names = ("rewardbench.dpo", "rewardbench.utils", "rewardbench.constants", "analysis.get_benchmark_results")
    return types.SimpleNamespace(**{name.split(".")[1]: importlib.import_module(name) for name in names})


def prepared(tokenizer: Any) -> Any:
    """Set the tokenizer's tokens as their script does before it tokenizes."""
    tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.bos_token is None:
        tokenizer.bos_token_id = tokenizer.eos_token_id
        tokenizer.pad_token_id = tokenizer.eos_token_id
    return tokenizer


def tokenized(theirs: Any, inference: Any, row: dict[str, Any]) -> dict[str, Any]:
    """Run their text and tokenization steps on one row."""
    text = theirs.utils.prepare_dialogue_from_tokenizer(dict(row), inference.tokenizer)
    return text | {"ids": inference.tokenize_row(text)}


def collate(rows: list[dict[str, list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Pad on the right, as the collator of TRL 0.8 that their script uses."""
    fill = {"input_ids": pad, "labels": -100, "attention_mask": 0}
    return {
        f"{side}_{name}": torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row[f"{side}_{name}"]) for row in rows], batch_first=True, padding_value=value
        )
        for side in ("chosen", "rejected")
        for name, value in fill.items()
    }


def scores(theirs: Any, policy: Any, reference: Any, tokenizer: Any, rows: Any, batch_size: int = 6) -> dict[str, Any]:
    """Return their scores of all rows, by kind: with a reference, and without in three ways."""
    accelerator = types.SimpleNamespace(device=torch.device("cpu"))
    given: dict[str, Any] = {}
    for kind in ("reference", "avg", "sum", "norm"):
        free = kind != "reference"
        inference = theirs.dpo.DPOInference(
            policy, None if free else reference, tokenizer, accelerator, **({"ref_free_norm": kind} if free else {})
        )
        ids = [tokenized(theirs, inference, row)["ids"] for row in rows]
        sides: tuple[list[float], list[float]] = ([], [])
        for start in range(0, len(ids), batch_size):
            batch = collate(ids[start : start + batch_size], tokenizer.pad_token_id)
            with torch.no_grad():
                for side, values in zip(sides, inference.inference_step(batch, ref_free=free), strict=True):
                    side.extend(values.float().tolist())
        given[kind] = {"chosen": sides[0], "rejected": sides[1]}
    return given


def _ids_of(row: dict[str, Any], side: str) -> dict[str, Any]:
    ids, scored = row[f"{side}_input_ids"], sum(label != -100 for label in row[f"{side}_labels"])
    split = len(ids) - scored
    return {"prompt": cases.runs(ids[:split]), "completion": cases.runs(ids[split:])}


def _token_vectors(theirs: Any) -> dict[str, Any]:
    model = cases.tiny_model(1.0)
    vectors: dict[str, Any] = {}
    for name, make in cases.TOKENIZERS.items():
        inference = theirs.dpo.DPOInference(model, None, prepared(make()), None)
        rows = [tokenized(theirs, inference, row) for row in cases.ROWS[name]]
        vectors[name] = [{side: _ids_of(row["ids"], side) for side in ("chosen", "rejected")} for row in rows]
    return vectors


def _section_vectors(theirs: Any) -> list[dict[str, Any]]:
    import numpy as np
    import pandas as pd

    vectors = []
    for found in cases.accuracies():
        counts, sections = theirs.constants.EXAMPLE_COUNTS, theirs.constants.SUBSET_MAPPING
        vector = {"sections": theirs.utils.calculate_scores_per_section(counts, sections, found)}
        if all(any(name in found for name in subsets) for subsets in sections.values()):
            core_values = {name: found[name] for name in cases.SUBSETS if name in found}
            core = pd.DataFrame([{"model": "m", "model_type": "DPO"} | core_values])
            prior = {name: found.get(name, np.nan) for name in cases.PRIOR_SETS}
            prior_table = pd.DataFrame([{"model": "m"} | prior])
            table = theirs.get_benchmark_results.get_average_over_rewardbench(core, prior_table)
            vector["overall"] = float(table["average"][0])
        vectors.append(vector)
    return vectors


def _group_vectors(theirs: Any) -> dict[str, Any]:
    from datasets import Dataset

    rows = cases.groups()
    flat = [
        {"text": str(place), "scores": score, "subset": row["subset"], "id": row["id"]}
        for row in rows
        for place, score in enumerate(row["scores"])
    ]
    rolled = theirs.utils.reroll_and_score_dataset(Dataset.from_list(flat), [len(row["scores"]) for row in rows])
    ties = Dataset.from_list([row for row in rows if row["subset"] == "Ties"])
    return {"best": rolled["results"][:], "ties": theirs.utils.process_single_model(ties)[1]}


def main(checkout: str) -> None:
    """Write the vectors."""
    theirs = load(checkout)
    policy, reference = (cases.tiny_model(cases.FACTORS[name]) for name in ("policy", "reference"))
    vectors = {
        "executed": EXECUTED + "rewardbench/dpo.py, rewardbench/utils.py, rewardbench/constants.py, "
        "analysis/get_benchmark_results.py",
        "tokens": _token_vectors(theirs),
        "scores": scores(theirs, policy, reference, prepared(cases.TOKENIZERS["words"]()), cases.scored_rows()),
        "sections": _section_vectors(theirs),
        "groups": _group_vectors(theirs),
    }
    VECTORS.write_text(json.dumps(vectors) + "\n", encoding="utf-8")


def demo(checkout: str) -> None:
    """Write the vectors of the demo's model, with an adapter against without."""
    from demo.model import find_gguf, load_model, load_tokenizer

    theirs, file = load(checkout), find_gguf()
    policy, reference = cases.with_adapter(load_model(file)).merge_and_unload(), load_model(file)
    found = scores(theirs, policy, reference, prepared(load_tokenizer(file)), cases.demo_rows())
    vectors = {"executed": EXECUTED + "rewardbench/dpo.py, rewardbench/utils.py", "scores": found}
    DEMO_VECTORS.write_text(json.dumps(vectors) + "\n", encoding="utf-8")


if __name__ == "__main__":
    (demo if sys.argv[2:] == ["demo"] else main)(sys.argv[1])
