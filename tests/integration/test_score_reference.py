"""Which model rewards are relative to: the one that is named, else what the run records; never another in its place."""

from __future__ import annotations

import json
import shutil

import numpy as np
import peft
import pytest
from transformers import AutoModelForCausalLM

from tests.support import runs, scoring, tiny
from trl_dpo_ext import score_preferences
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.store.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return scoring.saved_models(tmp_path_factory.mktemp("models"))


def refs(result):
    return scoring.sums(result.pairs, "ref")


def counted(result):
    """Sequences of the reference that were found and computed."""
    stats = result.scored.reference.stats
    return stats.found, stats.computed


def run_of(folder, model, **settings):
    """The folder of a run of two steps, with a checkpoint."""
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "learning_rate": 0.1, **settings}
    trainer = runs.trainer(folder, model=model, **settings)
    trainer.train()
    trainer.save_model(str(folder))
    return str(folder)


def test_a_full_run_and_its_checkpoints_record_the_model_they_started_from(tmp_path, models):
    data = tiny.preferences(3)
    out = run_of(tmp_path / "out", models["base"])
    expected = scoring.by_trl(tmp_path / "b", AutoModelForCausalLM.from_pretrained(models["base"]), data)
    for policy in (out, f"{out}/checkpoint-1"):
        result = score_preferences(policy, data, args=scoring.config(tmp_path / "score"))
        scoring.assert_close(refs(result), expected)
        assert "as the run has recorded" in result.data["arguments"]["reference"]
        assert np.abs(result.measures.margin).min() > 0.01
    shutil.copytree(out, tmp_path / "elsewhere" / "copy")
    with pytest.raises(InputError, match="could not be found"):  # the path no longer leads to the model
        score_preferences(str(tmp_path / "elsewhere" / "copy"), data, args=scoring.config(tmp_path / "score"))


@pytest.mark.parametrize("which", ["result", "checkpoint"])
def test_a_run_from_an_adapter_is_scored_against_the_adapter_it_started_from(tmp_path, models, which):
    data = tiny.preferences(3)
    out = run_of(tmp_path / "out", models["sft"])
    policy = out if which == "result" else f"{out}/checkpoint-1"
    result = score_preferences(policy, data, args=scoring.config(tmp_path / "score"))
    start = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(models["base"]), models["sft"])
    scoring.assert_close(refs(result), scoring.by_trl(tmp_path / "b", start.merge_and_unload(), data))
    named = score_preferences(policy, data, args=scoring.config(tmp_path / "score"), ref_adapter=models["sft"])
    scoring.assert_close(refs(named), refs(result))


def test_a_run_with_another_reference_is_scored_against_that(tmp_path, models):
    data = tiny.preferences(3)
    out = run_of(tmp_path / "out", models["base"], ref_model_name_or_path=models["policy"])
    result = score_preferences(out, data, args=scoring.config(tmp_path / "score"))
    scoring.assert_close(
        refs(result), scoring.by_trl(tmp_path / "b", AutoModelForCausalLM.from_pretrained(models["policy"]), data)
    )


def test_a_new_adapter_is_scored_against_its_base(tmp_path, models):
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    out = run_of(tmp_path / "out", models["base"], peft_config=lora)
    result = score_preferences(out, tiny.preferences(3), args=scoring.config(tmp_path / "score"))
    assert result.data["arguments"]["reference"] == f"base {models['base']} with the adapter off"


def test_a_model_card_names_the_reference_of_a_run_of_another_trainer(tmp_path, models):
    other = shutil.copytree(models["policy"], tmp_path / "other")
    (other / "README.md").write_text(f"---\nbase_model: {models['base']}\n---\n")
    result = score_preferences(str(other), tiny.preferences(2), args=scoring.config(tmp_path))
    assert result.data["arguments"]["reference"] == f"{models['base']}, by the model card"


def test_described_references_are_loaded_as_train_loads_them(tmp_path, models):
    data = tiny.preferences(3)
    args = scoring.config(tmp_path, ref_model_name_or_path=models["base"], ref_dtype="bfloat16")
    result = score_preferences(models["policy"], data, args=args)
    assert result.data["arguments"]["reference_identity"]["dtype"] == "bfloat16"
    exact = score_preferences(models["policy"], data, args=scoring.config(tmp_path), reference=models["base"])
    assert 0 < np.abs(refs(result) - refs(exact)).max() < 5


def test_a_quantized_reference_and_a_quantized_policy_are_scored_and_noted(tmp_path, models):
    from transformers import BitsAndBytesConfig

    data = tiny.preferences(3)
    args = scoring.config(tmp_path, ref_model_name_or_path=models["base"], ref_quantization="nf4")
    found = score_preferences(
        models["policy"], data, args=args, quantization_config=BitsAndBytesConfig(load_in_4bit=True)
    )
    assert [note.split(" is ")[0] for note in found.data["notes"][:2]] == ["The policy", "The reference"]
    exact = score_preferences(models["policy"], data, args=scoring.config(tmp_path), reference=models["base"])
    for of in ("policy", "ref"):
        assert 0.01 < np.abs(scoring.sums(found.pairs, of) - scoring.sums(exact.pairs, of)).max() < 40


def test_a_store_of_a_known_reference_is_read_and_filled(tmp_path, models):
    data, args, store = tiny.preferences(5), scoring.config(tmp_path), str(tmp_path / "refs")
    first = score_preferences(
        models["policy"], data.select(range(2)), args=args, reference=models["base"], ref_store=store
    )
    again = score_preferences(models["policy"], data, args=args, reference=models["base"], ref_store=store)
    assert counted(first) == (0, 4)
    assert counted(again) == (4, 6)
    alone = score_preferences(models["policy"], data, args=args, ref_store=store)  # complete: its model is not needed
    scoring.assert_close(refs(alone), refs(again))
    assert counted(alone) == (10, 0)


def test_the_store_of_a_run_serves_its_score(tmp_path, models):
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    store = {"precompute_ref_log_probs": True, "ref_store": str(tmp_path / "refs")}
    out = run_of(tmp_path / "out", models["base"], peft_config=lora, **store)
    result = score_preferences(
        out, tiny.preferences(), args=scoring.config(tmp_path / "s"), ref_store=store["ref_store"]
    )
    assert counted(result)[1] == 0


def test_an_unknown_store_that_lacks_sequences_is_refused_with_their_number(tmp_path, models):
    data, args, store = tiny.preferences(5), scoring.config(tmp_path), str(tmp_path / "refs")
    score_preferences(models["policy"], data.select(range(2)), args=args, reference=models["base"], ref_store=store)
    with pytest.raises(InputError, match=r"lacks 6 of the 10 sequences.*--ref_model_name_or_path.*precompute"):
        score_preferences(models["policy"], data, args=args, ref_store=store)
    assert len(Store.read_only(store)) == 4


def test_a_store_of_another_model_is_refused(tmp_path, models):
    data, args, store = tiny.preferences(2), scoring.config(tmp_path), str(tmp_path / "refs")
    score_preferences(models["policy"], data, args=args, reference=models["base"], ref_store=store)
    other = tiny.saved_model(str(tmp_path / "other"), seed=5)
    with pytest.raises(InputError, match=r"log-probs of another reference: weights is .*--ref_model_name_or_path"):
        score_preferences(models["policy"], data, args=args, reference=other, ref_store=store)
    work = tmp_path / "work"
    score_preferences(models["policy"], data, args=args, reference=models["base"], work_dir=work)
    with pytest.raises(InputError, match=r"log-probs of another policy: weights is .*--work_dir"):
        score_preferences(other, data, args=args, reference=models["base"], work_dir=work)


@pytest.mark.parametrize("reference", ["itself", "a copy"])
def test_a_policy_is_not_scored_against_itself(tmp_path, models, reference):
    name = models["policy"]
    if reference == "a copy":
        name = str(shutil.copytree(name, tmp_path / "copy"))
    with pytest.raises(InputError, match=r"same model.*every reward is 0"):
        score_preferences(models["policy"], tiny.preferences(2), args=scoring.config(tmp_path), reference=name)
    with pytest.raises(InputError, match=r"same model.*every reward is 0"):
        score_preferences(
            models["adapter"], tiny.preferences(2), args=scoring.config(tmp_path), ref_adapter=models["adapter"]
        )


def test_another_vocabulary_is_refused_before_a_model_is_loaded(tmp_path, models, monkeypatch):
    other = shutil.copytree(models["base"], tmp_path / "other")
    text = (other / "tokenizer.json").read_text()
    content = json.loads(text)
    words = content["model"]["vocab"]
    words["paris"], words["france"] = words["france"], words["paris"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(InputError, match=r"another vocabulary: token id \d+ is .* \(2 token ids differ\)"):
        score_preferences(models["policy"], tiny.preferences(2), args=scoring.config(tmp_path), reference=str(other))


@pytest.mark.parametrize("broken", ["policy", "adapter", "base"])
def test_broken_or_missing_weights_are_named_before_anything_is_loaded(tmp_path, models, broken):
    for name in ("policy", "base", "adapter"):
        shutil.copytree(models[name], tmp_path / name)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": str(tmp_path / "base")}))
    file = next((tmp_path / broken).glob("*.safetensors"))
    policy, reference = ("policy", str(tmp_path / "base")) if broken == "policy" else ("adapter", None)
    for damage in (lambda: file.write_bytes(file.read_bytes()[:100]), file.unlink):
        damage()
        with pytest.raises(InputError, match=f"{broken}.*(cannot be read|holds no weights|not its weights)"):
            score_preferences(
                str(tmp_path / policy), tiny.preferences(2), args=scoring.config(tmp_path / "s"), reference=reference
            )


def test_two_references_are_refused(tmp_path, models):
    args = scoring.config(tmp_path, ref_model_name_or_path=models["base"])
    with pytest.raises(InputError, match="--ref_model_name_or_path and --ref_adapter name two references"):
        score_preferences(models["adapter"], tiny.preferences(2), args=args, ref_adapter=models["sft"])
    with pytest.raises(InputError, match="base is not an adapter"):
        score_preferences(
            models["adapter"], tiny.preferences(2), args=scoring.config(tmp_path), ref_adapter=models["base"]
        )


def test_a_run_whose_loss_needs_no_reference_is_told_so(tmp_path, models):
    args = scoring.config(tmp_path, loss_type="simpo", beta=0.1)
    with pytest.raises(InputError, match=r"--reference_free mean.*simpo.*needs none either"):
        score_preferences(models["policy"], tiny.preferences(2), args=args)
    scored = score_preferences(models["policy"], tiny.preferences(2), args=args, reference=models["base"])
    assert np.isfinite(scored.measures.margin).all()
