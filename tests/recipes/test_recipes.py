"""Every recipe on disk: its keys, its header, and a training run of its smallest form in this process."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import trl_dpo_ext.recipe_registry as recipe_registry
from tests.support.small_recipes import published_adapter, published_config, small_flags
from trl_dpo_ext.cli import main as cli
from trl_dpo_ext.cli.estimate import estimate_flags
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.estimate.formulas import GIB, Reference, estimate
from trl_dpo_ext.estimate.search import EstimateReport
from trl_dpo_ext.reports.run_log import read_run

ROOT = Path(__file__).parents[2]
RECIPES = recipe_registry.list_recipes()
ON_GPUS = [recipe for recipe in RECIPES if recipe.accelerate != "cpu"]


def by_name(recipe: recipe_registry.Recipe) -> str:
    return recipe.name


def estimated(recipe: recipe_registry.Recipe, folder: Path) -> EstimateReport:
    published_config(recipe).save_pretrained(folder)
    flags = ["--config", str(recipe.path), *published_adapter(recipe, folder / "adapter")]
    return estimate_flags(flags, model_config=str(folder / "config.json"))


def test_the_list_is_what_is_on_disk() -> None:
    files = {file for file in (ROOT / "recipes").glob("*/*") if file.parent.name != "accelerate"}
    assert {recipe.path for recipe in RECIPES} == files
    assert len(RECIPES) == 33


@pytest.mark.parametrize("recipe", RECIPES, ids=by_name)
def test_the_header_says_all_that_it_should(recipe: recipe_registry.Recipe) -> None:
    assert list(recipe.header) == [h for h in recipe_registry.HEADINGS if h in recipe.header]
    assert set(recipe_registry.REQUIRED) <= set(recipe.header)
    assert recipe.title.endswith(".")
    assert recipe.accelerate in recipe_registry.accelerate_configs()
    launch = recipe.header["Launch"]
    assert f"recipes/{recipe.name}.yaml" in launch
    assert "-m trl_dpo_ext train" in launch
    text = recipe.path.read_text()
    assert max(map(len, text.splitlines())) <= 125
    keys = [line.split(":")[0] for line in text.splitlines() if re.match(r"\w+:", line)]
    assert len(keys) == len(set(keys))  # YAML takes the last of two in silence


@pytest.mark.parametrize("recipe", ON_GPUS, ids=by_name)
def test_the_headers_numbers_are_computed_ones_and_no_pitfall_is_found(
    tmp_path, recipe: recipe_registry.Recipe
) -> None:
    found = estimated(recipe, tmp_path)
    assert found.warnings == ()
    own = found.candidates[0]
    assert own.chosen
    assert recipe.header["Memory"].startswith(f"{own.memory.total / GIB:.0f} GiB per GPU, estimated")
    keys = yaml.safe_load(recipe.path.read_text())
    counts = [keys["per_device_train_batch_size"], keys["gradient_accumulation_steps"]]
    assert recipe.pairs_per_step == found.pairs_per_step == counts[0] * counts[1] * own.strategy.processes
    assert f"({counts[0]} per GPU x {counts[1]} accumulated" in recipe.header["Batch"]
    assert re.split(";", recipe.header["First step"])[0] == f"loss = {found.expected_initial_loss}"
    machines, per_machine, card = re.fullmatch(
        r"(?:(\d+) machines x )?(\d+) x (\d+) GB", recipe.header["Hardware"]
    ).groups()  # type: ignore[union-attr]
    assert int(machines or 1) * int(per_machine) == own.strategy.processes
    assert own.strategy.machines == int(machines or 1)
    assert own.memory.fits(int(card))
    saving = re.match(r"(\d+) GiB per GPU", recipe.header.get("Saves", ""))
    if saving:
        loaded = replace(found.training, reference=Reference("loaded", found.training.dtype))
        saved = estimate(found.size, loaded, own.strategy).total - own.memory.total
        assert f"{saved / GIB:.0f}" == saving[1]
    else:
        assert found.training.reference.kind not in ("stored", "none")


@pytest.mark.parametrize("recipe", RECIPES, ids=by_name)
def test_a_recipe_trains_in_small(tmp_path, recipe: recipe_registry.Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitsandbytes.nn.modules as layers

    monkeypatch.setattr(layers, "has_avx512bf16", lambda: False)
    # in float32, so that the first loss is exact
    flags = small_flags(recipe, tmp_path, use_cpu="true", bf16="false", dtype="float32", ignore_pitfalls="other_batch")
    assert cli.main(["train", *flags]) == 0
    run = read_run(tmp_path / "out")
    assert len(run.train) == 2
    expected = re.match(r"loss = ([\d.]+)(?: \+ ([\d.]+) x loss/sft)?", recipe.header["First step"])
    if expected:
        likelihood = float(expected[2]) * run.train[0]["loss/sft"] if expected[2] else 0.0
        assert run.train[0]["loss"] == pytest.approx(float(expected[1]) + likelihood, abs=2e-4)
    else:
        assert run.train[0]["loss"] > 0
    assert run.train[1]["grad_norm"] > 0


def test_recipes_are_listed_shown_and_copied(tmp_path, capsys) -> None:
    assert cli.main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()[1:]] == [recipe.name for recipe in RECIPES]
    assert cli.main(["recipes", "zephyr-7b/dpo_full"]) == 0
    assert "learning_rate: 5.0e-7" in capsys.readouterr().out
    assert cli.main(["recipes", "zephyr-7b/dpo_full", "--copy", str(tmp_path / "mine")]) == 0
    printed = capsys.readouterr().out
    copies = {file.name for file in (tmp_path / "mine").iterdir()}
    assert copies == {"zephyr-7b-dpo_full.yaml", "zero3.yaml", "trl_dpo_ext.schema.json"}
    assert f"--config_file {tmp_path / 'mine' / 'zero3.yaml'}" in printed
    copy = recipe_registry.read_recipe(tmp_path / "mine" / "zephyr-7b-dpo_full.yaml")
    assert "recipes/" not in copy.header["Launch"]
    assert yaml.safe_load(copy.path.read_text()) == yaml.safe_load(
        recipe_registry.get_recipe("zephyr-7b/dpo_full").path.read_text()
    )
    assert cli.main(["recipes", "zephyr-7b/dpo_full", "--copy", str(tmp_path / "mine")]) == 2
    assert "already exists" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert cli.main(["recipes", "zephyr-7b/dpo_full", "--copy", str(tmp_path / "file")]) == 2
    assert f"Cannot copy zephyr-7b/dpo_full to {tmp_path / 'file'}: File exists." in capsys.readouterr().err


def test_a_recipe_for_several_machines_is_copied_with_its_scripts(tmp_path) -> None:
    files = recipe_registry.copy_recipe("tulu3-70b/dpo_norm_full", tmp_path / "mine")
    names = {file.name for file in files}
    assert names == {"tulu3-70b-dpo_norm_full.yaml", "zero3.yaml", "multi_node.sh", "multi_node.slurm"} | {
        "trl_dpo_ext.schema.json"
    }
    assert not any("recipes/accelerate" in file.read_text() for file in files)
    assert os.access(tmp_path / "mine" / "multi_node.sh", os.X_OK)
    assert f"exec bash {tmp_path / 'mine' / 'multi_node.sh'} " in (tmp_path / "mine" / "multi_node.slurm").read_text()


def test_a_recipe_that_is_not_there_is_answered_with_the_nearest(capsys) -> None:
    assert cli.main(["recipes", "zephyr-7b/dpo_ful"]) == 2
    assert "Did you mean zephyr-7b/dpo_full?" in capsys.readouterr().err
    assert cli.main(["estimate", "--config", "zephyr-7b/dpo_ful"]) == 2
    assert "Did you mean zephyr-7b/dpo_full?" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["zephyr-7b/dpo_full", "zephyr-7b/dpo_full.yaml", "recipes/zephyr-7b/dpo_full.yaml"])
def test_a_recipe_is_found_from_anywhere(given: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe_registry.find_config(given) == ROOT / "recipes" / "zephyr-7b" / "dpo_full.yaml"
    mine = tmp_path / "mine" / "run.yaml"
    assert recipe_registry.find_config("mine/run.yaml") == mine.relative_to(tmp_path)  # there or not, it is a path


def test_recipes_are_found_in_the_installed_package(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "trl_dpo_ext"
    shutil.copytree(ROOT / "recipes", package / "recipes")
    monkeypatch.setattr(recipe_registry, "__file__", str(package / "recipe_registry.py"))
    assert recipe_registry.recipes_folder() == package / "recipes"
    assert [recipe.name for recipe in recipe_registry.list_recipes()] == [recipe.name for recipe in RECIPES]
    shutil.rmtree(package / "recipes")
    with pytest.raises(InputError, match="Reinstall trl-dpo-ext"):
        recipe_registry.recipes_folder()


def test_the_estimate_takes_the_name_of_a_recipe(tmp_path, capsys) -> None:
    recipe = recipe_registry.get_recipe("tulu3-70b/dpo_norm_full")
    published_config(recipe).save_pretrained(tmp_path)
    assert cli.main(["estimate", "--config", recipe.name, "--model_config", str(tmp_path), "--gpus", "32"]) == 0
    printed = capsys.readouterr().out
    assert "zero3 x 32 (chosen)" in printed
    assert "Set gradient_accumulation_steps: 4 to match the recipe." in printed


def test_headers_are_read_line_by_line(tmp_path) -> None:
    file = tmp_path / "model" / "run.yaml"
    file.parent.mkdir()
    file.write_text(
        "# A title.\n#\n# Source       here\n#              and there\n# Batch        12 pairs per step\n\nbeta: 1\n"
    )
    recipe = recipe_registry.read_recipe(file)
    assert (recipe.name, recipe.title, recipe.pairs_per_step) == ("model/run", "A title.", 12)
    assert json.dumps(dict(recipe.header)) == json.dumps({"Source": "here\nand there", "Batch": "12 pairs per step"})
