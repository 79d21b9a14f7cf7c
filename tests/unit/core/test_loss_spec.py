"""A loss of a mixture and its own hyperparameters, however they are written."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest

from trl_dpo_ext import InputError
from trl_dpo_ext.core.loss_spec import LossSpec
from trl_dpo_ext.core.mixture import LossMixture
from trl_dpo_ext.core.mixture_parser import MixtureParser

SHARED = {"beta": 0.1, "label_smoothing": 0.0, "discopop_tau": 0.05}


def mixture(*entries: Any) -> LossMixture:
    parser = MixtureParser([LossSpec.of(entry) for entry in entries], None, SHARED, SHARED)
    found = parser.parse()
    assert found is not None, parser.problems
    return found


@pytest.mark.parametrize(
    ("entry", "text", "name", "hyper"),
    [
        ("dpop", "dpop", "dpop", {}),
        ("cdpo:beta=1.0,label_smoothing=0.1", "cdpo:beta=1.0,label_smoothing=0.1", "cdpo", {"beta": "1.0", "label_smoothing": "0.1"}),
        ({"sigmoid": {"beta": 1.0}}, "sigmoid:beta=1.0", "sigmoid", {"beta": 1.0}),
        ({"sigmoid": {}}, "sigmoid", "sigmoid", {}),
        ({"sigmoid": None}, "sigmoid", "sigmoid", {}),
        ("trl:hinge", "trl:hinge", "trl:hinge", {}),
    ],
    ids=str,
)  # fmt: skip
def test_a_spec_is_its_text_and_keeps_its_parts(entry, text, name, hyper):
    spec = LossSpec.of(entry)
    assert (spec, spec.name, spec.hyper, spec.malformed) == (text, name, hyper, [])
    assert json.dumps([spec]) == json.dumps([text])
    for copied in (copy.deepcopy(spec), pickle.loads(pickle.dumps(spec)), LossSpec(spec), LossSpec.of(spec)):
        assert (copied, copied.name, copied.hyper) == (text, name, hyper)


def test_the_value_of_a_mapping_is_never_printed_and_read_again():
    class Exact(float):
        def __format__(self, spec: str) -> str:
            return "0.0"

    (term,) = mixture({"sigmoid": {"beta": Exact(0.3)}}).terms
    assert term.hyper["beta"] == 0.3


@pytest.mark.parametrize(
    ("entry", "name", "value"),
    [
        ({"sigmoid": {"beta": 1}}, "beta", 1.0),
        ({"sppo": {"beta": "1e-3"}}, "sppo_beta", 1e-3),  # YAML reads 1e-3 as text
        ({"dpop": {"lambda": 5.0}}, "dpop_lambda", 5.0),
        ({"arpo": {"detach": True}}, "arpo_detach", True),
        ("arpo:detach=true", "arpo_detach", True),
        ({"chipo": {"clip": None}}, "chipo_clip", None),
        ("chipo:clip=none", "chipo_clip", None),
        ({"bpo": {"link": "logistic"}}, "bpo_link", "logistic"),
    ],
    ids=str,
)
def test_values_have_the_type_of_their_parameter(entry, name, value):
    (term,) = mixture(entry).terms
    assert term.hyper[name] == value
    assert type(term.hyper[name]) is type(value)


def test_a_mixture_is_read_from_plain_strings_too():
    parser = MixtureParser(["sigmoid:beta=0.5", "sigmoid"], [1.0, 2.0], SHARED, SHARED)
    found = parser.parse()
    assert found is not None
    assert [term.label for term in found.terms] == ["sigmoid:beta=0.5", "sigmoid"]
    assert [type(term.label) for term in found.terms] == [str, str]  # they are keys of a checkpoint


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"sigmoid": {"gamma": 1}}, "'gamma=1' in loss_type 'sigmoid:gamma=1': write name=value; sigmoid has beta."),
        ("sigmoid:beta", "'beta' in loss_type 'sigmoid:beta': write name=value; sigmoid has beta."),
        ({"sigmoid": {"beta": "high"}}, "beta must be a number for loss_type 'sigmoid'; got 'high'"),
        ({"sigmoid": {"beta": True}}, "beta must be a number for loss_type 'sigmoid'; got True"),
    ],
    ids=str,
)
def test_a_wrong_assignment_is_named(entry, problem):
    parser = MixtureParser([LossSpec.of(entry)], None, SHARED, SHARED)
    assert parser.parse() is None
    (found,) = parser.problems
    assert found.startswith(problem)


@pytest.mark.parametrize("entry", [3, None, ["sigmoid"], {"a": {}, "b": {}}, {"sigmoid": 0.1}], ids=str)
def test_what_is_no_spec_is_refused(entry):
    with pytest.raises(InputError, match=r"must be a name, 'name:beta=1\.0', or a mapping"):
        LossSpec.of(entry)
