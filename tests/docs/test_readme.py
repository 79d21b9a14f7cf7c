"""The README's code does what the README says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from tests.support.small_recipes import published_config
from trl_dpo_ext.cli.estimate import describe, estimate_flags
from trl_dpo_ext.recipe_registry import get_recipe

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", README, flags=re.MULTILINE | re.DOTALL)
    return ["\n".join(line.removeprefix(indent) for line in text.splitlines()) for indent, text in found]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_functional_example_prints_what_it_says() -> None:
    (example,) = [block for block in blocks("python") if "Pairs.from_logps" in block]
    promises = re.findall(r"^(.+?)  # (tensor.+)$", example, flags=re.MULTILINE)
    assert len(promises) == 2
    printing = re.sub(r"^(.+?)  # tensor.+$", r"print(\1)", example, flags=re.MULTILINE)
    assert run(printing).splitlines() == [promised for _, promised in promises]


def test_a_variant_of_your_own_is_a_flag_in_help_and_in_the_list() -> None:
    (example,) = [block for block in blocks("python") if "@register_loss" in block]
    use = """
from trl_dpo_ext import DPOExtConfig, list_losses
from trl_dpo_ext.cli.arguments import TrainParser
parser = TrainParser()
arguments = parser.parse(
    ["--output_dir", "out", "--use_cpu", "--bf16", "false", "--loss_type", "clipped", "--clipped_at", "5"]
)
print(arguments.args.loss_mixture().describe())
print("--clipped_at" in parser.format_help(), "clipped" in [variant.name for variant in list_losses()])
"""
    assert run(example + use).splitlines() == ["1 x clipped(beta=0.1, clipped_at=5.0)", "True True"]


def test_the_ten_line_script_uses_names_that_exist(tmp_path) -> None:
    import trl_dpo_ext

    (script,) = [block for block in blocks("python") if "load_dataset" in block]
    assert len(script.splitlines()) <= 10
    assert {"DPOExtConfig", "DPOExtTrainer"} <= set(trl_dpo_ext.__all__)
    settings = re.search(r"DPOExtConfig\((.*?)\)", script).group(1)
    config = eval(f"trl_dpo_ext.DPOExtConfig({settings}, bf16=False)", {"trl_dpo_ext": trl_dpo_ext})
    assert config.loss_mixture().describe() == "1 x dpop(beta=0.1, dpop_lambda=5.0)"


def test_the_yaml_example_parses() -> None:
    from trl_dpo_ext import DPOExtConfig

    (example,) = blocks("yaml")
    keys = yaml.safe_load(example)
    config = DPOExtConfig("out", loss_type=keys["loss_type"], loss_weights=keys["loss_weights"], bf16=False)
    assert config.loss_mixture().describe() == "1 x sigmoid(beta=1.0) + 0.5 x sppo_hard(beta=0.01)"


def test_the_worked_numbers_of_introductions_to_dpo() -> None:
    from trl_dpo_ext import Pairs, get_loss, implicit_reward

    chosen, rejected = [-50.0, -45.0, -55.0, -48.0], [-52.0, -48.0, -58.0, -46.0]
    reference = [-51.0, -46.0, -56.0, -49.0]
    pairs = Pairs.from_logps(chosen=chosen, rejected=rejected, ref_chosen=reference, ref_rejected=reference)
    assert round(get_loss("sigmoid")(pairs, beta=0.1).mean().item(), 4) == 0.6262
    rewards = implicit_reward(pairs.chosen.logps, pairs.chosen.ref_logps, beta=0.1)
    torch.testing.assert_close(rewards, torch.full((4,), 0.1))
    alone = Pairs.from_logps(chosen=[-1.0], rejected=[-2.0], ref_chosen=[0.0], ref_rejected=[0.0])
    assert round(get_loss("sigmoid")(alone, beta=1.0).item(), 4) == 0.3133


def test_the_number_of_variants_is_the_number_of_variants() -> None:
    from trl_dpo_ext import list_losses

    executed = list_losses(verification=("authors", "framework"))
    assert f"Of {len(list_losses())} preference losses, **{len(executed)} reproduce published code**" in README


def test_the_estimate_prints_what_is_shown(tmp_path) -> None:
    recipe = get_recipe("zephyr-7b/dpo_full")
    published_config(recipe).save_pretrained(tmp_path)
    printed = describe(estimate_flags(["--config", str(recipe.path)], model_config=str(tmp_path))).splitlines()
    shown = README.split("```\nMistralForCausalLM")[1].split("```")[0].splitlines()
    assert len(shown) == len(printed) - 4
    assert set(shown[1:]) <= set(printed)
