"""What is written when the documentation is built: curves, pages of losses, flags, and options."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch

import trl_dpo_ext
from tests.docs.blocks import ROOT
from tools.site import command_line, contents, losses, options, overlay
from tools.site.curves import figures
from tools.site.markdown import escaped, prose, sections
from tools.site.sampling import SETTINGS, Study, held_fixed, sample
from trl_dpo_ext import Pairs, get_loss, list_losses
from trl_dpo_ext.cli.main import COMMANDS
from trl_dpo_ext.config import DPOExtConfig

STUDIES = {variant.name: Study(variant) for variant in losses.losses()}
OF_TWO_SIDES = {"dpop", "kto_pair", "orpo", "sppo_hard", "minor_dpo"}
OF_THE_MARGIN = {"sigmoid", "hinge", "ipo", "simpo", "cauchy", "exo_pair", "beta_dpo", "aot"}


def test_every_loss_is_drawn() -> None:
    assert set(STUDIES) == {variant.name for variant in list_losses()}
    assert [variant for _, _, family in losses.families() for variant in family] == sorted(
        losses.losses(), key=lambda one: (one.function.__module__, one.name)
    )


@pytest.mark.parametrize("name", ["sigmoid", "dpop", "cal_dpo", "simpo"])
def test_a_curve_is_the_registered_loss(name: str) -> None:
    study = STUDIES[name]
    found = study.along_margin(torch.tensor([-8.0, 8.0]))
    ref = [-200.0, -200.0]
    pairs = Pairs.from_logps(
        chosen=torch.tensor([-204.0, -196.0]), rejected=torch.tensor([-196.0, -204.0]),
        ref_chosen=ref, ref_rejected=ref, chosen_lengths=[100, 100], rejected_lengths=[100, 100],
    )  # fmt: skip
    torch.testing.assert_close(found.values.float(), get_loss(name)(pairs, **study.defaults))


@pytest.mark.parametrize("name", ["sigmoid", "dpop", "orpo", "aot", "bco_pair_delta", "d2po", "mallows_dpo"])
def test_a_gradient_is_the_slope_of_the_value(name: str) -> None:
    study, step = STUDIES[name], 1e-3
    chosen, rejected = torch.tensor([3.3], dtype=torch.float64), torch.tensor([-2.1], dtype=torch.float64)

    def total(by: float) -> float:
        found = sample(study.variant, chosen + by, rejected, study.defaults)
        return float(found.values) * (1 if study.variant.order_preserving else 4)

    slope = (total(step) - total(-step)) / (2 * step)
    gradient = float(sample(study.variant, chosen, rejected, study.defaults).by_chosen)
    assert gradient == pytest.approx(slope, rel=2e-2)


@pytest.mark.parametrize("name", sorted(OF_TWO_SIDES | OF_THE_MARGIN))
def test_whether_a_loss_is_of_the_margin_is_decided_by_its_numbers(name: str) -> None:
    assert STUDIES[name].is_of_margin is (name in OF_THE_MARGIN)
    assert str(figures(STUDIES[name])).count("<figure") == (2 if name in OF_THE_MARGIN else 6)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(STUDIES))
def test_every_page_of_a_loss_is_complete(name: str) -> None:
    study = STUDIES[name]
    page = losses.page(study.variant)
    drawn = re.findall(r'data-y="([^"]*)"', page)
    points = {len(values.split()) for values in drawn}
    assert len(drawn) >= 2
    assert points == {len(study.margins)}  # values that are not finite would be left out
    for parameter in study.variant.hyperparameters:
        assert f"`{parameter.name}`" in page
    assert ">>> " in page
    assert page.count("</figure>") in (2, 6)
    assert study.main is None or len({*study.main[1]}) == 3
    assert study.main is None or study.defaults[study.main[0]] in study.main[1] or name in SETTINGS


def test_losses_without_a_hyperparameter_to_vary_are_those_that_have_none() -> None:
    assert {name for name in ("sft", "simper", "sigmoid", "repo") if STUDIES[name].main is None} == {"sft", "simper"}


def test_what_is_held_fixed_is_said() -> None:
    assert "KL per token 0.02 (chosen) and 0.05 (rejected)" in held_fixed(get_loss("tdpo2"))
    assert "score_chosen = 8" in held_fixed(get_loss("odpo"))
    assert any("3 other pairs" in phrase for phrase in held_fixed(get_loss("kto_pair")))
    assert held_fixed(get_loss("hinge")) == ["reverse KL"] * get_loss("hinge").f_divergence


@pytest.mark.slow
def test_the_overlay_has_every_loss() -> None:
    data = overlay.data()
    assert set(data["curves"]) == set(STUDIES)
    assert {len(values) for curves in data["curves"].values() for values in curves.values()} == {len(data["x"])}
    assert data["x"][len(data["x"]) // 2] == 0
    assert set(overlay.START) <= set(STUDIES)


@pytest.mark.slow
def test_every_command_and_every_flag_is_described() -> None:
    text = command_line.flags_as_markdown()
    for name in COMMANDS:
        assert f"## trl-dpo-ext {name}\n" in text
    for flag in ("--verify", "--min_accuracy", "--gpu_memory", "--html_rows", "--copy", "--from", "--plot"):
        assert f"[`{flag}`]" in text, flag


@pytest.mark.slow
def test_every_option_is_described_once() -> None:
    text = options.as_markdown()
    for field in dataclasses.fields(DPOExtConfig):
        if field.init:
            assert text.count(f"{{#option-{field.name}}}") == 1, field.name


def test_every_public_name_is_on_the_page_of_the_api() -> None:
    text = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    described = set(re.findall(r"auto\w+:: (\w+)|py:class:: (\w+)", text))
    assert {first or second for first, second in described} == set(trl_dpo_ext.__all__)


def test_a_part_of_an_unknown_name_is_an_error() -> None:
    assert "## trl-dpo-ext train" in contents.fill("page", "<!-- flags of commands: written when the site is built -->")
    with pytest.raises(ValueError, match="asks for the part 'flag'"):
        contents.fill("page", "<!-- flag: written when the site is built -->")


def test_docstrings_become_markdown() -> None:
    text = sections(
        "Summary.\n\n    a * b\n\nMore `x < y`.\n\nNote:\n    One\n    two.\n\nExample:\n    >>> 1\n    1\n"
    )
    assert text["Note"] == "One\ntwo."
    assert text["Example"] == ">>> 1\n1"
    assert prose(text[""]).split("\n\n")[1] == "```{code-block} text\n:class: formula"
    assert "a * b\n```" in prose(text[""])
    assert escaped("a*b [c] `d*e`") == r"a\*b \[c\] `d*e`"
