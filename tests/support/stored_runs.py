"""Runs whose reference log-probs come from the store, and what to compare them with."""

from __future__ import annotations

from tests.support import runs, tiny

STORED = {"precompute_ref_log_probs": True}


def stored(tmp_path, store, **settings):
    return runs.trainer(tmp_path / "out", ref_store=store, **STORED, **settings)


def live(tmp_path, **settings):
    return runs.trained(tmp_path / "live", **{"ref_model": tiny.model(), **settings})


def report(trainer):
    return trainer.reference.stored.stats


def batch_sums(trainer):
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    return batch["ref_token_logps"].sum(dim=1).chunk(2)


def set_of_sequences(data):
    return {(row["prompt"], row[side]) for row in data for side in ("chosen", "rejected")}
