"""Reference log-probs from the store: TRL's numbers, computed once, never another model's, for every variant."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch
from datasets import concatenate_datasets
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig
from trl import DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from tests.support import runs, tiny
from trl_dpo_ext import DPOExtTrainer, Need, list_losses
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.identity.identify import identify
from trl_dpo_ext.reference.model.spec import ReferenceSpec
from trl_dpo_ext.reference.precompute.sequences import batch_sequences
from trl_dpo_ext.reference.store.store import Store

STORED = {"precompute_ref_log_probs": True}


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "refs")


def stored(tmp_path, store, **settings):
    return runs.trainer(tmp_path / "out", ref_store=store, **STORED, **settings)


def live(tmp_path, **settings):
    return runs.trained(tmp_path / "live", **{"ref_model": tiny.model(), **settings})


def report(trainer):
    return trainer._stored.report


def batch_sums(trainer):
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    return batch["ref_token_logps"].sum(dim=1).chunk(2)


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
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)


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
        assert mine.get("loss", 0) == pytest.approx(theirs.get("loss", 0), rel=1e-4, abs=1e-5)


def test_there_are_variants_that_read_tokens():
    assert {"d2po", "sampo"} & {*TOKEN_VARIANTS}


@pytest.mark.parametrize(
    "changed",
    [
        {"learning_rate": 1.0},
        {"seed": 7},
        {"beta": 0.5},
        {"per_device_train_batch_size": 2},
        {"max_steps": 1},
        {"loss_type": "dpop"},
        {"ld_alpha": 0.5},
        {"train_dataset": tiny.preferences().shuffle(seed=1)},
        {"train_dataset": tiny.preferences().select(range(3))},
        {"train_dataset": concatenate_datasets([tiny.preferences(), tiny.preferences()])},
        {"eval_dataset": tiny.preferences().select([4, 2])},
        {"peft_config": LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")},
        {"peft_config": LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM"), "seed": 3},
        {"max_length": 1000},
        {"truncation_mode": "keep_end"},
    ],
    ids=lambda changed: ",".join(changed),
)
def test_what_does_not_change_the_reference_is_a_hit(tmp_path, store, changed, monkeypatch):
    stored(tmp_path, store)
    model = tiny.model()
    monkeypatch.setattr(type(model.model), "forward", lambda *_, **__: pytest.fail("the reference was run"))
    again = stored(tmp_path, store, model=model, **changed)
    assert report(again).computed == 0
    assert report(again).found > 0


def test_another_truncation_computes_what_it_cut_and_no_more(tmp_path, store):
    first = stored(tmp_path, store)
    cut = stored(tmp_path, store, max_length=9)
    assert 0 < report(cut).computed < report(first).computed


def test_sequences_that_pairs_share_are_computed_once(tmp_path, store):
    twice = concatenate_datasets([tiny.preferences()] * 2)
    assert report(stored(tmp_path, store, train_dataset=twice)).computed == len(set_of_sequences(tiny.preferences()))


def set_of_sequences(data):
    return {(row["prompt"], row[side]) for row in data for side in ("chosen", "rejected")}


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (lambda: tiny.model(seed=1), "weights"),
        (lambda: tiny.model(rope_parameters={"rope_theta": 5.0, "rope_type": "default"}), "rope_theta"),
        (lambda: tiny.model().to(torch.bfloat16), "dtype"),
    ],
    ids=["weights", "rope", "dtype"],
)
def test_another_reference_is_refused_with_what_differs(tmp_path, store, other, named):
    stored(tmp_path, store)
    with pytest.raises(InputError, match=named):
        stored(tmp_path, store, model=other())


def test_references_that_differ_have_stores_of_their_own_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    first, second = (runs.trainer(tmp_path / "out", model=tiny.model(seed), **STORED) for seed in (0, 1))
    assert report(first).computed == report(second).computed > 0
    assert first._stored.store.folder != second._stored.store.folder
    assert first._stored.store.folder.is_relative_to(tmp_path / "cache")


def test_one_store_serves_training_and_evaluation_sets_and_dictionaries_of_them(tmp_path, store):
    data = tiny.preferences()
    parts = {"a": data.select([0, 1]), "b": data.select([2])}
    trainer = stored(tmp_path, store, train_dataset=data.select(range(3, 8)), eval_dataset=parts)
    metrics = trainer.evaluate()
    assert [metrics["eval_a_loss"], metrics["eval_b_loss"]] == pytest.approx([math.log(2)] * 2, abs=1e-6)
    trainer.train()
    assert trainer.evaluate()["eval_a_loss"] != pytest.approx(0.6931, abs=1e-3)


def test_a_new_dataset_is_evaluated_before_training_and_after_it_where_it_is_stored(tmp_path, store):
    data = tiny.preferences()
    trainer = stored(tmp_path, store, train_dataset=data.select(range(4)))
    new = trainer.evaluate(data.select([5]))
    assert new["eval_rewards/margins"] == pytest.approx(0, abs=1e-5)
    trainer.train()
    assert trainer.evaluate(data.select([5, 1]))["eval_loss"] > 0
    with pytest.raises(InputError, match="precompute"):
        trainer.evaluate(data.select([6]))


def test_an_adapter_off_reference_can_be_run_after_training(tmp_path, store):
    data = tiny.preferences()
    lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    trainer = stored(tmp_path, store, train_dataset=data.select(range(4)), peft_config=lora)
    trainer.train()
    before = report(trainer).computed
    trainer.evaluate(data.select([6]))
    assert report(trainer).computed == before + 2
    fresh = stored(tmp_path, store, train_dataset=data)
    live = runs.trainer(tmp_path / "host", DPOTrainer, **STORED)
    torch.testing.assert_close(
        batch_sums(fresh)[0], torch.tensor(live.train_dataset["ref_chosen_logps"]), rtol=1e-4, atol=1e-4
    )


def test_columns_that_the_dataset_brings_are_taken_as_they_are(tmp_path, monkeypatch):
    host = runs.trainer(tmp_path / "host", DPOTrainer, **STORED)
    columns = {name: host.train_dataset[name][:] for name in ("ref_chosen_logps", "ref_rejected_logps")}
    data = tiny.preferences(**columns)
    ours = runs.trainer(tmp_path / "out", train_dataset=data, **STORED)
    assert ours._stored is None
    assert ours.ref_model is None
    ours.train()
    theirs = live(tmp_path)
    assert runs.logs(ours)[0]["loss"] == pytest.approx(runs.logs(theirs)[0]["loss"], rel=1e-4)
    assert "own columns" in ours.describe_reference()


def test_a_reference_model_that_was_given_is_run_and_let_go(tmp_path, store):
    reference = tiny.model(seed=5)
    held = weakref.ref(reference.model.embed_tokens)
    trainer = stored(tmp_path, store, ref_model=reference)
    del reference
    gc.collect()
    assert trainer.ref_model is None
    assert held() is None
    trainer.train()  # the start differs from the reference, and that is right here
    theirs = live(tmp_path, ref_model=tiny.model(seed=5))
    assert runs.logs(trainer)[0]["loss"] == pytest.approx(runs.logs(theirs)[0]["loss"], rel=1e-4)


def other_adapter():
    return LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")


@pytest.mark.parametrize("settings", [{}, {"peft_config": other_adapter()}], ids=["full", "adapter"])
@pytest.mark.parametrize("trained", [False, True], ids=["before training", "after training"])
def test_a_released_reference_is_not_replaced_by_the_policy(tmp_path, store, settings, trained):
    data = tiny.preferences()
    reference = tiny.model(seed=5)
    trainer = stored(tmp_path, store, ref_model=reference, train_dataset=data.select(range(4)), **settings)
    if trained:
        trainer.train()
    with pytest.raises(InputError, match="released"):
        trainer.evaluate(data.select([6]))
    # The store holds nothing of the policy's: a new trainer on the same objects fills in the reference's log-probs.
    again = stored(tmp_path, store, ref_model=reference, train_dataset=data)
    alone = stored(tmp_path, str(tmp_path / "alone"), ref_model=tiny.model(seed=5), train_dataset=data)
    for found, right in zip(batch_sums(again), batch_sums(alone), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_a_reference_made_of_a_model_in_memory_is_not_replaced_by_the_policy(tmp_path, store):
    data = tiny.preferences()
    trainer = stored(tmp_path, store, ref_dtype="bfloat16", train_dataset=data.select(range(4)))
    with pytest.raises(InputError, match="released"):
        trainer.evaluate(data.select([6]))


def test_a_stream_does_not_put_the_policy_in_a_released_references_place(tmp_path, store):
    data = tiny.preferences().to_iterable_dataset()
    trainer = stored(tmp_path, store, ref_model=tiny.model(seed=5), train_dataset=data)
    with pytest.raises(InputError, match="released"):
        trainer.precompute_reference()


def test_the_adapter_that_training_started_from_is_the_reference_and_belongs_to_its_identity(tmp_path, store):
    def policy(seed):
        lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
        model = tiny.model()
        torch.manual_seed(seed)
        return get_peft_model(model, lora)

    ours = stored(tmp_path, store, model=policy(1))
    theirs = runs.trainer(tmp_path / "host", DPOTrainer, model=policy(1), **STORED)
    for mine, column in zip(batch_sums(ours), ("ref_chosen_logps", "ref_rejected_logps"), strict=True):
        torch.testing.assert_close(mine, torch.tensor(theirs.train_dataset[column][:]), rtol=1e-4, atol=1e-4)
    ours.train()  # and the check at step 0 finds them equal
    assert report(stored(tmp_path, store, model=policy(1))).computed == 0
    with pytest.raises(InputError, match="adapter"):
        stored(tmp_path, store, model=policy(2))
    with pytest.raises(InputError, match="adapter"):
        stored(tmp_path, store)


def test_a_quantized_base_is_a_reference_of_its_own(tmp_path, store, monkeypatch):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    folder = tiny.saved_model(str(tmp_path / "model"))

    def qlora(**settings):
        return {
            "model": folder,
            "quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
            "peft_config": LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
            **settings,
        }

    ours, theirs = stored(tmp_path, store, **qlora()), runs.trained(tmp_path / "live", **qlora())
    ours.train()
    for mine, live_one in zip(runs.logs(ours), runs.logs(theirs), strict=True):
        assert mine.get("loss", 0) == pytest.approx(live_one.get("loss", 0), rel=1e-3, abs=1e-4)
    assert report(stored(tmp_path, store, **qlora(seed=9))).computed == 0
    with pytest.raises(InputError, match="quantization"):
        stored(tmp_path, store, model=folder)


DESCRIBED = [
    {"ref_quantization": "nf4", "ref_double_quant": True},
    {"ref_quantization": "nf4", "ref_dtype": "bfloat16"},
    {"ref_quantization": "int8", "ref_dtype": "float16", "ref_skip_modules": ["v_proj"]},
    {"ref_dtype": "bfloat16"},
    {"ref_model_name_or_path": "other"},
]


@pytest.mark.parametrize("flags", DESCRIBED, ids=lambda flags: ",".join(map(str, flags.values())))
def test_a_described_reference_is_loaded_only_where_something_is_missing(tmp_path, store, flags, monkeypatch):
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    folder = tiny.saved_model(str(tmp_path / "model"))
    if "ref_model_name_or_path" in flags:
        flags = {"ref_model_name_or_path": tiny.saved_model(str(tmp_path / "other"), seed=4)}
    settings = {"model": folder, "ref_drift_num_pairs": 0, **flags}
    first = stored(tmp_path, store, **settings)
    assert first.ref_model is None
    assert report(first).computed > 0

    def loaded_again(*_, **__):
        pytest.fail("the reference was loaded")

    plan = first._planned_reference
    assert plan is not None
    whole = identify(
        plan.load(), source=plan.settings["model"], compute_dtype=first._stored.store.identity.compute_dtype
    )
    assert whole == first._stored.store.identity
    monkeypatch.setattr(ReferenceSpec, "load", loaded_again)
    again = stored(tmp_path, store, **settings)
    again.train()
    monkeypatch.undo()
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    beside = runs.trained(tmp_path / "live", **settings)
    assert runs.logs(again)[0]["loss"] == pytest.approx(runs.logs(beside)[0]["loss"], rel=2e-2)
    with pytest.raises(InputError, match="in the store and"):
        stored(tmp_path, store, model=folder)


def test_workers_of_the_data_loader_look_up_too(tmp_path, store):
    ours = stored(tmp_path, store, dataloader_num_workers=1)
    ours.train()
    assert runs.logs(ours)[0]["loss"] == pytest.approx(0.6931, abs=1e-4)


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


def forged(tmp_path, store, shift):
    """A store whose numbers are off, under an identity that says they are right."""
    right = stored(tmp_path, str(tmp_path / "right"))._stored.store
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


def test_a_batch_that_does_not_fit_is_halved(tmp_path, store, monkeypatch):
    expected = batch_sums(stored(tmp_path, str(tmp_path / "plain")))
    model = tiny.model()
    forward, fed = type(model.model).forward, []

    def limited(self, input_ids=None, **keywords):
        fed.append(input_ids.numel())
        if input_ids.numel() > 60:
            raise torch.OutOfMemoryError("CUDA out of memory (a test's)")
        return forward(self, input_ids=input_ids, **keywords)

    monkeypatch.setattr(type(model.model), "forward", limited)
    trainer = stored(tmp_path, store, model=model)
    assert max(fed) > 60
    assert fed.count(max(fed)) == 1  # what did not fit once is not tried again
    for mine, plain in zip(batch_sums(trainer), expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)


def test_a_sequence_that_does_not_fit_alone_is_named_and_the_rest_is_kept(tmp_path, store, monkeypatch):
    model = tiny.model()
    forward = type(model.model).forward

    def limited(self, input_ids=None, **keywords):
        if input_ids.size(1) > 14:
            raise torch.OutOfMemoryError("CUDA out of memory (a test's)")
        return forward(self, input_ids=input_ids, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(type(model.model), "forward", limited)
        with pytest.raises(InputError, match="precompute_ref_max_tokens"):
            stored(tmp_path, store, model=model)


def test_an_interrupted_pass_goes_on_where_it_stopped(tmp_path, store, monkeypatch):
    model = tiny.model()
    forward, calls = type(model.model).forward, []

    def interrupted(self, *args, **keywords):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return forward(self, *args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(type(model.model), "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stored(tmp_path, store, model=model, precompute_ref_max_tokens=40)
    again = stored(tmp_path, store)
    assert report(again).found > 0
    assert report(again).found + report(again).computed == len(set_of_sequences(tiny.preferences()))


def test_a_stream_is_looked_up_as_it_comes(tmp_path, store):
    data = tiny.preferences()
    stored(tmp_path, store, train_dataset=data)
    trainer = stored(tmp_path, store, train_dataset=data.to_iterable_dataset())
    trainer.train()
    theirs = live(tmp_path, train_dataset=data.to_iterable_dataset())
    assert runs.logs(trainer)[0]["loss"] == pytest.approx(runs.logs(theirs)[0]["loss"], rel=1e-4)


def test_a_stream_that_is_not_stored_names_the_first_missing_sequence(tmp_path, store):
    data = tiny.preferences()
    stored(tmp_path, store, train_dataset=data.select(range(3)))
    trainer = stored(tmp_path, store, train_dataset=data.to_iterable_dataset())
    with pytest.raises(InputError, match=r"a prompt of 6 tokens .* precompute"):
        trainer.train()
    trainer = stored(tmp_path, store, train_dataset=data.to_iterable_dataset())
    trainer.precompute_reference()
    trainer.train()


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


def test_the_trainer_is_still_trls():
    assert issubclass(DPOExtTrainer, DPOTrainer)
