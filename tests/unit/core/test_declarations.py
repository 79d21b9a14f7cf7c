"""Every variant is what it declares itself to be: what it reads, how it is described, and which values it takes."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tests
from tests.golden.cases import default_hyper
from tests.support.batches import GOLDEN, PUBLISHED, hypers_of, make_pairs
from trl_dpo_ext import Need, Pairs, get_loss, list_losses

VARIANTS = list_losses(reads="pairs")
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)

# --- what it reads --------------------------------------------------------------------------------------------------

NEEDS_OF = {
    "ref_logps": Need.REFERENCE,
    "logratio": Need.REFERENCE,
    "score": Need.REFERENCE,
    "margin": Need.REFERENCE,
    "avg_logratio": Need.REFERENCE | Need.LENGTHS,
    "avg_score": Need.REFERENCE | Need.LENGTHS,
    "avg_logps": Need.LENGTHS,
    "lengths": Need.LENGTHS,
    "token_logps": Need.TOKENS,
    "mask": Need.TOKENS,
    "ref_token_logps": Need.TOKEN_REFERENCE,
    "ref_entropy": Need.REF_ENTROPY,
    "token_kl": Need.TOKEN_KL,
    "gather": Need.BATCH,
    "training": Need.STATE,
    "logps": Need.NONE,
}
SCORES = {"score", "avg_score", "margin"}


class Watched:
    """Stands for a Pairs or a Side and writes down what is read."""

    def __init__(self, watched, read):
        self._watched, self._read = watched, read

    def __getattr__(self, name):
        if name in ("chosen", "rejected"):
            return Watched(getattr(self._watched, name), self._read)
        self._read.add(name)
        value = getattr(self._watched, name)
        return WatchedColumns(value, self._read) if name == "columns" else value


class WatchedColumns(Mapping):
    def __init__(self, columns, read):
        self._columns, self._read = columns, read

    def __getitem__(self, name):
        self._read.add(f"column {name}")
        return self._columns[name]

    def __iter__(self):
        return iter(self._columns)

    def __len__(self):
        return len(self._columns)


def what_is_read(variant):
    read = set()
    for hyper in hypers_of(variant):
        variant.make()(Watched(make_pairs(PUBLISHED), read), **hyper)
    return read - {"columns"}


@each_variant
def test_needs_are_exactly_what_is_read(variant):
    needs = Need.NONE
    for name in what_is_read(variant):
        needs |= NEEDS_OF.get(name, Need.NONE)
    if not variant.order_preserving:
        needs |= Need.BATCH  # sorting its own batch is a statistic too
    assert variant.needs == needs


@each_variant
def test_columns_are_exactly_those_that_are_read(variant):
    read = {name.removeprefix("column ") for name in what_is_read(variant) if name.startswith("column ")}
    assert set(variant.columns) == read


@each_variant
def test_an_f_divergence_is_declared_exactly_where_a_score_is_read(variant):
    assert variant.f_divergence == bool(what_is_read(variant) & SCORES)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.f_divergence], ids=lambda variant: variant.name)
def test_a_score_takes_the_place_of_the_log_ratio_everywhere(variant):
    # A loss of the margin alone must not mix scores and log-ratios: with a reference whose log-ratio is the score,
    # nothing changes.
    f_divergence = {"f_divergence_type": "alpha_divergence", "alpha": 0.3}
    scored = make_pairs(PUBLISHED, f_divergence=f_divergence)
    sides = {
        name: replace(side, ref_logps=side.logps - side.score)
        for name, side in (("chosen", scored.chosen), ("rejected", scored.rejected))
    }
    for hyper in hypers_of(variant):
        torch.testing.assert_close(
            variant.make()(scored, **hyper), variant.make()(replace(scored, **sides), **hyper), rtol=1e-9, atol=1e-12
        )


@each_variant
def test_a_need_that_is_not_met_is_named(variant):
    words = {
        Need.REFERENCE: "reference log-probs",
        Need.LENGTHS: "completion lengths",
        Need.TOKENS: "log-probs per token",
        Need.TOKEN_REFERENCE: "reference log-probs per token",
        Need.REF_ENTROPY: "the reference's entropy",
        Need.TOKEN_KL: "the divergence of every token",
    }
    bare = Pairs.from_logps(chosen=[-1.0, -2.0], rejected=[-2.0, -3.0])
    expected = [word for need, word in words.items() if need in variant.needs] + [f"'{c}'" for c in variant.columns]
    if not expected:
        assert variant(bare, **default_hyper(variant.name)).isfinite().all()
        return
    with pytest.raises(ValueError, match=rf"^loss_type '{variant.name}' needs ") as error:
        variant(bare, **default_hyper(variant.name))
    for word in expected:
        assert word in str(error.value)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if not v.needs_reference], ids=lambda v: v.name)
def test_a_loss_without_a_reference_has_a_reward_of_its_own(variant):
    for hyper in hypers_of(variant):
        pairs = make_pairs(PUBLISHED)
        read = set()
        assert variant.reward is not None
        given = {parameter.name: parameter.default for parameter in variant.owned} | hyper
        for side in (pairs.chosen, pairs.rejected):
            reward = variant.reward(Watched(side, read), **given)
            assert reward.shape == (4,)
            assert reward.isfinite().all()
        assert not any(NEEDS_OF[name].of_reference for name in read)


# --- how it is described --------------------------------------------------------------------------------------------


@each_variant
def test_the_docstring_has_a_summary_a_formula_the_shape_and_an_example(variant):
    assert re.fullmatch(r"\S.{20,}\.", variant.summary), variant.summary
    body = variant.doc.split("\n", 1)[1]
    before_returns = body.split("Returns:")[0]
    assert re.search(r"^ {4}\S", before_returns, re.MULTILINE), "a formula, indented"
    assert re.search(r"^Returns:\n +\S.*(\(pairs,\)|\n.*\(pairs,\))", body, re.MULTILINE)
    assert f'get_loss("{variant.name}")' in body.split("Example:")[1]


@each_variant
def test_citations_stand_under_their_own_heading(variant):
    # "Reference" is the reference model here, and nothing else.
    assert "Reference:" not in variant.doc
    if variant.paper is None:
        return
    (cited,) = re.findall(r"^References:\n((?: {4}.+\n?)+)", variant.doc, re.MULTILINE)
    assert variant.paper in cited or variant.paper.startswith("https://")


FAMILIES = sorted(
    {variant.function.__module__ for variant in list_losses() if variant.function.__module__.startswith("trl_")}
)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_says_where_it_is_tested(family):
    module = sys.modules[family]
    (folder,) = re.findall(r"tests/unit/losses", module.__doc__)
    named = set(re.findall(r"test_\w+\.py", module.__doc__))
    variants = [variant for variant in list_losses() if variant.function.__module__ == family]
    (kind,) = {"" if variant.reads == "pairs" else "list_" for variant in variants}
    of_every = {f"test_{kind}{claim}.py" for claim in ("golden", "gradients", "properties")}
    assert of_every < named
    names = [variant.name for variant in variants]
    for file in named - of_every:
        text = (Path(tests.__file__).parent / Path(folder).relative_to("tests") / file).read_text()
        assert any(f'"{name}"' in text for name in names), f"{file} names none of {', '.join(names)}"


@each_variant
def test_the_paper_is_an_arxiv_id_or_an_address(variant):
    if variant.paper is None:
        assert variant.name in {"sft", "margin"}  # older than this field, or nobody's
    else:
        assert re.fullmatch(r"\d{4}\.\d{5}|https://\S+", variant.paper)
    if variant.paper and "arXiv" in variant.doc:
        assert variant.paper in variant.doc


@each_variant
def test_a_formula_that_was_not_checked_against_code_says_so(variant):
    if variant.verification in ("third_party", "unverified"):
        assert "Note:" in variant.doc
        assert re.search(r"[Cc]hecked|memory|recipe", variant.doc.split("Note:")[1])


@each_variant
def test_aliases_lead_to_the_variant(variant):
    for alias in variant.aliases:
        assert get_loss(alias) is variant


# --- which values it takes ------------------------------------------------------------------------------------------

# From the papers: the first value beyond the range.
OUT_OF_RANGE = [
    ("sigmoid", "beta", 0.0, "> 0"),
    ("simpo", "simpo_beta", 0.0, "> 0"),
    ("cal_dpo", "cal_dpo_beta", -0.1, "> 0"),
    ("sppo", "sppo_beta", 0.0, "> 0"),
    ("cdpo", "label_smoothing", 0.5, "< 0.5"),
    ("cdpo", "label_smoothing", -0.1, ">= 0"),
    ("robust", "label_smoothing", 0.6, "< 0.5"),
    ("exo_pair", "label_smoothing", 0.0, "> 0"),
    ("aot", "label_smoothing", 0.5, "< 0.5"),
    ("simpo", "simpo_label_smoothing", 0.5, "< 0.5"),
    ("discopop", "discopop_tau", 0.0, "> 0"),
    ("dpop", "dpop_lambda", -1.0, ">= 0"),
    ("rdpo", "rdpo_alpha", -0.01, ">= 0"),
    ("odpo", "odpo_alpha", -1.0, ">= 0"),
    ("orpo", "orpo_lambda", 0.0, "> 0"),
    ("cpo", "cpo_alpha", -1.0, ">= 0"),
    ("slic_hf", "slic_hf_delta", 0.0, "> 0"),
    ("dpo_nll", "dpo_nll_weight", -1.0, ">= 0"),
    ("bdpo", "bdpo_lambda", 0.0, "> 0"),
    ("bdpo", "bdpo_lambda", 1.1, "<= 1"),
    ("ropo", "ropo_alpha", 0.0, "> 0"),
    ("focalpo", "focalpo_gamma", -0.1, ">= 0"),
    ("chipo", "chipo_clip", 0.0, "> 0"),
    ("dr_dpo", "dr_dpo_beta", 0.0, "> 0"),
    ("kldpo", "kldpo_tau", 0.0, "> 0"),
    ("beta_dpo", "beta_dpo_rho", 1.0, "< 1"),
    ("gamma_po", "gamma_po_tau", 0.0, "> 0"),
    ("mallows_dpo", "mallows_dpo_mean", 0.0, "> 0"),
    ("rainbowpo", "rainbowpo_alpha", 1.1, "<= 1"),
    ("tdpo2", "tdpo2_alpha", -0.1, ">= 0"),
    ("d2po", "d2po_gamma", 0.0, "> 0"),
    ("d2po", "d2po_gamma", 1.1, "<= 1"),
    ("unlikelihood", "unlikelihood_alpha", 1.1, "<= 1"),
    ("qrpo", "qrpo_beta", 0.0, "> 0"),
    ("uni_dpo", "uni_dpo_gamma", -1.0, ">= 0"),
    ("confpo", "confpo_beta", 0.0, "> 0"),
    ("amapo", "amapo_label_smoothing", 0.5, "< 0.5"),
    ("sympo", "sympo_clip", -1.0, ">= 0"),
    ("centered", "beta", -0.1, ">= 0"),
]


@pytest.mark.parametrize(("name", "hyper", "value", "bound"), OUT_OF_RANGE)
def test_a_value_out_of_the_papers_range_is_refused(name, hyper, value, bound):
    variant = get_loss(name)
    with pytest.raises(ValueError, match=re.escape(f"{hyper} must be {bound} for loss_type '{name}'; got {value!r} (")):
        variant(make_pairs(PUBLISHED), **{**default_hyper(name), hyper: value})


# And values that are well within it.
IN_RANGE = [
    ("sigmoid", "beta", 0.01),
    ("sigmoid_norm", "beta", 5.0),
    ("exo_pair", "label_smoothing", 0.49),
    ("cdpo", "label_smoothing", 0.0),
    ("cdpo", "label_smoothing", 0.49),
    ("discopop", "discopop_tau", 0.01),
    ("soft_dpo", "soft_dpo_eta", 0.3),
    ("simpo", "simpo_beta", 0.1),
    ("simpo", "simpo_gamma", 0.0),
    ("alphapo", "alphapo_beta", 0.5),
    ("alphapo", "alphapo_alpha", -1.0),
    ("sppo", "sppo_beta", 1e-4),
    ("cal_dpo", "cal_dpo_beta", 1e-4),
    ("dpop", "dpop_lambda", 0.0),
    ("orpo", "orpo_lambda", 0.01),
    ("slic_hf", "slic_hf_delta", 0.1),
    ("bdpo", "bdpo_lambda", 1.0),
    ("dpo_shift", "dpo_shift_lambda", 0.55),
    ("hdpo", "hdpo_alpha", 1.25),
    ("chipo", "chipo_clip", 0.1),
    ("focalpo", "focalpo_gamma", 0.0),
    ("dr_dpo", "dr_dpo_beta", 0.1),
    ("kldpo", "kldpo_tau", 0.01),
    ("beta_dpo", "beta_dpo_rho", 0.0),
    ("gamma_po", "gamma_po_beta", 0.5),
    ("gamma_po", "gamma_po_ratio", 0.0),
    ("gamma_po", "gamma_po_tau", 0.5),
    ("alpha_dpo", "alpha_dpo_beta", 0.5),
    ("qrpo", "qrpo_beta", 3e-4),
    ("uni_dpo", "uni_dpo_beta", 10.0),
    ("confpo", "confpo_gamma", 0.0),
    ("amapo", "amapo_beta", 3.0),
    ("sympo", "sympo_clip", 0.0),
    ("centered", "beta", 0.0),
]


@pytest.mark.parametrize(("name", "hyper", "value"), IN_RANGE)
def test_a_value_within_the_papers_range_is_taken(name, hyper, value):
    variant = get_loss(name)
    assert variant(make_pairs(PUBLISHED), **{**default_hyper(name), hyper: value}).isfinite().all()


@each_variant
def test_every_declared_bound_is_held(variant):
    for parameter in variant.hyperparameters:
        hyper = parameter.hyper
        below = None if hyper.ge is None else hyper.ge - 1
        above = None if hyper.le is None else hyper.le + 1
        beyond = {">": hyper.gt, ">=": below, "<": hyper.lt, "<=": above}
        for sign, value in beyond.items():
            if value is None:
                continue
            (problem,) = variant.check({**default_hyper(variant.name), parameter.name: value})
            assert problem.startswith(f"{parameter.name} must be {sign} "), problem
            assert f"for loss_type '{variant.name}'; got {value!r} (" in problem


@each_variant
def test_what_is_no_number_and_no_choice_is_refused(variant):
    for parameter in variant.hyperparameters:
        wrong = ["nearly"] if parameter.choices else ["0.1", float("nan"), float("inf")]
        for value in wrong:
            (problem,) = variant.check({**default_hyper(variant.name), parameter.name: value})
            assert problem.startswith(f"{parameter.name} must be ")


@each_variant
def test_defaults_and_golden_hyperparameters_are_in_range(variant):
    assert variant.check(default_hyper(variant.name)) == []
    assert variant.check({p.name: p.default for p in variant.owned} | default_hyper(variant.name)) == []
    for case in GOLDEN["cases"][variant.name]:
        assert variant.check(case["hyper"]) == []


def test_the_message_says_what_where_got_and_what_it_means():
    with pytest.raises(ValueError, match="label_smoothing") as error:
        get_loss("robust")(make_pairs(PUBLISHED), beta=0.1, label_smoothing=0.6)
    assert str(error.value) == (
        "label_smoothing must be < 0.5 for loss_type 'robust'; got 0.6 (probability that a preference label is "
        "flipped)."
    )


def test_every_problem_is_reported_at_once():
    with pytest.raises(ValueError, match="beta must be > 0") as error:
        get_loss("robust")(make_pairs(PUBLISHED), beta=0.0, label_smoothing=0.6)
    assert "label_smoothing must be < 0.5" in str(error.value)


def test_a_shared_hyperparameter_has_no_second_default():
    with pytest.raises(ValueError, match=r"^loss_type 'sigmoid' needs beta\. Pass it by keyword\.$"):
        get_loss("sigmoid")(make_pairs(PUBLISHED))


def test_an_unknown_hyperparameter_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="has no hyperparameter") as error:
        get_loss("dpop")(make_pairs(PUBLISHED), beta=0.1, lam=5.0)
    assert str(error.value) == "loss_type 'dpop' has no hyperparameter 'lam'; it has beta, dpop_lambda. Remove it."


def test_two_words_for_one_margin_exclude_one_another():
    with pytest.raises(ValueError, match="simpo_gamma"):
        get_loss("simpo")(make_pairs(PUBLISHED), simpo_gamma=0.5, simpo_gamma_beta_ratio=0.25)


@pytest.mark.parametrize(
    ("loss", "hyper", "words"),
    [
        ("qrpo", {"qrpo_beta": 0.0}, "(QRPO's beta"),
        ("sppo", {"sppo_beta": 0.0}, "(SPPO's beta"),
        ("simpo", {"simpo_beta": 0.0}, "(scale of the mean"),
        ("bdpo", {"beta": 0.1, "bdpo_lambda": 2.0}, "(weight of the policy"),
    ],
)
def test_a_meaning_within_a_sentence_keeps_its_acronyms(loss, hyper, words):
    (problem,) = get_loss(loss).check(hyper)
    assert words in problem
