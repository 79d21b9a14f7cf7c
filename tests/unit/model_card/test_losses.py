"""The losses on a card: their numbers, the options that change them, and the papers of what ran."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from trl_dpo_ext import DPOExtConfig, get_loss, list_losses
from trl_dpo_ext.core.mixture import LossMixture, Term
from trl_dpo_ext.model_card.losses import active_options, citations, losses_table, paper_link, shown_losses

ARXIV = "https://arxiv.org/abs"


def shown(**options):
    args = DPOExtConfig(output_dir="out", bf16=False, use_cpu=True, **options)
    return shown_losses(args.loss_mixture(), args), active_options(args)


def test_each_loss_has_its_weight_its_numbers_and_its_paper() -> None:
    losses, _ = shown(loss_type=["dpop", "sft", "trl:hinge"], loss_weights=[1, 0.5, 2], dpop_lambda=5.0, beta=0.3)
    assert losses_table(losses) == [
        "| loss | weight | hyperparameters | paper |",
        "|---|---|---|---|",
        f"| `dpop` | 1 | `beta=0.3` (default 0.1), `dpop_lambda=5` (default 50) | [arXiv:2402.13228]({ARXIV}/2402.13228) |",
        "| `sft` | 0.5 | none | - |",
        f"| `trl:hinge` | 2 | `beta=0.3` (default 0.1) | [arXiv:2309.06657]({ARXIV}/2309.06657) |",
        "",
        *(
            f"- `{label}`: {get_loss(name).summary}"
            for label, name in [("dpop", "dpop"), ("sft", "sft"), ("trl:hinge", "hinge")]
        ),
    ]


def test_hyperparameters_of_one_term_are_its_own() -> None:
    losses, _ = shown(loss_type=["sigmoid:beta=1.0", "sigmoid:beta=0.01"])
    assert [line.split(" | ")[2] for line in losses_table(losses)[2:4]] == [
        "`beta=1` (default 0.1)",
        "`beta=0.01` (default 0.1)",
    ]


@pytest.mark.parametrize("name", [variant.name for variant in list_losses()])
def test_every_variant_has_a_row_and_cites_its_paper(name: str) -> None:
    variant = get_loss(name)
    hyper = {p.name: 0.1 if p.shared else p.default for p in variant.hyperparameters}
    term = Term(variant, 1.0, hyper, name, variant.make())
    losses = shown_losses(LossMixture((term,)), SimpleNamespace())
    row = losses_table(losses)[2]
    assert row.count("|") == 5
    assert f"`{name}`" in row
    cited = "\n".join(citations(losses, {}, None, None))
    assert paper_link(variant.paper) in cited
    assert (cited == "") == (variant.paper is None)


def test_a_loss_of_a_plug_in_without_paper_or_docstring_is_shown_and_cites_nothing() -> None:
    def bare(p):
        return p.margin

    variant = dataclasses.replace(get_loss("sft"), name="mine", function=bare, paper=None, hyperparameters=())
    losses = shown_losses(LossMixture((Term(variant, 1.0, {}, "mine", bare),)), SimpleNamespace())
    assert losses_table(losses)[2:] == ["| `mine` | 1 | none | - |", ""]
    assert citations(losses, {}, "2305.18290", "@inproceedings{}") == []


def test_a_loss_of_trls_that_is_not_declared_here_is_shown_by_name() -> None:
    losses = shown_losses(LossMixture((), ("brand_new",), (0.5,)), SimpleNamespace())
    assert losses_table(losses)[2] == "| `trl:brand_new` | 0.5 | none | - |"


def test_papers_are_cited_once_and_dpos_with_its_bibtex_only_if_it_ran() -> None:
    losses, options = shown(loss_type=["gpo_exp", "gpo_savage", "cdpo", "dpop"])
    cited = citations(losses, options, "2305.18290", "@inproceedings{rafailov}")
    assert cited == [
        f"- `gpo_exp`, `gpo_savage`: [arXiv:2402.05749]({ARXIV}/2402.05749)",
        '- `cdpo`: E. Mitchell, "A note on DPO with noisy preferences and relationship to IPO", 2023, '
        "[ericmitchell.ai/cdpo.pdf](https://ericmitchell.ai/cdpo.pdf)",
        f"- `dpop`: Smaug, [arXiv:2402.13228]({ARXIV}/2402.13228), equation 3",
    ]
    losses, options = shown(loss_type="sigmoid")
    assert citations(losses, options, "2305.18290", "@inproceedings{rafailov}")[-3:] == [
        "```bibtex",
        "@inproceedings{rafailov}",
        "```",
    ]


@pytest.mark.parametrize(
    ("options", "line", "paper"),
    [
        ({"f_divergence_type": "js_divergence"}, "f_divergence_type=js_divergence", "2309.16240"),
        (
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
            "f_divergence_type=alpha_divergence, f_alpha_divergence_coef=0.5",
            "2309.16240",
        ),
        ({"ld_alpha": 0.0}, "ld_alpha=0", "2409.06411"),
        ({"use_weighting": True, "wpo_clamp": True}, "use_weighting=True, wpo_clamp=True", "2406.11827"),
        (
            {"sync_ref_model": True, "ref_model_sync_steps": 4},
            "sync_ref_model=True, ref_model_mixup_alpha=0.6, ref_model_sync_steps=4",
            "2404.09656",
        ),
        ({"weight_column": "weight"}, "weight_column=weight", None),
        ({"reference_free": True}, "reference_free=True", None),
    ],
)
def test_options_that_change_the_loss_are_shown_and_cited(options: dict, line: str, paper: str | None) -> None:
    losses, active = shown(**options)
    assert active == {line: paper}
    cited = citations(losses, active, None, None)
    assert (f"- `{next(iter(options))}`: {paper_link(paper)}" in cited) == (paper is not None)


def test_defaults_are_no_options() -> None:
    assert shown()[1] == {}
