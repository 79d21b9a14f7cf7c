"""Scores are TRL's log-probs of policy and reference: on the scored tokens alone, for every way to name the two."""

from __future__ import annotations

import numpy as np
import peft
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from tests.support import runs, scoring, tiny
from trl_dpo_ext import score_preferences
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.scoring.sequences import score_sequences
from trl_dpo_ext.scoring.texts import texts_of


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return scoring.saved_models(tmp_path_factory.mktemp("models"))


def loaded(models, name):
    return AutoModelForCausalLM.from_pretrained(models[name])


def with_adapter(models, name="adapter"):
    return peft.PeftModel.from_pretrained(loaded(models, "base"), models[name]).merge_and_unload()


@pytest.mark.parametrize("conversational", [False, True])
@pytest.mark.parametrize("settings", [{}, {"max_length": 8}, {"max_length": 8, "truncation_mode": "keep_end"}])
def test_sums_are_those_of_trl(tmp_path, models, conversational, settings):
    data = tiny.preferences(7, conversational=conversational)
    args = scoring.config(tmp_path, **settings)
    scored = score_preferences(models["policy"], data, args=args, reference=models["base"]).pairs
    kept = scored.status != "dropped"
    scoring.assert_close(
        scoring.sums(scored)[kept], scoring.by_trl(tmp_path / "a", loaded(models, "policy"), data, **settings)
    )
    scoring.assert_close(
        scoring.sums(scored, "ref")[kept], scoring.by_trl(tmp_path / "b", loaded(models, "base"), data, **settings)
    )


def test_prompts_are_not_scored(tmp_path, models):
    # LlamaFactory 1447: with the prompt's log-probs, rewards were off by a thousand.
    words = "what is the capital of france well let me think about that it is a very good question"
    data = tiny.preferences(3).map(lambda row: {"prompt": f"{words} {row['prompt']}"})
    scored = score_preferences(models["policy"], data, args=scoring.config(tmp_path), reference=models["base"]).pairs
    policy, base = loaded(models, "policy"), loaded(models, "base")
    for row, found in zip(data.to_list(), scored.chosen.policy - scored.chosen.ref, strict=True):
        right, wrong = (
            scoring.by_hand(policy, row["prompt"], row["chosen"], start)
            - scoring.by_hand(base, row["prompt"], row["chosen"], start)
            for start in (None, 1)
        )
        assert found == pytest.approx(right, abs=scoring.ATOL)
        assert abs(found - wrong) > 1


def test_an_adapter_is_scored_against_its_base_with_the_adapter_off(tmp_path, models):
    data = tiny.preferences(5)
    scored = score_preferences(models["adapter"], data, args=scoring.config(tmp_path))
    scoring.assert_close(scoring.sums(scored.pairs), scoring.by_trl(tmp_path / "a", with_adapter(models), data))
    scoring.assert_close(
        scoring.sums(scored.pairs, "ref"), scoring.by_trl(tmp_path / "b", loaded(models, "base"), data)
    )
    assert scored.data["arguments"]["reference"] == f"base {models['base']} with the adapter off"


def test_an_adapter_in_memory_is_scored_and_left_as_it_was(tmp_path, models):
    data = tiny.preferences(5)
    model = peft.PeftModel.from_pretrained(loaded(models, "base"), models["adapter"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scored = score_preferences(model, data, tiny.tokenizer(), scoring.config(tmp_path)).pairs
    scoring.assert_close(scoring.sums(scored), scoring.by_trl(tmp_path / "a", with_adapter(models), data))
    scoring.assert_close(scoring.sums(scored, "ref"), scoring.by_trl(tmp_path / "b", loaded(models, "base"), data))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert "forward" not in vars(model.get_base_model())


def test_the_adapter_that_a_run_started_from_is_the_reference(tmp_path, models):
    data = tiny.preferences(5)
    args = scoring.config(tmp_path)
    scored = score_preferences(models["adapter"], data, args=args, ref_adapter=models["sft"]).pairs
    scoring.assert_close(scoring.sums(scored), scoring.by_trl(tmp_path / "a", with_adapter(models), data))
    scoring.assert_close(scoring.sums(scored, "ref"), scoring.by_trl(tmp_path / "b", with_adapter(models, "sft"), data))


def test_models_in_memory_are_scored(tmp_path, models):
    data = tiny.preferences(5)
    policy = loaded(models, "policy").requires_grad_(False)
    scored = score_preferences(
        policy, data, tiny.tokenizer(), scoring.config(tmp_path), reference=loaded(models, "base")
    ).pairs
    scoring.assert_close(scoring.sums(scored), scoring.by_trl(tmp_path / "a", loaded(models, "policy"), data))
    scoring.assert_close(scoring.sums(scored, "ref"), scoring.by_trl(tmp_path / "b", loaded(models, "base"), data))


def test_every_loaded_row_keeps_its_place_and_says_what_became_of_it(tmp_path, models):
    long = "what is the capital of france well let me think about that it is a very good question"
    rows = [
        {"prompt": "say yes", "chosen": " yes", "rejected": " no"},
        {"prompt": long, "chosen": " yes", "rejected": " no"},
        {"prompt": "say yes", "chosen": f" yes {long}", "rejected": f" yes {long} no"},
        {"prompt": "say yes", "chosen": " yes", "rejected": f" no {long}"},
    ]
    data = Dataset.from_list(rows)
    scored = score_preferences(
        models["policy"], data, args=scoring.config(tmp_path, max_length=10), reference=models["base"]
    ).pairs
    assert scored.status.tolist() == ["ok", "dropped", "identical", "cut"]
    assert scored.rows.tolist() == [0, 1, 2, 3]
    assert np.isnan(scored.chosen.policy).tolist() == [False, True, False, False]
    assert scored.chosen.tokens.tolist()[1:] == [0, 8, 2]
    assert scored.columns[1]["prompt"] == long


def test_token_sequences_are_scored_as_they_are(tmp_path, models):
    prompt, answers = [5, 6, 7], [[8, 9, 2], [8, 2], [8, 9, 2]]
    found, scored = score_sequences(
        models["policy"],
        [(prompt, answer) for answer in answers],
        args=scoring.config(tmp_path, max_length=4),
        reference=models["base"],
    )
    assert scored.scored.policy.stats.computed == 2
    model = loaded(models, "policy")
    for answer, total, tokens in zip(answers, found.policy, found.tokens, strict=True):
        with torch.no_grad():
            logps = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        expected = sum(float(logps[len(prompt) - 1 + at, token]) for at, token in enumerate(answer))
        assert total == pytest.approx(expected, abs=scoring.ATOL)
        assert tokens == len(answer)


def test_a_full_model_without_a_recorded_start_needs_a_reference(tmp_path, models):
    with pytest.raises(InputError, match=r"No reference.*--ref_model_name_or_path"):
        score_preferences(models["policy"], tiny.preferences(2), args=scoring.config(tmp_path))
    free = score_preferences(
        models["policy"], tiny.preferences(2), args=scoring.config(tmp_path), reference_free="mean"
    )
    assert np.isnan(free.pairs.chosen.ref).all()
    assert free.pairs.status.tolist() == ["ok", "ok"]


@pytest.mark.parametrize("broken", ["one token", "everything"])
def test_rows_without_finite_log_probs_are_counted_and_named(tmp_path, models, broken):
    data = tiny.preferences(4)
    model = loaded(models, "policy")
    with torch.no_grad():
        weights = model.model.embed_tokens.weight
        weights[tiny.tokenizer()("paris")["input_ids"][0] if broken == "one token" else slice(None)] = float("nan")
    result = score_preferences(
        model,
        data,
        tiny.tokenizer(),
        scoring.config(tmp_path),
        reference=loaded(models, "base"),
        work_dir=tmp_path / "w",
    )
    bad = 1 if broken == "one token" else 4
    assert result.pairs.status.tolist() == ["nonfinite"] * bad + ["ok"] * (4 - bad)
    assert result.data["rows"]["nonfinite_rows"] == list(range(bad))
    assert "are not finite (rows 0" in " ".join(result.data["notes"])
    assert result.pairs.chosen.tokens.min() > 0
    texts = texts_of(result.scored, [0])[0]
    assert texts is not None
    assert np.isnan(texts.chosen_ratios).all()


def test_a_pass_says_whose_log_probs_it_computes(tmp_path, models, capsys):
    args = scoring.config(tmp_path / "score", disable_tqdm=False)
    score_preferences(models["policy"], tiny.preferences(2), args=args, reference=models["base"])
    told = capsys.readouterr().err
    assert "Log-probs of the policy:" in told
    assert "Log-probs of the reference:" in told
    assert "Reference log-probs" not in told
    runs.trainer(
        tmp_path / "run", train_dataset=tiny.preferences(2), disable_tqdm=False, precompute_ref_log_probs=True,
        ref_store=str(tmp_path / "refs"),
    )  # fmt: skip
    assert "Reference log-probs of train:" in capsys.readouterr().err
