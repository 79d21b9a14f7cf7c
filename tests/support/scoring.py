"""Policies, references and rows for the tests of scores, and the same numbers computed by TRL or by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from transformers import AutoModelForCausalLM
from trl import DPOTrainer

from tests.support import runs, tiny
from tests.support.tolerances import rounding

LORA = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
ATOL = rounding(120.0)  # of a summed log-prob of the tiny model


def config(folder: Any, **settings: Any) -> Any:
    return runs.config(folder, **{"beta": 0.5, **settings})


def saved_adapter(folder: Path, base: str, seed: int = 7, **settings: Any) -> str:
    """An adapter that changes its base, with the tokenizer, as a run leaves it."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), peft.LoraConfig(**{**vars_of_lora(), **settings})
    )
    model.save_pretrained(str(folder))
    tiny.tokenizer().save_pretrained(str(folder))
    return str(folder)


def vars_of_lora() -> dict[str, Any]:
    return {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}


def saved_models(folder: Path) -> dict[str, str]:
    """Two full models, and adapters on the second: one that was trained, and one that training may have started from."""
    base = tiny.saved_model(str(folder / "base"), seed=2)
    return {
        "policy": tiny.saved_model(str(folder / "policy"), seed=1),
        "base": base,
        "adapter": saved_adapter(folder / "adapter", base),
        "sft": saved_adapter(folder / "sft", base, seed=8, r=2),
    }


def linked(files: Path, folder: Path) -> Path:
    """A folder with links to what another one holds, so that a test may write beside it."""
    for file in files.iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def assert_close(found: Any, expected: Any) -> None:
    """Sums of log-probs are equal to rounding."""
    np.testing.assert_allclose(found, expected, atol=ATOL, rtol=0)


def by_trl(folder: Path, model: Any, dataset: Any, **settings: Any) -> np.ndarray:
    """Sums of a model's log-probs as TRL's trainer computes them for its reference, (rows, 2)."""
    trainer = runs.trainer(folder, DPOTrainer, tiny.model(), ref_model=model, train_dataset=dataset, **settings)
    found = []
    for start in range(0, len(trainer.train_dataset), 4):
        rows = [trainer.train_dataset[at] for at in range(start, min(start + 4, len(trainer.train_dataset)))]
        chosen, rejected = trainer.compute_ref_log_probs(trainer.ref_model, trainer.data_collator(rows))
        found.append(torch.stack([chosen, rejected], dim=1))
    return torch.cat(found).numpy()


def by_hand(model: Any, prompt: str, answer: str, scored_from: int | None = None) -> float:
    """Sum of the log-probs of an answer and its EOS, from the logits; of the tokens from a place on, if that is given."""
    tokenizer: Any = tiny.tokenizer()
    ids = tokenizer(prompt + answer + tokenizer.eos_token)["input_ids"]
    start = len(tokenizer(prompt)["input_ids"]) if scored_from is None else scored_from
    with torch.no_grad():
        logps = model.eval()(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return float(sum(logps[at - 1, ids[at]] for at in range(start, len(ids))))


def sums(pairs: Any, of: str = "policy") -> np.ndarray:
    """The summed log-probs of both sides, (rows, 2)."""
    return np.stack([getattr(side, of) for side in (pairs.chosen, pairs.rejected)], axis=1)
