"""A store that lies is caught at the first step, and options that do not go together before a model is loaded."""

from __future__ import annotations

import pytest
from trl.trainer.dpo_trainer import DataCollatorForPreference

from tests.support import runs, tiny
from tests.support.stored_runs import STORED, report, stored
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.precompute.sequences import batch_sequences
from trl_dpo_ext.reference.store.store import Store


def forged(tmp_path, store, shift):
    """A store whose numbers are off, under an identity that says they are right."""
    right = stored(tmp_path, str(tmp_path / "right")).reference.stored.store
    wrong = Store.open(store, right.identity)
    loaded = right.load(None)
    with wrong.writer() as writer:
        rows = list(runs.trainer(tmp_path / "out", ref_model=tiny.model()).train_dataset)
        for sequence in {s.key: s for s in batch_sequences(DataCollatorForPreference(0)(rows))}.values():
            writer.add(sequence.key, len(sequence.prompt), loaded[sequence.key] + shift)


def test_a_store_that_lies_is_caught_at_the_first_step(tmp_path, store):
    forged(tmp_path, store, shift=-0.5)
    trainer = stored(tmp_path, store)
    assert report(trainer).computed == 0
    with pytest.raises(InputError, match=r"differ by 0\.5 nats per token"):
        trainer.train()


def test_the_check_can_be_switched_off_and_lets_rounding_pass(tmp_path, store):
    forged(tmp_path, store, shift=-0.5)
    stored(tmp_path, store, verify_reference=False).train()
    forged(tmp_path, str(tmp_path / "nearly"), shift=1e-4)
    stored(tmp_path, str(tmp_path / "nearly")).train()


def test_columns_that_lie_are_caught_too(tmp_path):
    data = tiny.preferences(ref_chosen_logps=[-500.0] * 8, ref_rejected_logps=[-3.0] * 8)
    with pytest.raises(InputError, match="own columns"):
        runs.trainer(tmp_path / "out", train_dataset=data, **STORED).train()


def test_a_folder_that_cannot_be_a_store_is_named_before_a_model_is_loaded(tmp_path, store):
    (tmp_path / "refs").mkdir()
    (tmp_path / "refs" / "notes.txt").touch()
    with pytest.raises(InputError, match=r"refs is not a reference store and contains other files \(notes.txt\)"):
        stored(tmp_path, store, model="no/such-model")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"ref_store": "refs"}, "precompute_ref_log_probs"),
        ({"precompute_ref_max_tokens": 100}, "precompute_ref_log_probs"),
        ({**STORED, "precompute_ref_max_tokens": 0}, "at least 1"),
        ({**STORED, "sync_ref_model": True}, "sync_ref_model"),
        ({**STORED, "loss_type": "tdpo1"}, "distribution"),
        ({**STORED, "loss_type": "simpo"}, "needs no reference"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, settings, named):
    with pytest.raises(InputError, match=named):
        runs.config(tmp_path, **settings)


def test_trls_batch_size_of_the_pass_is_not_used_and_that_is_said(tmp_path, store):
    with pytest.warns(UserWarning, match="precompute_ref_max_tokens"):
        stored(tmp_path, store, precompute_ref_batch_size=4)
