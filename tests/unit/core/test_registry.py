"""Finding loss variants, and adding one's own."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from typing import Annotated, Literal

import pytest
import torch

import trl_dpo_ext
from trl_dpo_ext import Beta, Column, Hyper, Need, Pairs, get_loss, list_losses, losses, register_loss
from trl_dpo_ext.core import registry
from trl_dpo_ext.core.verification import GRADES

PAIRS = Pairs.from_logps(chosen=[-12.0], rejected=[-15.0], ref_chosen=[-13.0], ref_rejected=[-14.0])


@pytest.fixture(autouse=True)
def registry_as_it_was(monkeypatch):
    """Whatever a test declares is gone after it."""
    monkeypatch.setattr(registry, "_variants", dict(registry._variants))
    monkeypatch.setattr(registry, "_aliases", dict(registry._aliases))


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_misspelled_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="Unknown loss_type") as error:
        get_loss("sigmod")
    assert str(error.value) == (
        "Unknown loss_type 'sigmod'. Did you mean 'sigmoid'? Run `trl-dpo-ext losses` to list them."
    )


def test_a_name_like_no_other_is_answered_without_a_guess():
    with pytest.raises(ValueError, match=re.escape("Unknown loss_type 'zzzz'. Run `trl-dpo-ext losses` to list them.")):
        get_loss("zzzz")


def test_the_list_is_sorted_and_has_trls_fifteen():
    names = [variant.name for variant in list_losses()]
    assert names == sorted(set(names))
    assert {variant.name for variant in list_losses() if variant.from_trl} == {
        "sigmoid",
        "hinge",
        "ipo",
        "exo_pair",
        "nca_pair",
        "robust",
        "bco_pair",
        "sppo_hard",
        "aot",
        "aot_unpaired",
        "apo_zero",
        "apo_down",
        "discopop",
        "sft",
        "sigmoid_norm",
    }


def test_no_alias_is_also_a_name_or_another_variants_alias():
    names = [name for variant in list_losses() for name in (variant.name, *variant.aliases)]
    assert len(names) == len(set(names))


def test_two_variants_that_share_a_flag_mean_the_same_by_it():
    meanings = {}
    for variant in list_losses():
        for parameter in variant.owned:
            assert meanings.setdefault(parameter.name, parameter) == parameter


def test_the_list_is_filtered_by_need_and_by_verification():
    everything = list_losses()
    free = list_losses(needs_reference=False)
    assert {"simpo", "orpo", "cpo", "sft"} <= {variant.name for variant in free}
    assert not any(variant.needs_reference for variant in free)
    assert sorted([v.name for v in free + list_losses(needs_reference=True)]) == [v.name for v in everything]
    by_grade = {grade: list_losses(verification=grade) for grade in GRADES}
    assert sum(map(len, by_grade.values())) == len(everything)
    assert all(variant.verification == grade for grade, variants in by_grade.items() for variant in variants)
    executed = list_losses(verification={"authors", "framework"})
    assert len(executed) == len(by_grade["authors"]) + len(by_grade["framework"])
    (alone,) = [v for v in list_losses(needs_reference=False, verification="authors") if v.name == "simpo"]
    assert alone is get_loss("simpo")
    with pytest.raises(ValueError, match=r"verification 'memory' is unknown; .*'authors'.*'unverified'"):
        list_losses(verification="memory")


def test_losses_of_lists_are_declared_as_such():
    of_lists = list_losses(reads="lists")
    assert [v.name for v in of_lists] == sorted(
        [
            "infonca",
            "lipo",
            "lipo_normalized",
            "nca",
            "pl",
            "pl_reference_free",
            "qrpo_list",
            "rrhf",
            "sppo_list",
            "top1",
        ]
    )
    assert sorted(v.name for v in of_lists + list_losses(reads="pairs")) == [v.name for v in list_losses()]
    assert all(v.order is None for v in list_losses(reads="pairs"))
    assert {v.name: v.order for v in of_lists if v.order != "scores"} == {
        "pl": "ranks", "pl_reference_free": "ranks", "rrhf": "ranks", "top1": "best",
    }  # fmt: skip
    for variant in of_lists:
        # Scores of pairs are two columns; those of lists come with the lists.
        assert set(variant.columns) == ({"score_chosen", "score_rejected"} if variant.order == "scores" else set())
        assert variant.independent_pairs
        assert not variant.stateful


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"reads": "lists"}, r"order must be one of best, ranks, scores for reads='lists'.*got None"),
        ({"reads": "lists", "order": "score"}, r"order must be one of .* got 'score'"),
        ({"order": "ranks"}, r"order must be .* and unset for pairs; got 'ranks'"),
        ({"reads": "rows"}, r"reads must be 'pairs' or 'lists'; got 'rows'"),
    ],
)
def test_what_a_loss_reads_is_declared_fully(declared, words):
    with pytest.raises(TypeError, match=words):

        @register_loss(paper=None, verification="paper", **declared)
        def unread(p): ...


def test_a_loss_of_lists_keeps_no_state():
    with pytest.raises(TypeError, match="must read pairs"):

        @register_loss(paper=None, verification="paper", needs=Need.STATE, reads="lists", order="best")
        class Remembering:
            def __call__(self, p): ...


def test_a_required_hyperparameter_has_no_default():
    with pytest.raises(TypeError, match=r"warm_tau is required, so its default must be None; got 1\.0"):

        @register_loss(paper=None, verification="paper", reads="lists", order="best")
        def warm(p, *, warm_tau: Annotated[float, Hyper("Temperature.", required=True)] = 1.0): ...


# --- the package's own names ----------------------------------------------------------------------------------------

OURS = [v for v in list_losses() if v.function.__module__.startswith("trl_dpo_ext.")]


def test_every_variant_can_be_imported_by_its_name():
    assert losses.__all__ == sorted(variant.name for variant in OURS)
    for variant in OURS:
        assert getattr(losses, variant.name) is variant.function


def test_an_imported_variant_is_a_function_of_pairs_or_a_class_of_such():
    from trl_dpo_ext.losses import bco_pair_delta, dpop, margin

    assert dpop(PAIRS, beta=0.1, dpop_lambda=5.0).shape == (1,)
    assert callable(margin)
    assert bco_pair_delta()(PAIRS, beta=0.1).shape == (1,)


def test_every_public_name_is_there_and_listed():
    assert set(trl_dpo_ext.__all__) <= set(dir(trl_dpo_ext))
    for name in trl_dpo_ext.__all__:
        assert getattr(trl_dpo_ext, name) is not None
    assert {"DPOExtConfig", "DPOExtTrainer", "load_reference", "InputError", "Beta", "Column"} <= set(
        trl_dpo_ext.__all__
    )
    with pytest.raises(AttributeError, match="has no attribute 'DPOTrainer'"):
        _ = trl_dpo_ext.DPOTrainer


# --- third-party variants -------------------------------------------------------------------------------------------

Scale = Annotated[float, Hyper("How much the margin is scaled.", gt=0)]


def test_a_new_variant_is_found_checked_and_called():
    @register_loss(paper="2501.00001", verification="paper", needs=Need.REFERENCE, aliases=("straight_line",))
    def linear(p: Pairs, *, beta: Beta, linear_scale: Scale = 2.0) -> torch.Tensor:
        """Prefers the chosen side linearly."""
        return -beta * linear_scale * (p.chosen.logratio - p.rejected.logratio)

    variant = get_loss("straight_line")
    assert variant is get_loss("linear")
    assert variant in list_losses()
    assert variant.summary == "Prefers the chosen side linearly."
    assert [parameter.name for parameter in variant.owned] == ["linear_scale"]
    assert variant(PAIRS, beta=0.1).tolist() == pytest.approx([-0.4])
    assert linear(PAIRS, beta=0.1).tolist() == pytest.approx([-0.4])
    with pytest.raises(ValueError, match=re.escape("linear_scale must be > 0 for loss_type 'linear'; got -1.0 (how")):
        variant(PAIRS, beta=0.1, linear_scale=-1.0)


def test_a_class_with_a_running_state_starts_anew_each_time_it_is_made():
    @register_loss(
        paper=None,
        needs=Need.REFERENCE | Need.STATE,
        verification="unverified",
        independent_pairs=False,
        name="counting",
    )
    class Counting:
        """Counts its calls."""

        def __init__(self):
            self.calls = 0

        def __call__(self, p: Pairs, *, counting_scale: Scale = 1.0) -> torch.Tensor:
            self.calls += 1
            return p.chosen.logratio * 0 + self.calls * counting_scale

    loss = get_loss("counting").make()
    assert [loss(PAIRS).item(), loss(PAIRS).item()] == [1.0, 2.0]
    assert get_loss("counting").make()(PAIRS).item() == 1.0
    assert get_loss("counting")(PAIRS, counting_scale=3.0).item() == 3.0


def test_variants_of_a_family_may_share_a_prefix_but_not_disagree():
    @register_loss(paper=None, verification="unverified", prefix="family")
    def elder(p: Pairs, *, family_scale: Scale = 1.0) -> torch.Tensor:
        """The elder."""
        return p.chosen.logps * family_scale

    @register_loss(paper=None, verification="unverified", prefix="family")
    def younger(p: Pairs, *, family_scale: Scale = 1.0) -> torch.Tensor:
        """The younger."""
        return p.chosen.logps * family_scale

    with pytest.raises(ValueError, match="family_scale is declared differently by 'elder' and 'black_sheep'"):

        @register_loss(paper=None, verification="unverified", prefix="family")
        def black_sheep(p: Pairs, *, family_scale: Scale = 2.0) -> torch.Tensor:
            """Another default."""
            return p.chosen.logps * family_scale

    with pytest.raises(ValueError, match="Unknown loss_type 'black_sheep'"):
        get_loss("black_sheep")


def test_choices_whole_numbers_switches_and_optional_numbers_are_checked_by_their_type():
    @register_loss(paper=None, verification="unverified")
    def typed(
        p: Pairs,
        *,
        typed_shape: Annotated[Literal["round", "square"], Hyper("Its shape.")] = "round",
        typed_steps: Annotated[int, Hyper("Its steps.", ge=1)] = 3,
        typed_fast: Annotated[bool, Hyper("Its speed.")] = False,
        typed_limit: Annotated[float | None, Hyper("Its limit.", gt=0)] = None,
    ) -> torch.Tensor:
        """One of each."""
        return p.chosen.logps

    check = get_loss("typed").check
    assert check({"typed_shape": "square", "typed_steps": 1, "typed_fast": True, "typed_limit": None}) == []
    for wrong, allowed in (
        ({"typed_shape": "oval"}, "one of round, square"),
        ({"typed_steps": 1.5}, "an integer"),
        ({"typed_steps": 0}, ">= 1"),
        ({"typed_steps": float("inf")}, ""),
        ({"typed_steps": float("nan")}, ""),
        ({"typed_steps": None}, "set"),
        ({"typed_steps": True}, "a number"),
        ({"typed_fast": 1}, "true or false"),
        ({"typed_limit": 0.0}, "> 0"),
        ({"typed_limit": "1"}, "a number"),
    ):
        (name,) = wrong
        (problem,) = check(wrong)
        assert problem.startswith(f"{name} must be {allowed}"), problem


def declare(function, **declaration):
    return register_loss(**{"paper": None, "verification": "unverified", **declaration})(function)


def test_a_taken_name_is_refused_and_its_owner_named():
    def sigmoid(p: Pairs) -> torch.Tensor:
        """An impostor."""
        return p.chosen.logps

    with pytest.raises(ValueError, match=r"loss_type 'sigmoid' is already declared by trl_dpo_ext\.losses\.logistic"):
        declare(sigmoid)
    with pytest.raises(ValueError, match=r"loss_type 'dpo' is already declared by trl_dpo_ext\.losses\.logistic"):
        declare(sigmoid, name="dpo")
    with pytest.raises(ValueError, match=r"loss_type 'hinge' is already declared by trl_dpo_ext\.losses"):
        declare(sigmoid, name="impostor", aliases=("hinge",))
    with pytest.raises(ValueError, match="Unknown loss_type 'impostor'"):
        get_loss("impostor")
    assert get_loss("sigmoid").function is not sigmoid


def test_a_hyperparameter_that_does_not_carry_its_owners_name_is_refused():
    def tall(p: Pairs, *, scale: Scale = 1.0) -> torch.Tensor:
        """Tall."""
        return p.chosen.logps * scale

    with pytest.raises(TypeError, match="loss variant 'tall': scale must be named tall_<word>"):
        declare(tall)


def test_a_hyperparameter_without_a_description_is_refused():
    def tall(p: Pairs, *, tall_scale: float = 1.0) -> torch.Tensor:
        """Tall."""
        return p.chosen.logps * tall_scale

    with pytest.raises(TypeError, match=r"loss variant 'tall': tall_scale must be annotated as Annotated\[type, Hyper"):
        declare(tall)


def test_an_owned_hyperparameter_without_a_default_is_refused():
    def tall(p: Pairs, *, tall_scale: Scale) -> torch.Tensor:
        """Tall."""
        return p.chosen.logps * tall_scale

    with pytest.raises(TypeError, match="loss variant 'tall': tall_scale needs a default"):
        declare(tall)


def test_a_shared_hyperparameter_with_a_second_default_is_refused():
    def tall(p: Pairs, *, beta: Beta = 0.5) -> torch.Tensor:
        """Tall."""
        return p.chosen.logps * beta

    with pytest.raises(TypeError, match="loss variant 'tall': beta"):
        declare(tall)


def test_a_state_is_for_classes_and_only_for_them():
    def plain(p: Pairs) -> torch.Tensor:
        """Plain."""
        return p.chosen.logps

    class Stateful:
        """Stateful."""

        def __call__(self, p: Pairs) -> torch.Tensor:
            return p.chosen.logps

    with pytest.raises(
        TypeError, match=r"loss variant 'plain': a class must declare Need\.STATE, and a plain function must not"
    ):
        declare(plain, needs=Need.STATE)
    with pytest.raises(TypeError, match=r"loss variant 'Stateful': a class must declare Need\.STATE"):
        declare(Stateful)


def test_how_a_formula_was_verified_must_be_stated():
    def tall(p: Pairs) -> torch.Tensor:
        """Tall."""
        return p.chosen.logps

    with pytest.raises(TypeError, match="loss variant 'tall': verification is missing") as error:
        register_loss(paper=None)(tall)
    for grade in GRADES:
        assert f"'{grade}'" in str(error.value)
    with pytest.raises(TypeError, match=r"loss variant 'tall': verification 'memory' is unknown; .*'unverified'"):
        declare(tall, verification="memory")
    with pytest.raises(ValueError, match="Unknown loss_type 'tall'"):
        get_loss("tall")


def test_a_column_is_declared_as_a_column():
    def tall(p: Pairs) -> torch.Tensor:
        """Tall."""
        return p.columns["height"]

    with pytest.raises(
        TypeError, match=re.escape("loss variant 'tall': columns['height'] must be a Column(help, ...)")
    ):
        declare(tall, columns={"height": Hyper("Height of the pair.")})
    declare(tall, columns={"height": Column("Height of the pair.", ge=0)})
    with pytest.raises(ValueError, match=r"^loss_type 'tall' needs column 'height'"):
        get_loss("tall")(PAIRS)


def test_a_shift_of_the_reference_cancels_where_declared_implied_or_not_read():
    def tall(p: Pairs) -> torch.Tensor:
        """Tall."""
        return p.chosen.logps

    for name, declaration, expected in (
        ("absolute", {"needs": Need.REFERENCE}, False),
        ("declared", {"needs": Need.REFERENCE, "shift_invariant": True}, True),
        ("implied", {"needs": Need.REFERENCE, "f_divergence": True}, True),
        ("without", {}, True),
    ):
        declare(tall, name=name, **declaration)
        assert get_loss(name).shift_invariant is expected


# --- plugins --------------------------------------------------------------------------------------------------------

PLUGIN = """
from trl_dpo_ext import Pairs, register_loss

@register_loss(paper=None, verification="unverified")
def from_afar(p: Pairs):
    "Declared by another package."
    return -p.chosen.logps
"""


@pytest.fixture
def plugins(monkeypatch, tmp_path):
    """Stands for the entry points of installed packages; loads them anew."""
    monkeypatch.syspath_prepend(tmp_path)
    installed = []

    def entry_points(group):
        return [point for point in installed if point.group == group]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    registry._load_plugins.cache_clear()

    def install(module, source, group="trl_dpo_ext.losses"):
        (tmp_path / f"{module}.py").write_text(source)
        installed.append(EntryPoint(name=module, value=module, group=group))

    yield install
    registry._load_plugins.cache_clear()


def test_a_plugin_is_found_through_its_entry_point(plugins):
    plugins("faraway_losses", PLUGIN)
    assert get_loss("from_afar")(PAIRS).tolist() == [12.0]
    assert "from_afar" in [variant.name for variant in list_losses()]


def test_entry_points_of_other_groups_are_left_alone(plugins):
    plugins("unrelated_plugin", "raise RuntimeError('loaded')", group="something.else")
    assert list_losses()


def test_a_broken_plugin_warns_and_the_rest_works(plugins):
    plugins("broken_losses", "raise RuntimeError('out of order')")
    plugins("whole_losses", PLUGIN.replace("from_afar", "from_nearby"))
    with pytest.warns(UserWarning, match=r"Loss plugin 'broken_losses' could not be loaded: .*out of order"):
        variants = list_losses()
    assert {"sigmoid", "from_nearby"} <= {variant.name for variant in variants}


def test_a_plugin_that_takes_our_names_warns_and_ours_stay(plugins):
    plugins("greedy_losses", PLUGIN.replace("from_afar", "sigmoid"))
    ours = get_loss.__globals__["_variants"]["sigmoid"]
    with pytest.warns(UserWarning, match=r"greedy_losses.*already declared"):
        assert get_loss("sigmoid") is ours
