"""The card of a run says what was trained, and holds nothing that the hub refuses or that belongs to this machine."""

from __future__ import annotations

import re
import tempfile
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
from huggingface_hub import HfApi
from huggingface_hub.repocard import metadata_load
from huggingface_hub.utils import validate_repo_id
from transformers import BitsAndBytesConfig

from tests.support import runs, tiny
from tests.support.command_line import config_file, write_data
from trl_dpo_ext import __version__
from trl_dpo_ext.cli import main as cli

# The hub's own rule for the ids in a card's metadata; a file's name is refused although its characters are allowed.
HUB_ID = re.compile(r"(?:[\w-]+/)?[\w.-]+")
FILES = (".json", ".jsonl", ".csv", ".parquet")


def card(folder: Any) -> tuple[dict[str, Any], str]:
    """Metadata and text of a card, which the hub accepts, and which holds no path of this machine."""
    file = Path(folder) / "README.md"
    text = file.read_text()
    assert tempfile.gettempdir() not in text
    assert str(Path.cwd()) not in text
    assert "None" not in re.sub(r"^None: ", "", text, flags=re.MULTILINE)
    metadata = metadata_load(file)
    ids = metadata.get("datasets", []) + [metadata[name] for name in ("base_model",) if name in metadata]
    for one in ids:
        validate_repo_id(one)
        assert HUB_ID.fullmatch(one), one
        assert not one.endswith(FILES), one
    assert all(isinstance(tag, str) and "/tmp" not in tag for tag in metadata["tags"])
    return metadata, text


def made(folder: Any, **settings: Any) -> tuple[dict[str, Any], str]:
    """The card of a trainer that has not been trained."""
    run = runs.trainer(folder, **settings)
    run.create_model_card()
    return card(folder)


def named_model(name: str, seed: int = 0) -> Any:
    model = tiny.model(seed)
    model.config._name_or_path = name
    return model


LORA = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])


def test_the_card_of_a_run_from_python_without_names(tmp_path) -> None:
    metadata, text = made(tmp_path / "mine", loss_type=["dpop", "sft"], dpop_lambda=5.0, ref_model=tiny.model(1))
    assert not {"base_model", "datasets"} & set(metadata)
    assert metadata["model_name"] == "mine"
    assert "# Model Card for mine\n\nThis model is fine-tuned from a model that was in memory.\n" in text
    assert "| `dpop` | 1 | `beta=0.1`, `dpop_lambda=5` (default 50) |" in text
    assert "| `sft` | 1 | none | - |" in text
    assert "- Model: a model that was given as an instance\n" in text
    assert "- Log-probs: computed during training by LlamaForCausalLM in float32\n" in text
    assert "- Training: a dataset without a recorded name, 8 pairs" in text
    assert "From Python, with `trl_dpo_ext.DPOExtTrainer`." in text
    assert "- Trained: all parameters\n- Steps: none yet, 4 pairs per step" in text
    assert f"- trl-dpo-ext: {__version__}\n- TRL: " in text
    assert all(f"\n- {name}: " in text for name in ("Transformers", "PyTorch", "Datasets", "PEFT", "Tokenizers"))
    assert "arxiv.org/abs/2402.13228" in text
    assert "Cite TRL as:" in text
    assert "rafailov" not in text
    assert "2305.18290" not in text


def test_a_base_model_and_data_from_the_hub_are_links_and_metadata(tmp_path) -> None:
    run = runs.trainer(tmp_path, model=named_model("someone/tiny"), loss_type="simpo")
    run.create_model_card(dataset_name=["someone/pairs", "other/pairs", str(tmp_path / "mine.jsonl")], tags="mine")
    metadata, text = card(tmp_path)
    assert metadata["base_model"] == "someone/tiny"
    assert metadata["datasets"] == ["someone/pairs", "other/pairs"]
    assert {"mine", "dpo", "trl", "trl-dpo-ext", "generated_from_trainer"} <= set(metadata["tags"])
    assert "[someone/tiny](https://huggingface.co/someone/tiny), trained on [someone/pairs](" in text
    assert "(https://huggingface.co/datasets/other/pairs), `mine.jsonl`, 8 pairs" in text
    assert "### Reference\n\nNone: no loss of this run reads a reference.\n" in text


def test_a_base_model_in_a_folder_is_named_without_its_path(tmp_path) -> None:
    folder = tiny.saved_model(str(tmp_path / "sft-model"))
    metadata, text = made(
        tmp_path / "out", model=folder, ref_dtype="bfloat16", eval_dataset={"easy": tiny.preferences(2)}
    )
    assert "base_model" not in metadata
    assert "a fine-tuned version of `sft-model`.\n" in text
    assert (
        "- Model: the policy before training\n- Log-probs: computed during training by LlamaForCausalLM in bfloat16\n"
        in text
    )
    assert "- Options: `ref_dtype=bfloat16`\n" in text
    assert "- Evaluation: `easy`: 2 pairs\n" in text
    assert "rafailov2023direct" in text


def test_another_reference_is_named(tmp_path) -> None:
    other = tiny.saved_model(str(tmp_path / "other"), seed=3)
    _, text = made(tmp_path / "out", ref_model_name_or_path=other)
    assert "- Model: `other`\n" in text
    _, text = made(tmp_path / "out", ref_model=named_model("someone/reference", 1))
    assert "- Model: [someone/reference](https://huggingface.co/someone/reference)\n" in text


def test_a_store_is_shown_by_its_folders_name_and_what_its_log_probs_were_made_of(tmp_path) -> None:
    run = runs.trainer(tmp_path / "out", precompute_ref_log_probs=True, ref_store=str(tmp_path / "my refs"))
    run.create_model_card()
    _, text = card(tmp_path / "out")
    assert "- Model: the policy before training\n- Log-probs: stored log-probs in `my refs`\n" in text
    fingerprint = run.reference.stored.store.identity.fingerprint
    assert f"weights in float32, computed in float32, quantization none, fingerprint `{fingerprint}`" in text


def test_a_reference_model_that_was_stored_and_released_is_named(tmp_path) -> None:
    settings = {"precompute_ref_log_probs": True, "ref_store": str(tmp_path / "refs")}
    _, text = made(tmp_path / "out", ref_model=named_model("someone/reference", 1), **settings)
    assert "- Model: [someone/reference](https://huggingface.co/someone/reference)\n" in text


def test_columns_of_the_dataset_do_not_name_their_reference(tmp_path) -> None:
    sums = {f"ref_{side}_logps": [-5.0] * 8 for side in ("chosen", "rejected")}
    _, text = made(tmp_path, precompute_ref_log_probs=True, train_dataset=tiny.preferences(8, **sums))
    assert "- Model: the one that made the dataset's columns, which do not name it\n" in text
    assert "- Log-probs: the dataset's own columns\n" in text


def test_a_moving_reference_is_called_one(tmp_path) -> None:
    _, text = made(tmp_path / "out", model=tiny.saved_model(str(tmp_path / "m")), sync_ref_model=True)
    assert "- Model: the policy before training, mixed with the policy every 512 steps\n" in text
    assert "`sync_ref_model`: [arXiv:2404.09656]" in text


def test_reference_free_and_a_stream(tmp_path) -> None:
    data = tiny.preferences().to_iterable_dataset()
    _, text = made(tmp_path, reference_free=True, train_dataset=data)
    assert "None: reference log-probs are read as zero (`reference_free`).\n" in text
    assert "- option `reference_free=True`\n" in text
    assert "- Training: a dataset without a recorded name, streamed\n" in text


def test_an_adapters_card_is_ours_wherever_the_adapter_is_saved(tmp_path) -> None:
    folder = tiny.saved_model(str(tmp_path / "sft-model"))
    run = runs.trainer(tmp_path / "out", model=folder, peft_config=LORA)
    for place in (None, str(tmp_path / "elsewhere")):
        run.save_model(place)
        metadata, text = card(place or tmp_path / "out")
        assert metadata["library_name"] == "peft"
        assert metadata["pipeline_tag"] == "text-generation"
        assert "lora" in metadata["tags"]
        assert "base_model" not in metadata
        assert "a fine-tuned version of `sft-model`.\n" in text
        assert "- Trained: an adapter, LORA (r=2; lora_alpha=8; target_modules=q_proj, v_proj)\n" in text
        assert (
            "- Model: the policy before training\n- Log-probs: computed during training by the policy with its adapter off\n"
            in text
        )
    assert run.args.output_dir == str(tmp_path / "out")


def test_saving_full_weights_elsewhere_leaves_the_users_card_alone(tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("my own words")
    runs.trainer(tmp_path / "out", loss_type="simpo").save_model(str(tmp_path / "mine"))
    assert (tmp_path / "mine/README.md").read_text() == "my own words"


def test_the_card_of_qlora_names_the_base_and_its_quantization(tmp_path) -> None:
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32")
    run = runs.trainer(
        tmp_path / "out", model=tiny.saved_model(str(tmp_path / "m")), quantization_config=nf4, peft_config=LORA
    )
    run.model.config._name_or_path = "someone/tiny"
    run.create_model_card()
    metadata, text = card(tmp_path / "out")
    assert metadata["base_model"] == "someone/tiny"
    assert "base_model:adapter:someone/tiny" in metadata["tags"]
    assert "target_modules=q_proj, v_proj) on weights in nf4\n" in text
    assert "\n- bitsandbytes: " in text


def test_a_resumed_run_says_from_where(tmp_path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "loss_type": "simpo"}
    runs.trained(tmp_path, max_steps=1, **settings)
    _, text = card(tmp_path)
    assert "- Steps: 1 of 1, 4 pairs per step (4 per process x 1 accumulated x 1 processes)\n" in text
    runs.trainer(tmp_path, max_steps=2, **settings).train(resume_from_checkpoint=True)
    _, text = card(tmp_path)
    assert (
        "- Steps: 2 of 2, 4 pairs per step (4 per process x 1 accumulated x 1 processes), resumed from `checkpoint-1`\n"
        in text
    )


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], str]]:
    """The cards of the folders that are uploaded to the hub, which nobody asks."""
    cards = []

    def upload(*_: Any, folder_path: str, **__: Any) -> Future:
        cards.append(card(folder_path))
        done: Future = Future()
        done.set_result(None)
        return done

    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: SimpleNamespace(repo_id="someone/mine"))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    return cards


def test_pushing_a_run_on_a_local_file_uploads_a_card_that_the_hub_accepts(tmp_path, uploads) -> None:
    run = runs.trainer(tmp_path / "out", loss_type="simpo")
    run.push_to_hub(dataset_name=str(tmp_path / "pairs.jsonl"))
    ((metadata, text),) = uploads
    assert "datasets" not in metadata
    assert "- Training: `pairs.jsonl`, 8 pairs\n" in text
    assert 'model="someone/mine"' in text


def test_the_command_writes_its_line_its_recipe_and_its_data_and_no_secret(tmp_path, uploads) -> None:
    keys = {
        "model_name_or_path": tiny.saved_model(str(tmp_path / "sft-model")),
        "dataset_name": write_data(tmp_path, ".jsonl"),
        "loss_type": "simpo",
        "max_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
    }
    flags = ["--output_dir", str(tmp_path / "out"), "--hub_token", "hf_abcdefghijkl", "--push_to_hub", "true"]
    assert cli.main(["train", "--config", config_file(tmp_path, **keys), *flags]) == 0
    metadata, text = card(tmp_path / "out")
    assert (metadata, text) == uploads[-1]
    assert "base_model" not in metadata
    assert "datasets" not in metadata
    assert "a fine-tuned version of `sft-model`, trained on `pairs.jsonl`.\n" in text
    assert "Recipe: recipe.yaml\n" in text
    assert (
        "trl-dpo-ext train --config recipe.yaml --output_dir out --hub_token '***' --push_to_hub true\n"
        in text.replace(" \\\n    ", " ")
    )
    assert "hf_abcdefghijkl" not in text
