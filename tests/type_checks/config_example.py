"""What type checkers see of the configuration. `make check` runs pyright on this file; nothing executes it.

Each ignore comment stands for an error that has to be found: pyright refuses one that is not needed.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true
from __future__ import annotations

from typing import assert_type

from trl_dpo_ext import DPOExtConfig


def known_options() -> None:
    config = DPOExtConfig(output_dir="x", loss_type="dpop", dpop_lambda=5.0)
    assert_type(config, DPOExtConfig)
    assert_type(config.loss_type, list[str])
    assert_type(config.dpop_lambda, float | None)
    assert_type(config.share_prompt, bool)
    DPOExtConfig("x", loss_type=["dpop", {"sigmoid": {"beta": 1.0}}], loss_weights=[1.0, 0.5], learning_rate=5e-7)
    DPOExtConfig("x", ref_quantization="nf4", ref_store="refs", share_prompt=True, ignore_pitfalls=["small_beta"])
    assert_type(DPOExtConfig("x", dataset_columns={"prompt": "question"}).dataset_columns, dict[str, str] | None)
    DPOExtConfig("x", dataset_columns=["prompt=question"])


def wrong_options() -> None:
    DPOExtConfig(output_dir="x", loss_type="dpop", dpop_lamda=5.0)  # pyright: ignore[reportCallIssue]
    DPOExtConfig(output_dir="x", ref_self_check=True)  # pyright: ignore[reportCallIssue]
    DPOExtConfig(output_dir="x", loss_type="dpop", dpop_lambda="much")  # pyright: ignore[reportArgumentType]
    DPOExtConfig(output_dir="x", dataset_columns=3)  # pyright: ignore[reportArgumentType]
    DPOExtConfig(output_dir="x", loss_type=3)  # pyright: ignore[reportArgumentType]
