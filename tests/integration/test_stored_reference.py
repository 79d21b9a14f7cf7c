"""Reference log-probs from the store are those of TRL's own reference, for every variant and every way to train."""

from __future__ import annotations

import math

import pytest
import torch
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from tests.support import runs, tiny
from tests.support.stored_runs import STORED, batch_sums, live, report, stored
from tests.support.tolerances import rounding
from trl_dpo_ext import DPOExtTrainer, Need, list_losses
from trl_dpo_ext.errors import InputError


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_length": 9}, {"max_length": 9, "truncation_mode": "keep_end"}, {"max_length": None}],
    ids=["whole", "cut at the end", "cut at the start", "no limit"],
)
@pytest.mark.parametrize("conversational", [False, True])
def test_stored_sums_equal_trls(tmp_path, store, settings, conversational):
    data = tiny.preferences(conversational=conversational)
    ours = stored(tmp_path, store, train_dataset=data, **settings)
    theirs = runs.trainer(tmp_path / "host", DPOTrainer, train_dataset=data, **STORED, **settings)
    for mine, column in zip(batch_sums(ours), ("ref_chosen_logps", "ref_rejected_logps"), strict=True):
        torch.testing.assert_close(mine, torch.tensor(theirs.train_dataset[column]), rtol=1e-4, atol=1e-4)


def test_in_bfloat16_they_differ_by_what_two_batch_sizes_of_trl_differ_by(tmp_path, store):
    def trls(batch_size):
        host = runs.trainer(
            tmp_path / f"host{batch_size}",
            DPOTrainer,
            model=tiny.model().to(torch.bfloat16),
            precompute_ref_batch_size=batch_size,
            **STORED,
        )
        return torch.tensor([host.train_dataset["ref_chosen_logps"][:], host.train_dataset["ref_rejected_logps"][:]])

    by_size = torch.stack([trls(size) for size in (1, 2, 3, 8)])
    spread = (by_size.max(dim=0).values - by_size.min(dim=0).values).max()
    ours = torch.stack(batch_sums(stored(tmp_path, store, model=tiny.model().to(torch.bfloat16))))
    exact = torch.stack(batch_sums(stored(tmp_path, str(tmp_path / "float32"))))
    rounding = (by_size[0] - exact).abs().max()
    assert rounding > 1e-3  # bfloat16 is at work
    assert (ours - by_size[-1]).abs().max() <= max(2 * spread, rounding)


def test_training_from_the_store_is_training_with_a_live_reference(tmp_path, store):
    with_model, from_store = live(tmp_path), stored(tmp_path, store)
    from_store.train()
    assert from_store.ref_model is None
    for theirs, mine in zip(runs.logs(with_model), runs.logs(from_store), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=rounding(0.1 * 60))


def test_ld_alpha_is_applied_when_the_store_is_read(tmp_path, store):
    stored(tmp_path, store)
    ours = stored(tmp_path, store, ld_alpha=0.4, max_length=None)
    ours.train()
    assert report(ours).computed == 0
    theirs = live(tmp_path, ld_alpha=0.4)
    assert runs.logs(ours)[0]["loss"] == pytest.approx(runs.logs(theirs)[0]["loss"], rel=1e-4)


TOKEN_VARIANTS = [
    variant.name
    for variant in list_losses()
    if Need.TOKEN_REFERENCE in variant.needs and not {Need.REF_ENTROPY, Need.TOKEN_KL} & {*variant.needs}
    if not variant.columns
]


@pytest.mark.parametrize("name", TOKEN_VARIANTS)
def test_variants_that_read_tokens_are_served(tmp_path, store, name):
    ours, with_model = stored(tmp_path, store, loss_type=name), live(tmp_path, loss_type=name)
    ours.train()
    for mine, theirs in zip(runs.logs(ours), runs.logs(with_model), strict=True):
        assert mine.get("loss", 0) == pytest.approx(theirs.get("loss", 0), rel=1e-4, abs=rounding(0.1 * 60))


def test_there_are_variants_that_read_tokens():
    assert {"d2po", "sampo"} & {*TOKEN_VARIANTS}


def test_one_store_serves_training_and_evaluation_sets_and_dictionaries_of_them(tmp_path, store):
    data = tiny.preferences()
    parts = {"a": data.select([0, 1]), "b": data.select([2])}
    trainer = stored(tmp_path, store, train_dataset=data.select(range(3, 8)), eval_dataset=parts)
    metrics = trainer.evaluate()
    assert [metrics["eval_a_loss"], metrics["eval_b_loss"]] == pytest.approx([math.log(2)] * 2, abs=rounding(0.1 * 60))
    trainer.train()
    assert trainer.evaluate()["eval_a_loss"] != pytest.approx(0.6931, abs=1e-3)


def test_a_dataset_without_the_columns_of_the_others_is_refused(tmp_path):
    columns = {name: [-9.0] * 8 for name in ("ref_chosen_logps", "ref_rejected_logps")}
    trainer = runs.trainer(tmp_path, train_dataset=tiny.preferences(8, **columns), **STORED)
    with pytest.raises(InputError, match="has no columns ref_chosen_logps and ref_rejected_logps"):
        trainer.evaluate(tiny.preferences(2))


def test_workers_of_the_data_loader_look_up_too(tmp_path, store):
    ours = stored(tmp_path, store, dataloader_num_workers=1)
    ours.train()
    assert runs.logs(ours)[0]["loss"] == pytest.approx(math.log(2), abs=rounding(0.1 * 60))


def test_a_collator_of_ones_own_that_reads_more_columns_is_given_them(tmp_path, store):
    host = DataCollatorForPreference(pad_token_id=0)

    def collator(rows):
        assert all("weight" in row for row in rows)
        return host(rows)

    data = tiny.preferences(weight=[1.0] * 8)
    trainer = stored(tmp_path, store, train_dataset=data, data_collator=collator, remove_unused_columns=False)
    assert report(trainer).computed > 0


class Dropped(torch.nn.Dropout):
    pass


def test_the_reference_runs_in_evaluation_mode(tmp_path, store):
    model = tiny.model()
    model.model.embed_tokens = torch.nn.Sequential(model.model.embed_tokens, Dropped(0.5))
    model.train()
    trainer = stored(tmp_path, store, model=model, disable_dropout=False)
    assert model.training
    expected = stored(tmp_path, str(tmp_path / "plain"))
    for mine, plain in zip(batch_sums(trainer), batch_sums(expected), strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)


def test_a_stream_is_looked_up_as_it_comes(tmp_path, store):
    data = tiny.preferences()
    stored(tmp_path, store, train_dataset=data)
    trainer = stored(tmp_path, store, train_dataset=data.to_iterable_dataset())
    trainer.train()
    theirs = live(tmp_path, train_dataset=data.to_iterable_dataset())
    assert runs.logs(trainer)[0]["loss"] == pytest.approx(runs.logs(theirs)[0]["loss"], rel=1e-4)


def test_the_trainer_is_still_trls():
    assert issubclass(DPOExtTrainer, DPOTrainer)
