"""The configuration: specs, weights, own hyperparameters, and everything wrong with them said at once."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest
from trl import DPOConfig

from tests.support import runs
from trl_dpo_ext import DPOExtConfig, list_losses
from trl_dpo_ext.config import owned_hyperparameters
from trl_dpo_ext.errors import InputError

ALL = list_losses()


def mixture(tmp_path: Any, **settings: Any) -> str:
    return runs.config(tmp_path, **settings).loss_mixture().describe()


def problems(tmp_path: Any, **settings: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        runs.config(tmp_path, **settings)
    return caught.value.problems


@pytest.mark.parametrize("variant", ALL, ids=lambda v: v.name)
def test_every_variant_is_chosen_by_name_and_every_owned_hyperparameter_is_a_field(tmp_path, variant) -> None:
    smoothing = {"label_smoothing": 0.1} if any(p.name == "label_smoothing" for p in variant.hyperparameters) else {}
    owned = {p.name: p.default for p in variant.owned if p.default is not None}
    config = runs.config(tmp_path, loss_type=variant.name, **smoothing, **owned)
    (term,) = config.loss_mixture().terms
    assert term.variant is variant
    assert {name: term.hyper[name] for name in owned} == owned


@pytest.mark.parametrize("name", owned_hyperparameters())
def test_every_owned_hyperparameter_is_refused_where_no_loss_uses_it(tmp_path, name: str) -> None:
    parameter, variants = owned_hyperparameters()[name]
    value = parameter.choices[0] if parameter.choices else True if parameter.type is bool else parameter.default or 0.5
    (problem,) = problems(tmp_path, **{name: value})
    assert problem.startswith(f"{name}={value} is not used by any chosen loss (sigmoid)")
    assert variants[0] in problem


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "1 x sigmoid(beta=0.1)"),
        ({"loss_type": "dpop", "dpop_lambda": 5.0}, "1 x dpop(beta=0.1, dpop_lambda=5.0)"),
        ({"loss_type": ["smaug"]}, "1 x dpop(beta=0.1, dpop_lambda=50.0)"),
        ({"loss_type": ["sigmoid:beta=1.0", "sigmoid"]}, "1 x sigmoid(beta=1.0) + 1 x sigmoid(beta=0.1)"),
        (
            {"loss_type": [{"sigmoid": {"beta": 1}}, {"dpop": None}]},
            "1 x sigmoid(beta=1.0) + 1 x dpop(beta=0.1, dpop_lambda=50.0)",
        ),
        ({"loss_type": {"cdpo": {"label_smoothing": 0.2}}}, "1 x cdpo(beta=0.1, label_smoothing=0.2)"),
        ({"loss_type": "dpop:lambda=2,beta=0.3"}, "1 x dpop(beta=0.3, dpop_lambda=2.0)"),
        ({"loss_type": ["trl:hinge", "sigmoid"], "loss_weights": [0.5, 2]}, "2 x sigmoid(beta=0.1) + 0.5 x trl:hinge"),
    ],
)
def test_specs(tmp_path, settings: dict, expected: str) -> None:
    assert mixture(tmp_path, **settings) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"loss_type": "sigmod"}, "Unknown loss_type 'sigmod'. Did you mean 'sigmoid'? Run `trl-dpo-ext losses` to list them."),
        ({"loss_type": []}, "loss_type is empty"),
        ({"loss_type": [3]}, "loss_type entry 3 must be a name"),
        ({"loss_type": ["sigmoid", "dpop"], "loss_weights": [1.0]}, "loss_weights has 1 values for 2 losses (sigmoid, dpop)"),
        ({"loss_type": "robust", "label_smoothing": 0.6}, "label_smoothing must be < 0.5 for loss_type 'robust'; got 0.6"),
        ({"loss_type": "exo_pair"}, "label_smoothing must be > 0 for loss_type 'exo_pair'; got 0.0"),
        ({"beta": 0.0}, "beta must be > 0 for loss_type 'sigmoid'; got 0.0"),
        ({"beta": float("nan")}, "beta must be finite for loss_type 'sigmoid'"),
        ({"beta": "much"}, "beta must be a number for loss_type 'sigmoid'; got 'much'"),
        ({"loss_type": "simpo", "beta": 2.0}, "beta=2.0 is not used by any chosen loss (simpo)"),
        ({"label_smoothing": 0.1}, "For conservative DPO choose cdpo"),
        ({"dpop_lambda": 5.0}, "dpop_lambda=5.0 is not used by any chosen loss (sigmoid); it applies to dpop."),
        ({"loss_type": "dpop", "dpop_lambda": -1.0}, "dpop_lambda must be >= 0 for loss_type 'dpop'; got -1.0"),
        ({"loss_type": "sigmoid:gamma=1"}, "'gamma=1' in loss_type 'sigmoid:gamma=1': write name=value; sigmoid has beta."),
        ({"loss_type": "sigmoid:beta"}, "'beta' in loss_type 'sigmoid:beta': write name=value"),
        ({"loss_type": "simpo", "simpo_gamma": 1.0, "simpo_gamma_beta_ratio": 0.5}, "are mutually exclusive"),
        ({"loss_type": "dpo_shift", "dpo_shift_lambda": 0.5, "dpo_shift_schedule": "increase_linear"}, "are mutually exclusive"),
        ({"loss_type": "trl:sigmoid", "f_divergence_type": "forward_kl_linear"}, "TRL does not know it (sigmoid)"),
        ({"loss_type": "dpo_nll", "dpo_nll_norm": "mean"}, "dpo_nll_norm must be one of seq_mean, seq_sum, token_mean"),
        ({"f_divergence_type": "kl"}, "Unknown f_divergence_type 'kl'"),
        ({"loss_type": "apo_zero", "f_divergence_type": "forward_kl"}, "cannot be used with apo_zero"),
        ({"loss_type": "simpo", "f_divergence_type": "forward_kl"}, "is not used by any chosen loss: none reads a reference"),
        ({"f_alpha_divergence_coef": 0.3}, "is used with f_divergence_type 'alpha_divergence' only"),
        ({"loss_type": ["d2po", "sft"], "ld_alpha": 0.5}, "ld_alpha=0.5 is not used by any chosen loss: d2po, sft reads"),
        ({"ld_alpha": 1.5}, "ld_alpha must be between 0 and 1; got 1.5"),
        ({"loss_type": "aot", "use_weighting": True}, "use_weighting cannot be used with aot: it sorts its batch"),
        ({"loss_type": "aot", "weight_column": "w"}, "weight_column cannot be used with aot: it sorts its batch"),
        ({"wpo_clamp": True}, "wpo_clamp=True limits the weights of use_weighting=True, which is off"),
        ({"loss_type": "trl:sigmoid", "weight_column": "w"}, "weight_column cannot be used with losses left to TRL"),
        ({"loss_type": "simpo", "reference_free": True}, "reference_free=True changes nothing for simpo"),
        ({"loss_type": "trl:sigmoid", "reference_free": True}, "cannot be used with losses left to TRL (sigmoid)"),
        ({"loss_type": "simpo", "precompute_ref_log_probs": True}, "precompute_ref_log_probs=True has nothing to do"),
        ({"loss_type": "simpo", "sync_ref_model": True}, "sync_ref_model=True has nothing to do"),
    ],
)  # fmt: skip
def test_wrong_input_is_said_in_words(tmp_path, settings: dict, expected: str) -> None:
    (problem,) = problems(tmp_path, **settings)
    assert expected in problem


def test_all_problems_are_listed_at_once(tmp_path) -> None:
    settings = {"loss_type": ["sigmod", "robust"], "label_smoothing": 0.6, "loss_weights": [1.0], "simpo_beta": 3.0}
    with pytest.raises(
        ValueError, match=r"^4 problems:\n- loss_weights.*\n- Unknown.*\n- label_smoothing.*\n- simpo_beta"
    ) as caught:
        runs.config(tmp_path, **settings)
    assert len(caught.value.problems) == 4  # type: ignore[attr-defined]


def test_defaults_of_fields_that_say_not_set_are_none() -> None:
    fields = {field.name: field for field in dataclasses.fields(DPOExtConfig)}
    assert {fields[name].default for name in owned_hyperparameters()} == {None}
    for name, (parameter, _) in owned_hyperparameters().items():
        assert fields[name].metadata["help"].replace("%%", "%") == parameter.summary


def test_a_configuration_survives_what_checkpoints_do_with_it(tmp_path) -> None:
    config = runs.config(tmp_path, loss_type=[{"dpop": {"beta": 0.3}}], dpop_lambda=5.0)
    again = pickle.loads(pickle.dumps(config))
    assert again.loss_mixture().describe() == config.loss_mixture().describe()
    assert config.to_dict()["loss_type"] == ["dpop:beta=0.3"]


def test_arguments_by_position_are_those_of_trls_configuration() -> None:
    assert DPOExtConfig("out", bf16=False).output_dir == DPOConfig("out", bf16=False).output_dir == "out"


def test_what_a_mixture_needs_is_what_its_terms_need(tmp_path) -> None:
    assert not runs.config(tmp_path, loss_type="simpo").loss_mixture().needs_reference
    assert runs.config(tmp_path, loss_type=["simpo", "dpop"]).loss_mixture().needs_reference
    assert runs.config(tmp_path, loss_type="trl:hinge").loss_mixture().needs_reference
    assert not runs.config(tmp_path, reference_free=True).loss_mixture().needs_reference
