"""The tables show what is declared, and how each formula was verified."""

from __future__ import annotations

import json
import re

import pytest

from trl_dpo_ext import get_loss, list_losses
from trl_dpo_ext.core.verification import GRADES
from trl_dpo_ext.losses import tables

each_variant = pytest.mark.parametrize("variant", list_losses(), ids=lambda variant: variant.name)


@each_variant
def test_every_form_says_how_a_variant_was_verified(variant):
    assert f"verification: {variant.verification} ({GRADES[variant.verification]})" in tables.describe(variant.name)
    (row,) = [line for line in tables.as_text().splitlines() if line.split()[:1] == [variant.name]]
    assert row.split()[1] == variant.verification
    marks = {"authors": "", "framework": "", "paper": " ¹", "third_party": " ²", "unverified": " ³"}
    assert f"| `{variant.name}`{marks[variant.verification]} |" in tables.as_markdown()
    assert tables.record(variant)["verification"] == variant.verification


@each_variant
def test_one_variant_in_full_says_what_a_batch_and_weights_mean_for_it(variant):
    text = tables.describe(variant.name)
    assert ("gradient accumulation does not enlarge it" in text) == (not variant.independent_pairs)
    assert ("cannot be weighted by pair" in text) == (not variant.order_preserving)


def test_experimental_variants_are_listed_apart():
    for text in (tables.as_text(), tables.as_markdown()):
        known, experimental = text.split("Experimental, ")
        for variant in list_losses():
            assert (re.search(rf"(?m)^(\| `)?{variant.name}\b", experimental) is not None) == variant.experimental
            assert (re.search(rf"(?m)^(\| `)?{variant.name}\b", known) is None) == variant.experimental


def test_those_are_experimental_whose_primary_code_nobody_found():
    third_party = {"bdpo", "chipo", "focalpo", "gpo_exp", "gpo_savage", "gpo_truncquad", "hdpo", "minor_dpo"}
    assert {variant.name for variant in list_losses() if variant.experimental} == third_party
    assert [variant.name for variant in list_losses(verification="paper")] == ["mappo"]


def test_json_holds_every_variant_with_its_declaration():
    records = {record["name"]: record for record in json.loads(tables.as_json())}
    assert list(records) == [variant.name for variant in list_losses()]
    sorts = records["aot"]
    assert (sorts["independent_pairs"], sorts["order_preserving"], sorts["shift_invariant"]) == (False, False, True)
    assert records["tdpo2"]["needs"] == ["reference", "KL per token"]
    assert records["d2po"]["needs"] == ["tokens", "reference per token"]


def test_the_counts_are_those_of_the_registry():
    text = tables.counts_as_markdown()
    count = {grade: len(list_losses(verification=grade)) for grade in GRADES}
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    executed = count["authors"] + count["framework"]
    assert numbers == [len(list_losses()), executed, *(count[grade] for grade in GRADES if count[grade])]
    assert "code (¹)" in text
    assert "sources (²)" in text


def test_a_variant_that_nobody_verified_is_not_shown_as_the_authors():
    text = tables.describe("hdpo")
    assert get_loss("hdpo").verification == "third_party"
    assert "verification: third_party (from third-party sources only)" in text
    assert "equal to" not in text
