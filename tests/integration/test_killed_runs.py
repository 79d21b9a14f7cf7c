"""A run that was killed goes on from its last checkpoint and ends like the whole run, to the bit."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.support import killed, runs
from trl_dpo_ext import list_losses
from trl_dpo_ext.distributed.checkpoints import checkpoint_to_resume

STATEFUL = [variant.name for variant in list_losses() if variant.stateful]


@pytest.mark.slow
def test_losses_with_a_running_state_go_on_to_the_bit_after_a_kill(tmp_path) -> None:
    subprocess.run([sys.executable, "-m", "tests.support.killed", str(tmp_path), "4", *STATEFUL], check=True)
    for loss in STATEFUL:
        checkpoint = checkpoint_to_resume("auto", tmp_path / loss)
        assert checkpoint == str(tmp_path / loss / "checkpoint-3")
        whole = runs.trained(tmp_path / "whole" / loss, **killed.settings(loss))
        resumed = runs.trainer(tmp_path / loss, **killed.settings(loss))
        resumed.train(resume_from_checkpoint=checkpoint)
        assert resumed.mixture.state_dict() == whole.mixture.state_dict()
        expected, found = runs.weights(whole), runs.weights(resumed)
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items()), loss
        assert losses(resumed)[-2:] == losses(whole)[-2:]


def losses(run: Any) -> list[float]:
    return [line["loss"] for line in runs.logs(run) if "loss" in line]
