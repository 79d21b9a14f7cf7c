"""The store for data with images: everything that holds for text, on a small vision-language model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CLIPImageProcessorPil, LlavaForConditionalGeneration
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from tests.features import vision
from tests.support import pictures, runs
from tests.support.pictures import counts, live_sums, picture, pictured, stored, sums
from tests.support.stored import corrupt_values
from trl_dpo_ext.cli import store as show_store
from trl_dpo_ext.data import images
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.reference.precompute.image_reading import read_keys
from trl_dpo_ext.reference.store.store import Store

LORA = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return vision.saved_model(str(tmp_path_factory.mktemp("images") / "model"))


def close(found: list[float], expected: list[float]) -> None:
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_training_from_the_store_is_training_against_the_live_reference(tmp_path, model) -> None:
    live = pictures.trainer(tmp_path / "live", model)
    expected = live_sums(live)
    live.train()
    run = stored(tmp_path / "out", model)
    close(sums(run), expected)
    run.train()
    for ours, theirs in zip(runs.logs(run), runs.logs(live), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert counts(run) == (0, 12)
    shown, sound = show_store.show(str(tmp_path / "refs"), check=True)
    assert sound
    assert "LlavaProcessor shortest_edge 8, all settings in manifest.json" in shown


@pytest.mark.slow
def test_a_subset_another_order_and_batch_size_find_everything(tmp_path, model) -> None:
    data = pictured(6, each=[1, 2, 0, 1, 0, 3])
    first = stored(tmp_path / "first", model, train_dataset=data)
    expected = np.array(sums(first)).reshape(2, 6)
    others = {"subset": [4, 1], "reversed": [5, 4, 3, 2, 1, 0]}
    for name, places in others.items():
        run = stored(tmp_path / name, model, train_dataset=data.select(places), per_device_train_batch_size=2)
        assert counts(run) == (2 * len(places), 0)
        assert np.array(sums(run)).reshape(2, -1) == pytest.approx(expected[:, places])
    more = stored(tmp_path / "more", model, train_dataset=pictured(7, each=[1, 2, 0, 1, 0, 3, 1]))
    assert counts(more) == (12, 2)


@pytest.mark.slow
def test_rows_of_one_text_and_different_images_never_meet(tmp_path, model) -> None:
    rows = [pictured(2)[place] for place in range(2)]
    crossed = [{**rows[text], "images": [picture(image)]} for text in (0, 1) for image in (7, 8)]
    data = pictured(4).from_list(crossed + crossed[:1])
    run = stored(tmp_path / "out", model, train_dataset=data)
    assert counts(run) == (0, 8)
    found = sums(run)
    close(found, live_sums(pictures.trainer(tmp_path / "live", model, train_dataset=data)))
    assert len(set(np.round(found, 6))) == 8
    changed = [{**row, "images": [picture(9)]} for row in crossed]
    assert counts(stored(tmp_path / "other", model, train_dataset=data.from_list(changed))) == (0, 4)


def test_a_row_that_changes_between_reading_and_pass_is_refused(tmp_path, model, monkeypatch) -> None:
    """Its numbers would get the key of the old image."""
    data = pictured(3)
    known = read_keys(data, DataCollatorForVisionPreference(vision.processor()), "data", disable_tqdm=True)
    other = data.select([0, 2, 2])
    monkeypatch.setattr(images, "read_keys", lambda *_, **__: known)
    with pytest.raises(InputError, match="Row 1 of the dataset has changed since its images were read"):
        stored(tmp_path / "out", model, train_dataset=other)
    assert len(Store.read_only(tmp_path / "refs")) < 6


def test_a_processor_that_changes_after_the_start_is_refused(tmp_path, model) -> None:
    run = stored(tmp_path / "out", model, train_dataset=pictured(2))
    run.processing_class.image_processor.image_mean = [0.1, 0.1, 0.1]
    with pytest.raises(InputError, match=r"processor\.image_processor\.image_mean"):
        run.evaluate(pictured(3))
    with pytest.raises(InputError, match=r"processor\.image_processor\.image_mean"):
        run.train()


def test_images_that_max_length_cuts_are_named(tmp_path, model) -> None:
    with pytest.raises(InputError, match=r"Rows .* another number of image tokens .* Set max_length=None"):
        stored(tmp_path / "out", model, train_dataset=pictured(4, each=[0, 0, 0, 3]), max_length=12)


@pytest.mark.slow
def test_a_damaged_part_is_computed_again(tmp_path, model) -> None:
    expected = sums(stored(tmp_path / "out", model))
    corrupt_values(Store.read_only(tmp_path / "refs").parts[0].path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = stored(tmp_path / "again", model)
    assert counts(run) == (0, 12)
    close(sums(run), expected)


def test_another_reference_and_another_processor_are_refused_by_name(tmp_path, model) -> None:
    stored(tmp_path / "out", model)
    larger = vision.processor()
    larger.image_processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 8, "width": 8})
    with pytest.raises(InputError) as caught:
        stored(tmp_path / "processor", "no model is loaded", processing_class=larger)
    assert "processor.image_processor.size.shortest_edge is 8 in the store and 16 in this run" in str(caught.value)
    other = LlavaForConditionalGeneration.from_pretrained(model)
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1
    with pytest.raises(InputError, match="weights is files:"):
        stored(tmp_path / "weights", other)
    assert len(Store.read_only(tmp_path / "refs")) == 12


@pytest.mark.slow
@pytest.mark.parametrize("adapted", [False, True])
def test_adapters_store_what_their_live_reference_gives(tmp_path, model, adapted: bool) -> None:
    """A new adapter's reference is the model without it; that of an adapter that is trained further, the adapter."""

    def given() -> dict[str, Any]:
        if not adapted:
            return {"model": model, "peft_config": LORA}
        torch.manual_seed(0)
        return {"model": get_peft_model(LlavaForConditionalGeneration.from_pretrained(model), LORA)}

    expected = live_sums(pictures.trainer(tmp_path / "live", **given()))
    run = stored(tmp_path / "out", **given())
    close(sums(run), expected)
    run.train()
    assert counts(stored(tmp_path / "again", **given())) == (12, 0)
    plain = sums(stored(tmp_path / "plain", model, ref_store=str(tmp_path / "plain_refs")))
    assert (plain == pytest.approx(expected, abs=1e-5)) is not adapted


@pytest.mark.slow
def test_a_quantized_reference_is_stored_as_it_is_live(tmp_path, model, monkeypatch) -> None:
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    expected = live_sums(pictures.trainer(tmp_path / "live", model, ref_quantization="nf4"))
    run = stored(tmp_path / "out", model, ref_quantization="nf4")
    assert sums(run) == pytest.approx(expected, rel=1e-3, abs=1e-3)
    with pytest.raises(InputError, match="quantization"):
        stored(tmp_path / "none", model)


@pytest.mark.slow
def test_losses_that_read_single_tokens(tmp_path, model) -> None:
    data = pictured(6, each=[1, 0, 1, 2, 1, 1])
    first = pictures.trainer(tmp_path / "first", model, train_dataset=data)
    scored = first.data_collator([data[row] for row in range(6)])["completion_mask"].sum(dim=1).view(2, 6).tolist()
    for side, lengths in zip(("chosen", "rejected"), scored, strict=True):
        data = data.add_column(f"{side}_token_weights", [[1.0 / (1 + at) for at in range(each)] for each in lengths])
    settings = {"loss_type": ["sampo", "tis_dpo"], "loss_weights": [1.0, 0.5], "train_dataset": data}
    live = pictures.trainer(tmp_path / "live", model, **settings)
    live.train()
    run = stored(tmp_path / "out", model, **settings)
    run.train()
    for ours, theirs in zip(runs.logs(run), runs.logs(live), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_evaluation_sets_given_at_the_start_and_later(tmp_path, model) -> None:
    sets = {"near": pictured(3, start=50), "text": pictured(2, each=0)}
    settings = {"eval_dataset": sets, "peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"])}
    torch.manual_seed(0)
    live = pictures.trainer(tmp_path / "live", model, **settings)
    torch.manual_seed(0)
    run = stored(tmp_path / "out", model, **settings)
    assert counts(run) == (0, 22)
    for trainer in (live, run):
        trainer.train()
    given: list[Any] = [None, "near", pictured(4, start=90), {"a": pictured(2, start=200), "b": sets["near"]}]
    for data in given:
        ours, theirs = (
            {
                name: value
                for name, value in trainer.evaluate(data).items()
                if "second" not in name and "time" not in name
            }
            for trainer in (run, live)
        )
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert counts(run)[1] == 22 + 8 + 4
    expected = live.predict(pictured(2, start=400)).metrics
    assert run.predict(pictured(2, start=400)).metrics["test_loss"] == pytest.approx(expected["test_loss"], abs=1e-5)
    with pytest.raises(InputError, match="has no column of images"):
        run.evaluate(pictured(2).remove_columns("images"))


@pytest.mark.slow
def test_a_resumed_run_is_the_whole_one_bit_for_bit(tmp_path, model) -> None:
    settings = {
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 4,
        "train_dataset": pictured(6, each=[1, 0, 2, 1, 1, 1]),
    }
    whole = stored(tmp_path / "whole", model, **settings)
    whole.train()
    resumed = stored(tmp_path / "resumed", model, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    expected = runs.weights(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in runs.weights(resumed).items())


@pytest.mark.slow
def test_max_length_cuts_rows_behind_their_images(tmp_path, model) -> None:
    """Of some completions nothing is left to score; they are found again, with no log-probs."""
    data = pictured(6)
    settings = {"train_dataset": data, "max_length": 10}
    words = "train_dataset: the prompt alone fills max_length=10 in . of 6 rows, of which nothing is scored"
    with pytest.warns(UserWarning, match=words), pytest.warns(UserWarning, match="cuts the answers"):
        run = stored(tmp_path / "out", model, **settings)
    assert counts(run) == (0, 12)
    expected = live_sums(pictures.trainer(tmp_path / "live", model, **settings))
    assert 0.0 in expected
    close(sums(run), expected)
    ignored = {"ignore_findings": ["dropped", "answer_cut"]}
    assert counts(stored(tmp_path / "again", model, **settings, **ignored)) == (12, 0)


@pytest.mark.slow
def test_loader_workers_look_rows_up(tmp_path, model) -> None:
    run = stored(tmp_path / "out", model, dataloader_num_workers=2, max_steps=1)
    run.train()
    assert counts(run) == (0, 12)


PASS = """
import sys, time
from pathlib import Path
from tests.support.pictures import pictured, stored
from trl_dpo_ext.reference.precompute import pass_run
pass_run._FLUSH_SHARE = 0.0
from trl_dpo_ext.reference.precompute.image_pass import ImageScorer
score = ImageScorer.__call__
ImageScorer.__call__ = lambda self, batch: (time.sleep(0.1), score(self, batch))[1]
run = stored(Path(sys.argv[1]), sys.argv[2], train_dataset=pictured(30), precompute_ref_max_tokens=40)
"""


@pytest.mark.slow
def test_a_killed_pass_goes_on_where_it_stopped(tmp_path, model) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PASS, str(tmp_path / "out"), model]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    parts = tmp_path / "refs" / "parts"
    for _ in range(4800):
        if process.poll() is not None or (parts.is_dir() and any(parts.glob("*.parquet"))):
            break
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0][-3000:]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = len(Store.read_only(tmp_path / "refs"))
    assert 0 < kept < 60
    resumed = stored(tmp_path / "again", model, train_dataset=pictured(30))
    assert counts(resumed) == (kept, 60 - kept)
    whole = stored(tmp_path / "whole", model, train_dataset=pictured(30), ref_store=str(tmp_path / "others"))
    close(sums(resumed), sums(whole))
