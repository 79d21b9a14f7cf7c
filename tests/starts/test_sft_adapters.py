"""A run that starts from an adapter trains that adapter, against that adapter."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from tests.support import runs, tiny
from tests.support.references import IDS, logits
from tests.support.sft import LORA, Sft, saved_adapters, started
from trl_dpo_ext import DPOExtTrainer
from trl_dpo_ext.cli import main as cli
from trl_dpo_ext.cli.arguments import TrainParser
from trl_dpo_ext.cli.run_summary import print_run_summary
from trl_dpo_ext.cli.train import build_trainer

from .listing import Kind

adapter_start = Kind("Starting from an adapter")

STORED: dict[str, Any] = {"precompute_ref_log_probs": True}
ONCE: dict[str, Any] = {"max_steps": 1, "learning_rate": 0.1}


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Sft:
    return saved_adapters(tmp_path_factory.mktemp("sft"))


def trained_names(run: Any) -> set[str]:
    return {name for name, parameter in run.model.named_parameters() if parameter.requires_grad}


def check_saved(run: Any, folder: Path) -> None:
    """Train one large step, save, and find the trainer's numbers again with peft's loaders."""
    before = logits(run.model)
    run.model.train()
    run.train()
    run.save_model(str(folder))
    after = logits(run.model)
    assert (after - before).abs().max() > 1e-3
    assert not [path for path in folder.rglob("adapter_config.json") if path.parent != folder]
    torch.testing.assert_close(logits(peft.AutoPeftModelForCausalLM.from_pretrained(folder)), after)


@adapter_start(
    "the folder of an adapter as the model", "the adapter is trained further; its frozen copy is the reference"
)
@pytest.mark.parametrize(("method", "settings"), [("lora", {}), ("embedding", STORED)], ids=["live", "stored"])
def test_the_folder_of_an_adapter_is_trained_further(tmp_path, sft: Sft, method: str, settings) -> None:
    run = started(tmp_path, sft.adapter(method), sft.logits(method), **settings, **ONCE)
    assert trained_names(run)
    assert all(".default" in name for name in trained_names(run))
    check_saved(run, tmp_path / "saved")


@pytest.mark.parametrize("method", ["dora", "saved module", "tokens", "ia3"])
def test_every_method_that_peft_can_train_further_starts_as_it_was_saved(tmp_path, sft: Sft, method: str) -> None:
    started(tmp_path / "named", sft.adapter(method), sft.logits(method))
    started(tmp_path / "instance", sft.peft_model("sft", method=method), sft.logits(method))


@pytest.mark.parametrize("kept", ["model", "configuration"])
def test_an_adapter_beside_its_base_in_one_folder_is_trained_further(tmp_path, sft: Sft, kept: str) -> None:
    folder = shutil.copytree(sft.adapter(), tmp_path / "both")
    if kept == "model":
        sft.model().save_pretrained(folder)
    else:
        shutil.copy(Path(sft.base) / "config.json", folder)
    started(tmp_path, str(folder), sft.logits())


@adapter_start("the folder of an adapter with --merge_adapter", "merged first; the merged weights are the reference")
@pytest.mark.parametrize("settings", [{}, STORED], ids=["live", "stored"])
def test_an_adapter_is_merged_first(tmp_path, sft: Sft, settings) -> None:
    run = started(tmp_path, sft.adapter(), sft.logits(), merge_adapter=True, **settings)
    assert trained_names(run) == set(dict(sft.model().named_parameters()))
    assert not (tmp_path / "merged_base").exists()


@adapter_start(
    "the folder of an adapter with --merge_adapter --use_peft",
    "a new adapter on the merged weights, which are saved as merged_base",
)
@pytest.mark.parametrize("settings", [{}, STORED], ids=["live", "stored"])
def test_a_new_adapter_on_merged_weights_is_saved_with_its_base(tmp_path, sft: Sft, settings) -> None:
    run = started(tmp_path, sft.adapter(), sft.logits(), merge_adapter=True, peft_config=LORA, **settings, **ONCE)
    assert trained_names(run)
    assert all("v_proj.lora" in name for name in trained_names(run))
    assert run.describe_reference().startswith("stored" if settings else "the policy with its adapter off")
    run.train()
    run.save_model(str(tmp_path / "saved"))
    found = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits(found), logits(run.model))


@pytest.mark.parametrize(
    ("names", "settings"),
    [
        adapter_start.case("a PeftModel whose adapter has any name", "that adapter trains; its frozen copy is the reference", ["sft"], {}),
        adapter_start.case("a PeftModel with several adapters", "the active one trains", ["sft", "default", "other"], STORED),
        adapter_start.case("a PeftModel whose adapter is named `ref`, as TRL names the reference", "trains under the name `default`", ["ref"], {}),
        pytest.param(["sft", "default"], {}, id="sft and default"),
        pytest.param(["ref", "default"], STORED, id="ref and default"),
        pytest.param(["q_proj"], {}, id="the name of a layer"),
        pytest.param(["default", "ref_2"], {}, id="default"),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_an_adapter_of_any_name_is_trained_further(tmp_path, sft: Sft, names: list[str], settings) -> None:
    run = started(tmp_path, sft.peft_model(*names), sft.logits(), **settings, **ONCE)
    active = run.model.active_adapter
    assert active == (names[0] if names[0] != "ref" else "default" if len(names) == 1 else "policy")
    assert trained_names(run)
    assert all(f".{active}." in name for name in trained_names(run))
    check_saved(run, tmp_path / "saved")


@adapter_start("a PeftModel with the same adapter loaded again as `ref`", "taken for the reference")
def test_the_same_adapter_under_the_references_name_is_the_reference(tmp_path, sft: Sft) -> None:
    model = sft.peft_model("sft")
    model.load_adapter(sft.adapter(), "ref")
    run = started(tmp_path, model, sft.logits())
    assert list(run.model.peft_config) == ["sft", "ref"]


def test_the_names_of_adapters_do_not_change_the_identity_of_a_store(tmp_path, sft: Sft) -> None:
    def computed(model: Any) -> int:
        return runs.trainer(
            tmp_path, model=model, ref_store=str(tmp_path / "store"), **STORED
        ).reference.stored.stats.computed

    assert computed(sft.peft_model("default")) == 16
    assert computed(sft.peft_model("sft", "default")) == 0


@pytest.mark.parametrize("name", ["sft", "default"])
def test_a_checkpoint_resumes_with_its_adapter_and_its_reference(tmp_path, sft: Sft, name: str) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    whole = runs.trained(tmp_path, model=sft.peft_model(name, "other"), **settings)
    checkpoint = tmp_path / "checkpoint-1"
    assert {path.parent.name for path in checkpoint.rglob("adapter_config.json")} == {"checkpoint-1", "ref"}
    again = sft.peft_model(name, "other")
    if name == "sft":  # from the checkpoint's adapter, which is not what the reference started as
        again = peft.PeftModel.from_pretrained(sft.model(), checkpoint, adapter_name=name, is_trainable=True)
    resumed = runs.trainer(tmp_path / "resumed", model=again, **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert runs.logs(resumed)[1]["loss"] == runs.logs(whole)[1]["loss"]
    assert torch.equal(logits(resumed.model), logits(whole.model))


@pytest.mark.parametrize(
    "given",
    [
        adapter_start.case(
            "`AutoModelForCausalLM.from_pretrained(adapter)`", "the adapter is trained further", lambda sft: sft.inside()
        ),
        pytest.param(lambda sft: sft.inside("embedding"), id="embedding"),
        pytest.param(lambda sft: sft.inside("saved module"), id="saved module"),
        pytest.param(lambda sft: sft.inside("tokens"), id="tokens"),
        pytest.param(lambda sft: sft.inside("dora"), id="dora"),
        pytest.param(lambda sft: sft.inside("ia3"), id="ia3"),
    ],
)  # fmt: skip
def test_an_adapter_inside_a_model_is_trained_further(tmp_path, sft: Sft, given: Callable[[Sft], Any]) -> None:
    model = given(sft)
    start = logits(model)
    run = started(tmp_path, model, start)
    assert run.describe_reference() == "a frozen copy of the adapter that training started from"
    assert all(".default" in name for name in trained_names(run))


def test_an_adapter_that_was_loaded_into_a_model_to_be_trained_is_its_own_reference(tmp_path, sft: Sft) -> None:
    model = sft.model()
    model.load_adapter(sft.adapter(), "sft", is_trainable=True)
    assert started(tmp_path, model, sft.logits()).model.active_adapter == "sft"


def test_the_tokenizer_that_was_saved_with_an_adapter_is_used_and_may_have_more_tokens(tmp_path, sft: Sft) -> None:
    base, tokenizer = sft.model(), tiny.tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    base.resize_token_embeddings(len(tokenizer))
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "adapter")
    run = runs.config(tmp_path / "out")
    trainer: Any = DPOExtTrainer(str(tmp_path / "adapter"), args=run, train_dataset=tiny.preferences())
    assert len(trainer.processing_class) == len(tokenizer)
    torch.testing.assert_close(logits(trainer.model), logits(model))
    assert trainer.model.get_input_embeddings().weight.shape[0] == len(tokenizer) > IDS.max()


def flags(folder: Path, sft: Sft, *more: str) -> list[str]:
    data = folder / "pairs.jsonl"
    tiny.preferences().to_json(str(data))
    given = {"model_name_or_path": sft.adapter(), "dataset_name": str(data), "output_dir": str(folder / "out")}
    given |= {"use_cpu": "true", "bf16": "false", "report_to": "none", "save_strategy": "no", "max_steps": "1"}
    return [*(part for name, value in given.items() for part in (f"--{name}", value)), *more]


@pytest.mark.parametrize(
    ("more", "policy", "reference"),
    [
        ([], "the LORA adapter {adapter}, trained further, on {base}", "a frozen copy of the adapter"),
        (["--merge_adapter"], "all weights of {base} with the adapter {adapter} merged", "LlamaForCausalLM"),
        (
            ["--merge_adapter", "--use_peft", "--lora_target_modules", "q_proj"],
            "a new LORA adapter on {base} with the adapter {adapter} merged",
            "the policy with its adapter off",
        ),
    ],
    ids=["further", "merged", "new"],
)
def test_the_run_summary_says_what_trains_on_what_against_what(
    tmp_path, sft: Sft, capsys, more: list[str], policy: str, reference: str
) -> None:
    arguments = TrainParser().parse(flags(tmp_path, sft, *more))
    print_run_summary(build_trainer(arguments), arguments.model, None)
    printed = capsys.readouterr().out
    assert f"Policy: {policy.format(adapter=sft.adapter(), base=sft.base)}\n" in printed
    assert f"Reference: {reference}" in printed


def test_the_estimate_counts_a_saved_adapter(tmp_path, sft: Sft, capsys) -> None:
    assert cli.main(["estimate", *flags(tmp_path, sft)]) == 0
    further = capsys.readouterr().out
    assert cli.main(["estimate", *flags(tmp_path, sft, "--merge_adapter")]) == 0
    merged = capsys.readouterr().out
    assert "reference: adapter off" in further
    assert "0.0 million trained" in further
    assert "reference: loaded" in merged
    assert "all trained" in merged
    assert cli.main(["estimate", *flags(tmp_path, sft, "--use_peft")]) == 2
    assert "asks for a new one" in capsys.readouterr().err


@pytest.mark.slow
def test_precompute_fills_the_store_that_train_reads(tmp_path, sft: Sft, capsys) -> None:
    given = [*flags(tmp_path, sft), "--ref_store", str(tmp_path / "store")]
    for more in ([], ["--ref_model_name_or_path", sft.base]):  # which does not load the policy
        given[-1] = str(tmp_path / f"store {len(more)}")
        assert cli.main(["precompute", *given, *more]) == 0
        assert "16 computed" in capsys.readouterr().out
        trainer: Any = build_trainer(TrainParser().parse([*given, *more, "--precompute_ref_log_probs", "true"]))
        assert trainer.reference.stored.stats.computed == 0
