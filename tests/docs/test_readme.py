"""README and docs say what is so, beyond what their blocks do when they run (test_blocks.py)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.docs.blocks import pages
from tests.support.small_recipes import published_config
from trl_dpo_ext.cli.estimate import describe, estimate_flags
from trl_dpo_ext.recipe_registry import get_recipe

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted(pages(), key=lambda page: page.name != "README.md")  # its blocks come first


def blocks(language: str, holding: str = "") -> list[str]:
    """The blocks of README and docs with that text."""
    found = [block for page in PAGES for block in page.blocks]
    return [block.text for block in found if block.language == language and holding in block.text]


def test_a_functional_example_says_what_it_prints() -> None:
    examples = blocks("python", "Pairs.from_logps")
    assert any(len(re.findall(r"^.+?  # (?:-> |tensor)", example, flags=re.MULTILINE)) >= 2 for example in examples)


@pytest.mark.slow
def test_a_variant_of_your_own_is_a_flag_in_help_and_in_the_list() -> None:
    example = blocks("python", "def clipped(")[0]
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
    # In a new process: the flags are made when the configuration is imported.
    done = subprocess.run([sys.executable, "-c", example + use], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1 x clipped(beta=0.1, clipped_at=5.0)", "True True"]


def test_the_ten_line_script_uses_names_that_exist(tmp_path) -> None:
    import trl_dpo_ext

    script = next(block.text for block in PAGES[0].blocks if "load_dataset" in block.text)
    assert len(script.splitlines()) <= 10
    assert {"DPOExtConfig", "DPOExtTrainer"} <= set(trl_dpo_ext.__all__)
    settings = re.search(r"DPOExtConfig\((.*?)\)", script).group(1)
    config = eval(f"trl_dpo_ext.DPOExtConfig({settings}, bf16=False)", {"trl_dpo_ext": trl_dpo_ext})
    assert config.loss_mixture().describe() == "1 x dpop(beta=0.1, dpop_lambda=5.0)"


def test_the_yaml_example_parses() -> None:
    from trl_dpo_ext import DPOExtConfig

    example = blocks("yaml", "sppo_hard: {beta: 0.01}")[0]
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
    (shown,) = (block.splitlines() for language in ("", "text") for block in blocks(language, "MistralForCausalLM"))
    assert len(shown) == len(printed) - 4
    assert set(shown[1:]) <= set(printed)
