"""An option that is set twice, in two values, stops the command, where the last would win in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import config_file, parse
from trl_dpo_ext.errors import InputError

from .listing import Kind

repeated = Kind("Options that are set twice")


def written(folder: Path, text: str) -> str:
    (folder / "recipe.yaml").write_text(text)
    return str(folder / "recipe.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        repeated.case(
            "a key twice in a YAML file",
            "error with the lines of both",
            "beta: 0.3\nseed: 1\nbeta: 0.7\n",
            r"beta 2 times \(lines 1, 3\)",
        ),
        repeated.case(
            "a key twice in a mapping of a YAML file (`model_init_kwargs`, `dataset_columns`)",
            "the same",
            "model_init_kwargs:\n  dtype: float16\n  dtype: bfloat16\n",
            r"dtype 2 times \(lines 2, 3\)",
        ),
        repeated.case(
            "a hyperparameter twice for one loss",
            "the same",
            "loss_type:\n- sigmoid: {beta: 0.1, beta: 0.2}\n",
            r"beta 2 times \(lines 2, 2\)",
        ),
    ],
)
def test_a_key_may_stand_once(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse("--config", written(tmp_path, text))


def test_a_merged_mapping_may_be_set_again(tmp_path: Path) -> None:
    text = "dataset_columns: &all {prompt: a, chosen: b, rejected: c}\nmodel_init_kwargs: {<<: *all, prompt: d}\n"
    load = parse("--config", written(tmp_path, text)).args.model_init_kwargs
    assert load == {"prompt": "d", "chosen": "b", "rejected": "c"}


@repeated("`--config` twice", "error with both files")
def test_one_file_is_read(tmp_path: Path) -> None:
    file = config_file(tmp_path, beta=0.2)
    with pytest.raises(InputError, match="given 2 times"):
        parse("--config", file, f"--config={file}")


@pytest.mark.parametrize(
    ("option", "name", "values"),
    [
        repeated.case(
            "`--dtype` and another `dtype` in `model_init_kwargs`",
            "error with both values",
            "dtype",
            "dtype",
            ("float16", "bfloat16"),
        ),
        repeated.case(
            "the same of `attn_implementation`",
            "the same",
            "attn_implementation",
            "attn_implementation",
            ("eager", "sdpa"),
        ),
        repeated.case(
            "the same of `model_revision` and `revision`", "the same", "model_revision", "revision", ("main", "v2")
        ),
    ],
)
def test_an_option_and_a_keyword_agree(tmp_path: Path, option: str, name: str, values: tuple[str, str]) -> None:
    one, other = values
    with pytest.raises(InputError, match=f"{option}='{one}' and '{name}': '{other}' in model_init_kwargs contradict"):
        parse("--config", config_file(tmp_path, **{option: one, "model_init_kwargs": {name: other}}))
    with pytest.raises(InputError, match="contradict"):
        parse(f"--{option}", one, "--config", config_file(tmp_path, model_init_kwargs={name: other}))
    parse("--config", config_file(tmp_path, **{option: one, "model_init_kwargs": {name: one}}))
    parse("--config", config_file(tmp_path, model_init_kwargs={name: other}))
