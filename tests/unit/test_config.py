"""The configuration: specs, weights, own hyperparameters, and everything wrong with them said at once."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from trl import DPOConfig

from tests.support import runs, tiny
from tests.support.batches import required_hyper
from trl_dpo_ext import DPOExtConfig, DPOExtTrainer, config_fields, hyperparameter_fields, list_losses
from trl_dpo_ext.config import owned_hyperparameters
from trl_dpo_ext.core.transforms import F_DIVERGENCES
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.estimate.pitfalls import CHECKS
from trl_dpo_ext.legacy_keys import LEGACY_KEYS
from trl_dpo_ext.option_docs import read_args
from trl_dpo_ext.reference.config import DTYPES, QUANTIZATIONS

ROOT = Path(__file__).parents[2]

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
    owned = {p.name: p.default for p in variant.owned if p.default is not None} | required_hyper(variant)
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
        ({"loss_type": None}, "loss_type is empty"),
        ({"loss_weights": [float("nan")]}, "loss_weights must be finite numbers; got nan"),
        ({"loss_weights": [float("inf")]}, "loss_weights must be finite numbers; got inf"),
        ({"loss_weights": [None]}, "loss_weights must be finite numbers; got None"),
        ({"loss_weights": ["1"]}, "loss_weights must be finite numbers; got '1'"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 has no effect"),
        ({"truncation_mode": "keep-end"}, "Unknown truncation_mode 'keep-end'; one of keep_start, keep_end"),
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
        ({"loss_type": "trl:sigmoid", "f_divergence_type": "forward_kl_linear"}, "losses left to TRL (sigmoid): TRL does not have it"),
        ({"loss_type": "dpo_nll", "dpo_nll_norm": "mean"}, "dpo_nll_norm must be one of seq_mean, seq_sum, token_mean"),
        ({"f_divergence_type": "kl"}, "Unknown f_divergence_type 'kl'"),
        ({"loss_type": "apo_zero", "f_divergence_type": "forward_kl"}, "cannot be used with apo_zero"),
        ({"loss_type": "simpo", "f_divergence_type": "forward_kl"}, "is not used by any chosen loss: none reads a reference"),
        ({"f_alpha_divergence_coef": 0.3}, "f_alpha_divergence_coef=0.3 has no effect without f_divergence_type='alpha_divergence'"),
        ({"loss_type": ["d2po", "sft"], "ld_alpha": 0.5}, "ld_alpha=0.5 is not used by any chosen loss: d2po, sft read single tokens"),
        ({"ld_alpha": 1.5}, "ld_alpha must be between 0 and 1; got 1.5"),
        ({"loss_type": "aot", "use_weighting": True}, "use_weighting cannot be used with aot, which sorts the batch"),
        ({"loss_type": "aot", "weight_column": "w"}, "weight_column cannot be used with aot, which sorts the batch"),
        ({"wpo_clamp": True}, "wpo_clamp=True has no effect without use_weighting=True"),
        ({"loss_type": "trl:sigmoid", "weight_column": "w"}, "weight_column cannot be used with losses left to TRL"),
        ({"loss_type": "simpo", "reference_free": True}, "reference_free=True has no effect: simpo needs no reference"),
        ({"loss_type": "trl:sigmoid", "reference_free": True}, "cannot be used with losses left to TRL (sigmoid)"),
        ({"loss_type": "simpo", "precompute_ref_log_probs": True}, "precompute_ref_log_probs=True has no effect: this run of simpo needs no reference"),
        ({"loss_type": "simpo", "sync_ref_model": True}, "sync_ref_model=True has no effect: this run of simpo needs no reference"),
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


def own_fields() -> dict[str, Any]:
    """The fields that TRL's configuration lacks, and those that are redefined here."""
    fields = {field.name: field for field in dataclasses.fields(DPOExtConfig)}
    foreign = {field.name for field in dataclasses.fields(DPOConfig)}
    mine = [cls for cls in DPOExtConfig.__mro__ if cls.__module__.startswith("trl_dpo_ext.")]
    redefined = {name for cls in mine for name in inspect.get_annotations(cls)}
    return {name: field for name, field in fields.items() if name not in foreign or name in redefined}


@pytest.mark.parametrize("name", own_fields())
def test_every_option_is_documented_once_for_docstring_and_help(name: str) -> None:
    documented = read_args(DPOExtConfig, inherited=True)
    assert documented[name].endswith((".", ")"))
    assert own_fields()[name].metadata["help"] == documented[name].replace("%", "%%")
    (home,) = [cls for cls in DPOExtConfig.__mro__ if name in read_args(cls)]
    assert name in inspect.get_annotations(home)


def test_nothing_is_documented_that_is_no_option() -> None:
    assert read_args(DPOExtConfig, inherited=True).keys() == own_fields().keys()


def test_trls_own_help_is_left_alone() -> None:
    helps = {field.name: field.metadata["help"] for field in dataclasses.fields(DPOConfig) if "help" in field.metadata}
    assert "forward_kl_linear" not in helps["f_divergence_type"]
    ours = {field.name: field.metadata.get("help") for field in dataclasses.fields(DPOExtConfig)}
    assert all(ours[name] == text for name, text in helps.items() if name not in own_fields())


@pytest.mark.parametrize(
    ("name", "choices"),
    [
        ("f_divergence_type", F_DIVERGENCES),
        ("ref_quantization", QUANTIZATIONS),
        ("ref_dtype", DTYPES),
        ("ref_compute_dtype", DTYPES),
        ("ignore_pitfalls", CHECKS),
    ],
)
def test_an_option_with_choices_lists_all_of_them(name: str, choices: Any) -> None:
    listed = ", ".join(choices) if len(choices) > 3 else f"{', '.join(list(choices)[:-1])} or {list(choices)[-1]}"
    assert listed in read_args(DPOExtConfig, inherited=True)[name]


def test_the_fields_of_built_in_losses_are_generated_source() -> None:
    assert Path(config_fields.__file__).read_text() == hyperparameter_fields.source()
    builtin = {p.name for v in ALL if v.function.__module__.startswith("trl_dpo_ext.") for p in v.owned}
    assert {field.name for field in dataclasses.fields(config_fields.LossHyperparameters)} == builtin


def run_code(code: str, *folders: Path) -> str:
    """What a new process prints that finds modules and distributions in `folders` too."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*folders, ROOT)))}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def install_plugin(folder: Path) -> None:
    (folder / "shifted.py").write_text(
        textwrap.dedent(
            '''
            from typing import Annotated
            import torch
            from trl_dpo_ext import Hyper, Need, register_loss
            from trl_dpo_ext.core.hyperparameters import Beta

            @register_loss(paper=None, needs=Need.REFERENCE, name="shifted", verification="unverified")
            def loss(p, *, beta: Beta, shifted_by: Annotated[float, Hyper("Nats that the margin must exceed.")] = 1.0):
                """DPO with a shift."""
                return -torch.nn.functional.logsigmoid(beta * (p.margin - shifted_by))
            '''
        )
    )
    (folder / "shifted-1.0.dist-info").mkdir()
    (folder / "shifted-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: shifted\nVersion: 1.0\n")
    (folder / "shifted-1.0.dist-info/entry_points.txt").write_text("[trl_dpo_ext.losses]\nshifted = shifted\n")


@pytest.mark.slow
def test_a_hyperparameter_of_an_installed_plug_in_is_an_option_too(tmp_path) -> None:
    install_plugin(tmp_path)
    code = """
        import dataclasses
        from trl_dpo_ext import DPOExtConfig
        from trl_dpo_ext.config import PluginHyperparameters
        from trl_dpo_ext.option_docs import read_args
        (field,) = dataclasses.fields(PluginHyperparameters)
        print(field.name, field.default, field.metadata["help"])
        print(read_args(DPOExtConfig, inherited=True)["shifted_by"])
        config = DPOExtConfig("out", loss_type="shifted", shifted_by=2.0, bf16=False)
        print(config.loss_mixture().describe())
    """
    text = "Nats that the margin must exceed. (default: 1.0)"
    assert run_code(code, tmp_path).splitlines() == [
        f"shifted_by None {text}",
        text,
        "1 x shifted(beta=0.1, shifted_by=2.0)",
    ]


@pytest.mark.slow
def test_the_generated_source_is_written_without_itself_and_without_plug_ins(tmp_path) -> None:
    install_plugin(tmp_path)
    code = """
        import runpy, sys
        from trl_dpo_ext import list_losses
        sys.modules["trl_dpo_ext.config_fields"] = None  # its import fails, as if the file were missing
        docs = runpy.run_path("tools/docs.py")
        ((file, write),) = docs["FILES"].items()
        print("shifted" in [variant.name for variant in list_losses()], write() == open(file).read())
    """
    assert run_code(code, tmp_path).split() == ["True", "True"]


@pytest.mark.parametrize("name", LEGACY_KEYS)
def test_an_old_argument_of_the_constructor_names_its_successor(tmp_path, name: str) -> None:
    with pytest.raises(TypeError) as caught:
        runs.config(tmp_path, **{name: 1})
    assert str(caught.value) == f"DPOExtConfig got unexpected arguments. {name} {LEGACY_KEYS[name]}."


def test_every_unknown_argument_is_named(tmp_path) -> None:
    with pytest.raises(
        TypeError, match=r"dpop_lamda\. Did you mean dpop_lambda\? ref_self_check was renamed to verify_"
    ):
        runs.config(tmp_path, dpop_lamda=5.0, ref_self_check=True)


def test_the_constructors_signature_is_that_of_a_dataclass() -> None:
    parameters = inspect.signature(DPOExtConfig).parameters
    assert parameters.keys() == {field.name for field in dataclasses.fields(DPOExtConfig) if field.init}
    changed = dataclasses.replace(DPOExtConfig("out", bf16=False), loss_type="dpop", dpop_lambda=5.0)
    assert (changed.dpop_lambda, changed.loss_type) == (5.0, ["dpop"])


def test_a_trainer_takes_its_configuration_or_the_defaults_for_its_model(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)  # the default is bf16
    config = runs.config(tmp_path)
    assert DPOExtConfig.for_model(config, tiny.model()) is config
    default = DPOExtConfig.for_model(None, "someone/a-model")
    assert (type(default), default.output_dir, default.loss_type) == (DPOExtConfig, "a-model-DPO", ["sigmoid"])
    with pytest.raises(TypeError, match=r"args must be a DPOExtConfig, got DPOConfig\. It takes the same arguments\."):
        DPOExtConfig.for_model(runs.config(tmp_path, DPOConfig), tiny.model())


def test_the_mixture_follows_the_fields_unless_it_is_kept(tmp_path) -> None:
    config = runs.config(tmp_path, loss_type=["dpop", "trl:hinge"], loss_weights=[1.0, 0.5], dpop_lambda=5.0)
    whole = "1 x dpop(beta=0.1, dpop_lambda=5.0) + 0.5 x trl:hinge"
    with contextlib.suppress(ZeroDivisionError), config.keep_mixture():
        config.loss_type, config.loss_weights = ["hinge"], [0.5]
        with config.keep_mixture():
            assert config.loss_mixture().describe() == whole
        assert config.loss_mixture().describe() == whole
        config.loss_type = []
        assert config.loss_mixture().describe() == whole
        raise ZeroDivisionError
    config.loss_type, config.loss_weights, config.dpop_lambda = ["ipo"], None, None
    assert config.loss_mixture().describe() == "1 x ipo(beta=0.1)"


def test_a_kept_mixture_has_fresh_states_every_time(tmp_path) -> None:
    config = runs.config(tmp_path, loss_type="bco_pair_delta")
    with config.keep_mixture():
        assert config.loss_mixture().terms[0].loss is not config.loss_mixture().terms[0].loss


def test_the_mixture_is_there_while_trls_constructor_runs(tmp_path) -> None:
    seen = []

    class Curious(DPOExtTrainer):
        def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
            seen.append((args.loss_type, args.loss_mixture().describe()))
            return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    runs.trainer(tmp_path, Curious, ref_model=tiny.model(), loss_type=["sigmoid", "trl:hinge"])
    assert seen == [(["hinge"], "1 x sigmoid(beta=0.1) + 1 x trl:hinge")]
