"""A run that starts from an adapter trains that adapter, against that adapter."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.support import runs, tiny
from tests.support.references import IDS, logits
from trl_dpo_ext import DPOExtTrainer, InputError
from trl_dpo_ext.cli import main as cli
from trl_dpo_ext.cli.arguments import TrainParser
from trl_dpo_ext.cli.run_summary import print_run_summary
from trl_dpo_ext.cli.train import build_trainer

from .listing import Kind

adapter_start = Kind("Starting from an adapter")

LORA = peft.LoraConfig(r=2, target_modules=["v_proj"], task_type="CAUSAL_LM")
STORED: dict[str, Any] = {"precompute_ref_log_probs": True}
ONCE: dict[str, Any] = {"max_steps": 1, "learning_rate": 0.1}


@dataclass(frozen=True)
class Sft:
    """A saved base and adapters of several methods on it, by name."""

    folder: Path

    @property
    def base(self) -> str:
        return str(self.folder / "base")

    def adapter(self, method: str = "lora") -> str:
        return str(self.folder / method)

    def model(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.base)

    def peft_model(self, *names: str, method: str = "lora") -> Any:
        """A `PeftModel` with one adapter under each name, of which the first is active."""
        model = peft.PeftModel.from_pretrained(
            self.model(), self.adapter(method), adapter_name=names[0], is_trainable=True
        )
        for name in names[1:]:
            model.add_adapter(name, peft.LoraConfig(r=3, target_modules=["o_proj"], task_type="CAUSAL_LM"))
        return model

    def inside(self, method: str = "lora", **settings: Any) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.adapter(method), **settings)

    def logits(self, method: str = "lora") -> torch.Tensor:
        return logits(peft.PeftModel.from_pretrained(self.model(), self.adapter(method)))


METHODS: dict[str, Any] = {
    "lora": peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    "embedding": peft.LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM"),
    "dora": peft.LoraConfig(r=4, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM"),
    "saved module": peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM"),
    "tokens": peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[5, 6], task_type="CAUSAL_LM"),
    "ia3": peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
    "head": peft.LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM"),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
}


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Sft:
    made = Sft(tmp_path_factory.mktemp("sft"))
    tiny.saved_model(made.base)
    for name, config in METHODS.items():
        model = peft.get_peft_model(made.model(), config)
        torch.manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(made.adapter(name))
    return made


def first_loss(run: Any) -> float:
    """The loss of the first batch, without a step."""
    batch = next(iter(run.get_train_dataloader()))
    return run.compute_loss(run.model, run._prepare_inputs(batch)).item()


def started(folder: Path, model: Any, start: torch.Tensor, **settings: Any) -> Any:
    """A trainer whose policy starts with these logits, and whose reference is that start."""
    if settings.get("precompute_ref_log_probs"):
        settings["ref_store"] = str(folder / "store")
    run = runs.trainer(folder, model=model, **settings)
    torch.testing.assert_close(logits(run.model), start, rtol=1e-5, atol=1e-5)
    run.model.train()
    assert first_loss(run) == pytest.approx(0.693147, abs=1e-6)
    return run


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


def mixed(sft: Sft) -> Any:
    return peft.PeftMixedModel.from_pretrained(sft.model(), sft.adapter(), is_trainable=True)


def two_active(sft: Sft) -> Any:
    model = sft.peft_model("a", "b")
    model.base_model.set_adapter(["a", "b"])
    return model


def switched_off(sft: Sft) -> Any:
    model = sft.peft_model("default")
    model.disable_adapter_layers()
    return model


def with_other_ref(sft: Sft) -> Any:
    return sft.peft_model("default", "ref")


def two_inside(sft: Sft) -> Any:
    model = sft.inside()
    model.load_adapter(sft.adapter(), "second")
    return model


QUANTIZED = BitsAndBytesConfig(load_in_4bit=True)


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        adapter_start.case("the folder of an adapter with --use_peft", "error: names both fixes",
            lambda sft: sft.adapter(), {"peft_config": LORA}, r"Remove peft_config \(--use_peft\).*--merge_adapter"),
        adapter_start.case("`AutoModelForCausalLM.from_pretrained(adapter)` with `peft_config`", "error: merge it first",
            lambda sft: sft.inside(), {"peft_config": LORA}, "adapter inside.*merge_and_unload"),
        adapter_start.case("a PeftModel with `peft_config`", "error: merge it first",
            lambda sft: sft.peft_model("sft"), {"peft_config": LORA}, r"a PeftModel \(sft\).*model.merge_and_unload"),
        adapter_start.case("`--merge_adapter` into a quantized base", "error",
            lambda sft: sft.adapter(), {"merge_adapter": True, "quantization_config": QUANTIZED}, "quantized base"),
        adapter_start.case("`--merge_adapter` without an adapter", "error",
            lambda sft: sft.base, {"merge_adapter": True}, "is not an adapter"),
        adapter_start.case("an adapter of virtual tokens as the model", "error: cannot be trained further",
            lambda sft: sft.adapter("prompt"), {}, "PROMPT_TUNING.*neither train further nor merge"),
        adapter_start.case("an adapter on the output layer as the model", "error: merge it first",
            lambda sft: sft.adapter("head"), {}, "adapts lm_head.*--merge_adapter"),
        adapter_start.case("an adapter as the model with `ref_quantization` or `ref_dtype`", "error",
            lambda sft: sft.adapter(), {"ref_dtype": "bfloat16"}, "ref_dtype cannot be used with an adapter"),
        adapter_start.case("an adapter as `ref_model_name_or_path`", "error: merge it first",
            lambda sft: sft.base, {"ref_model_name_or_path": "ADAPTER"}, "ref_model_name_or_path=.* is an adapter"),
        adapter_start.case("a PeftMixedModel", "error", mixed, {}, "PeftMixedModel"),
        adapter_start.case("several active adapters", "error", two_active, {}, r"2 adapters .*\(a, b\).*set_adapter"),
        adapter_start.case("adapters that are switched off", "error", switched_off, {}, "enable_adapter_layers"),
        adapter_start.case("a PeftModel with another adapter named `ref`", "error", with_other_ref, {},
            r"named 'ref'.*differs from 'default'.*delete_adapter\('ref'\)"),
        pytest.param(two_inside, {}, "several frozen adapters inside", id="two inside"),
        pytest.param(lambda sft: sft.peft_model("sft"), {"merge_adapter": True}, "given by name", id="merge an instance"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_before_a_model_is_loaded(
    tmp_path, sft: Sft, given: Callable[[Sft], Any], settings: dict[str, Any], message: str, monkeypatch
) -> None:
    model = given(sft)
    settings = {name: sft.adapter() if value == "ADAPTER" else value for name, value in settings.items()}
    monkeypatch.setattr("trl.trainer.dpo_trainer.create_model_from_path", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(InputError, match=message):
        runs.trainer(tmp_path, model=model, **settings)


def folder_of(sft: Sft, target: Path, **changes: Any) -> str:
    """A copy of the adapter with other entries in its configuration."""
    copied = Path(shutil.copytree(sft.adapter(), target))
    config = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return str(copied)


@adapter_start("an adapter whose base is not named, not found, or an adapter itself", "error: names the base")
def test_the_base_has_to_be_there(tmp_path, sft: Sft) -> None:
    for base, message in (
        (None, "does not name its base"),
        (str(tmp_path / "gone"), r"names the base .*gone, which could not be found"),
        (sft.adapter(), "which is an adapter itself"),
    ):
        folder = folder_of(sft, tmp_path / f"adapter {len(os.listdir(tmp_path))}", base_model_name_or_path=base)
        with pytest.raises(InputError, match=message):
            runs.trainer(tmp_path / "out", model=folder)


@adapter_start("a folder with adapters in the folders below it", "error: names the newest")
def test_the_folder_above_an_adapter_is_answered_with_the_adapter(tmp_path, sft: Sft) -> None:
    for step in (50, 100):
        shutil.copytree(sft.adapter(), tmp_path / "sft" / f"checkpoint-{step}")
    with pytest.raises(InputError, match=r"2 of its folders hold adapters.*sft/checkpoint-100"):
        runs.trainer(tmp_path / "out", model=str(tmp_path / "sft"))


@adapter_start("the folder of an adapter without its weights", "error")
def test_an_adapter_without_weights_is_refused(tmp_path, sft: Sft) -> None:
    folder = folder_of(sft, tmp_path / "adapter")
    (Path(folder) / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="not its weights"):
        runs.trainer(tmp_path / "out", model=folder)


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


def test_precompute_fills_the_store_that_train_reads(tmp_path, sft: Sft, capsys) -> None:
    given = [*flags(tmp_path, sft), "--ref_store", str(tmp_path / "store")]
    for more in ([], ["--ref_model_name_or_path", sft.base]):  # which does not load the policy
        given[-1] = str(tmp_path / f"store {len(more)}")
        assert cli.main(["precompute", *given, *more]) == 0
        assert "16 computed" in capsys.readouterr().out
        trainer: Any = build_trainer(TrainParser().parse([*given, *more, "--precompute_ref_log_probs", "true"]))
        assert trainer.reference.stored.stats.computed == 0
