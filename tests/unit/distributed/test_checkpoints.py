"""Which checkpoint a run resumes from, and that half of one is not it."""

from __future__ import annotations

import shutil
import warnings

import peft
import pytest
import torch

from tests.support import runs, tiny
from trl_dpo_ext.distributed.checkpoints import checkpoint_to_resume, is_complete, names_without_wrappers
from trl_dpo_ext.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Checkpoints 2 and 10 complete, 12 without its last file, 14 with half of it."""
    for step, state in ((2, "{}"), (10, '{"global_step": 10}'), (12, None), (14, '{"global_step": 1')):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        if state is not None:
            (checkpoint / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-notes").mkdir()
    (tmp_path / "checkpoint-99").write_text("a file")
    return tmp_path


def test_the_newest_complete_checkpoint_is_taken_and_the_broken_ones_are_named(folder) -> None:
    for asked in (True, "true", "True", "auto"):
        with pytest.warns(UserWarning, match="checkpoint-14, checkpoint-12; resuming from checkpoint-10"):
            assert checkpoint_to_resume(asked, folder) == str(folder / "checkpoint-10")


def test_nothing_asked_is_a_fresh_start(folder) -> None:
    for asked in (None, False, "false"):
        assert checkpoint_to_resume(asked, folder) is None


def test_only_halves_are_an_error_and_auto_starts_anew(folder) -> None:
    for step in (2, 10):
        shutil.rmtree(folder / f"checkpoint-{step}")
    with pytest.raises(InputError, match=r"No complete checkpoint in .*incomplete: checkpoint-14, checkpoint-12"):
        checkpoint_to_resume(True, folder)
    with pytest.warns(UserWarning, match="starting anew"):
        assert checkpoint_to_resume("auto", folder) is None


def test_an_empty_or_missing_folder(tmp_path) -> None:
    with pytest.raises(InputError, match="No complete checkpoint"):
        checkpoint_to_resume(True, tmp_path / "missing")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint_to_resume("auto", tmp_path / "missing") is None


def test_a_named_checkpoint_has_to_be_complete(folder) -> None:
    assert checkpoint_to_resume(str(folder / "checkpoint-2"), folder) == str(folder / "checkpoint-2")
    with pytest.raises(InputError, match="checkpoint-12 is missing or incomplete"):
        checkpoint_to_resume(str(folder / "checkpoint-12"), folder)


def test_a_run_resumes_past_half_a_checkpoint_to_the_same_weights(tmp_path) -> None:
    settings = {"loss_type": "bco_pair_delta", "save_strategy": "steps", "save_steps": 1, "max_steps": 3}
    full = runs.trained(tmp_path, ref_model=tiny.model(1), **settings)
    (tmp_path / "checkpoint-2/trainer_state.json").unlink()
    shutil.rmtree(tmp_path / "checkpoint-3")
    resumed = runs.trainer(tmp_path, ref_model=tiny.model(1), **settings)
    with pytest.warns(UserWarning, match="checkpoint-2; resuming from checkpoint-1"):
        resumed.train(resume_from_checkpoint=True)
    assert resumed.mixture.state_dict() == full.mixture.state_dict()
    assert all(torch.equal(value, runs.weights(full)[key]) for key, value in runs.weights(resumed).items())


def test_the_losses_state_is_there_before_a_checkpoint_counts_as_complete(tmp_path, monkeypatch) -> None:
    settings = {"loss_type": "bco_pair_delta", "save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    run = runs.trainer(tmp_path, ref_model=tiny.model(1), **settings)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_save_rng_state", die)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert (tmp_path / "checkpoint-1/loss_state.json").is_file()
    assert not is_complete(tmp_path / "checkpoint-1")


def test_an_adapter_is_found_in_a_model_whose_layers_fsdp1_has_wrapped() -> None:
    class Wrapper(torch.nn.Module):
        def __init__(self, layer: torch.nn.Module) -> None:
            super().__init__()
            self._fsdp_wrapped_module = layer

    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny.model(), lora)
    state = model.state_dict()  # FSDP's has no trace of its wrappers
    expected = set(peft.get_peft_model_state_dict(model, state))
    layers = model.get_base_model().model.layers
    layers[0] = Wrapper(layers[0])
    with names_without_wrappers(model):
        assert set(peft.get_peft_model_state_dict(model, state)) == expected
        assert len(expected) == 4
        with names_without_wrappers(model):  # saving pushes to the hub, which saves
            pass
        assert set(peft.get_peft_model_state_dict(model, state)) == expected
    assert "named_modules" not in vars(model)
    assert any("_fsdp_wrapped_module" in name for name, _ in model.named_modules())
    around = Wrapper(model)
    around.peft_config = model.peft_config
    with names_without_wrappers(around):  # as the trainer's own model is wrapped
        assert set(peft.get_peft_model_state_dict(model, state)) == expected
        assert not any("_fsdp_wrapped_module" in name for name, _ in around.named_modules())
