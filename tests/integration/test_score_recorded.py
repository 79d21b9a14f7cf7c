"""A run whose models were passed in Python is scored against its reference, or says what it needs to find it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support import runs, scoring, tiny
from trl_dpo_ext import load_reference, score_preferences
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.identity.unchanged import sample_fingerprint

pytestmark = pytest.mark.slow
CANNOT = r"was passed in Python.*{}.*--ref_model_name_or_path.*--ref_store.*reference=.*--reference_free"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return scoring.saved_models(tmp_path_factory.mktemp("models"))


def loaded(name, **settings):
    return AutoModelForCausalLM.from_pretrained(name, **settings)


def run_of(folder, model, **settings):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "learning_rate": 0.1, **settings}
    trainer = runs.trainer(folder, model=model, **settings)
    trainer.train()
    trainer.save_model(str(folder))
    return str(folder)


def scored(folder, policy, **given):
    return score_preferences(policy, tiny.preferences(3), args=scoring.config(folder), **given)


def refs(result):
    return scoring.sums(result.pairs, "ref")


def changed(model):
    with torch.no_grad():
        model.lm_head.weight += 0.5
    return model


@pytest.mark.parametrize(
    ("reference", "settings"),
    [
        (lambda models: loaded(models["policy"]), {}),
        (lambda models: loaded(models["policy"], dtype=torch.bfloat16), {"dtype": "bfloat16"}),
        (lambda models: load_reference(models["policy"]), {}),
    ],
    ids=["transformers", "bfloat16", "load_reference"],
)
def test_a_reference_that_was_passed_is_found_by_the_name_it_was_loaded_from(tmp_path, models, reference, settings):
    out = run_of(tmp_path / "out", models["base"], ref_model=reference(models))
    expected = scoring.by_trl(tmp_path / "b", loaded(models["policy"]), tiny.preferences(3))
    for policy in (out, f"{out}/checkpoint-1"):
        result = scored(tmp_path / "score", policy)
        told = result.data["arguments"]
        assert told["reference"].startswith(models["policy"])
        assert told["reference"].endswith(", as the run has recorded")
        assert told["reference_identity"]["dtype"] == settings.get("dtype", "float32")
        if not settings:
            scoring.assert_close(refs(result), expected)


def test_a_policy_that_was_passed_is_scored_against_its_start(tmp_path, models):
    out = run_of(tmp_path / "out", loaded(models["base"]))
    expected = scoring.by_trl(tmp_path / "b", loaded(models["base"]), tiny.preferences(3))
    scoring.assert_close(refs(scored(tmp_path / "score", out)), expected)


def test_a_quantized_reference_that_was_passed_is_loaded_as_it_was(tmp_path, models):
    out = run_of(tmp_path / "out", models["base"], ref_model=load_reference(models["policy"], quantization="nf4"))
    identity = scored(tmp_path / "score", out).data["arguments"]["reference_identity"]
    assert identity["quantization"].startswith("nf4")


def test_an_adapter_s_run_with_a_passed_reference_is_not_scored_against_its_base(tmp_path, models):
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    out = run_of(tmp_path / "out", models["base"], peft_config=lora, ref_model=loaded(models["policy"]))
    expected = scoring.by_trl(tmp_path / "b", loaded(models["policy"]), tiny.preferences(3))
    scoring.assert_close(refs(scored(tmp_path / "score", out)), expected)


@pytest.mark.parametrize("lost", ["changed", "unnamed", "with an adapter", "moved away", "other files"])
def test_a_reference_that_cannot_be_loaded_is_refused_with_what_is_needed(tmp_path, models, lost):
    source = shutil.copytree(models["policy"], tmp_path / "source")
    reference = loaded(str(source))
    if lost == "changed":
        reference = changed(reference)
    elif lost == "unnamed":
        reference.config._name_or_path = ""
    elif lost == "with an adapter":
        reference = load_reference(peft.PeftModel.from_pretrained(loaded(models["base"]), models["sft"]))
    out = run_of(tmp_path / "out", models["base"], ref_model=reference)
    if lost == "moved away":
        shutil.rmtree(source)
    elif lost == "other files":
        changed(loaded(str(source))).save_pretrained(source)
    why = {"unnamed": "does not know", "moved away": "cannot be loaded"}
    with pytest.raises(InputError, match=CANNOT.format(why.get(lost, "holds other weights"))):
        scored(tmp_path / "score", out)
    assert scored(tmp_path / "score", out, reference=models["policy"]).pairs.scored.all()  # named: taken as it is
    store = {"ref_store": str(tmp_path / "refs")}
    filled = scored(tmp_path / "score", out, reference=models["policy"], **store)
    scoring.assert_close(refs(scored(tmp_path / "score", out, **store)), refs(filled))


def test_a_run_of_a_version_that_recorded_no_instances_needs_a_reference(tmp_path, models):
    out = Path(run_of(tmp_path / "out", loaded(models["base"])))
    for file in out.rglob("trl_dpo_ext_run.json"):
        run = json.loads(file.read_text())
        file.write_text(json.dumps({name: run[name] for name in ("losses", "optim", "data")}))
    with pytest.raises(InputError, match=r"No reference.*--ref_model_name_or_path"):
        scored(tmp_path / "score", str(out))


def test_the_fingerprint_of_weights_is_that_of_their_content(models):
    model = loaded(models["base"])
    mine = sample_fingerprint(model)
    assert mine == sample_fingerprint(loaded(models["base"]))
    others = [loaded(models["policy"]), loaded(models["base"], dtype=torch.bfloat16), changed(loaded(models["base"]))]
    resized = loaded(models["base"])
    resized.resize_token_embeddings(resized.config.vocab_size + 1)
    assert len({mine, *map(sample_fingerprint, [*others, resized])}) == 5
    assert sample_fingerprint(model.to("meta")) is None


@pytest.mark.parametrize("kind", ["weights", "adapter"])
def test_a_run_with_a_moving_reference_is_scored_against_its_start_and_says_so(tmp_path, models, kind):
    lora = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM") if kind == "adapter" else None
    moving = {"sync_ref_model": True, "ref_model_sync_steps": 1, "ref_model_mixup_alpha": 1.0}
    out = run_of(tmp_path / "out", models["base"], peft_config=lora, **moving)
    expected = scoring.by_trl(tmp_path / "b", loaded(models["base"]), tiny.preferences(3))
    for policy in (out, f"{out}/checkpoint-1"):
        result = scored(tmp_path / "score", policy)
        scoring.assert_close(refs(result), expected)
        assert "reference as it was when the run started" in result.data["notes"][0]
    assert not scored(tmp_path / "score", out, reference=models["policy"]).data["notes"]
    still = run_of(tmp_path / "still", models["base"], peft_config=lora)
    assert not scored(tmp_path / "score", still).data["notes"]
