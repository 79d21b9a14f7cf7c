"""What the package leans on inside transformers: one test per fact, whose failure names the place to mend."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import peft
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM, Trainer, TrainingArguments
from transformers.distributed import fsdp
from transformers.integrations import deepspeed
from transformers.quantizers.quantizers_utils import should_convert_module
from trl import DPOConfig, DPOTrainer

from tests.support import runs, tiny
from tests.support.adapters import add_inside
from tests.support.seams import moved
from trl_dpo_ext import _trl

MIXIN = "distributed/mixin.py"
PLACEMENT = "the module that defines unsharded_loading"


def seam(fact: str, mend: str = MIXIN) -> str:
    return moved("transformers", fact, mend)


class Recorded(DPOTrainer):
    """Notes each call of the methods that the mixin overrides, with its arguments, and what the checkpoint holds then."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        self.calls: list[tuple[str, tuple, dict]] = []
        self.files: dict[str, set[str]] = {}
        super().__init__(*args, **keywords)

    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]


def recorded(name: str) -> Any:
    def method(self: Recorded, *args: Any, **keywords: Any) -> Any:
        self.calls.append((name, args, keywords))
        if name.startswith("_save") and args and Path(args[0]).is_dir():
            self.files[name] = {path.name for path in Path(args[0]).iterdir()}
        return getattr(DPOTrainer, name)(self, *args, **keywords)

    return method


SAVING = ["save_model", "_save_optimizer_and_scheduler", "_save_rng_state"]
OVERRIDDEN = [
    *SAVING,
    "_load_from_checkpoint",
    "_load_best_model",
    "_prepare_inputs",
    "create_accelerator_and_postprocess",
    "prediction_step",
]
for _name in OVERRIDDEN:
    setattr(Recorded, _name, recorded(_name))

CHECKPOINTS = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "report_to": "none"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A run that evaluates, saves one checkpoint, and loads it as its best."""
    settings = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, **CHECKPOINTS}
    return runs.trained(
        tmp_path_factory.mktemp("run"),
        Recorded,
        ref_model=tiny.model(1),
        eval_dataset=tiny.preferences(3),
        per_device_eval_batch_size=2,
        **settings,
    )


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("create_accelerator_and_postprocess", ["self"]),
        ("_prepare_inputs", ["self", "inputs"]),
        ("prediction_step", ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"]),
        ("evaluate", ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"]),
        ("predict", ["self", "test_dataset", "ignore_keys", "metric_key_prefix"]),
        (
            "evaluation_loop",
            ["self", "dataloader", "description", "prediction_loss_only", "ignore_keys", "metric_key_prefix"],
        ),
        ("get_eval_dataloader", ["self", "eval_dataset"]),
        ("log", ["self", "logs", "start_time"]),
        ("save_model", ["self", "output_dir", "_internal_call"]),
        ("_save", ["self", "output_dir", "state_dict"]),
        ("_save_optimizer_and_scheduler", ["self", "output_dir"]),
        ("_save_rng_state", ["self", "output_dir"]),
        ("_load_from_checkpoint", ["self", "resume_from_checkpoint", "model"]),
        ("_load_best_model", ["self"]),
        ("_set_signature_columns_if_needed", ["self"]),
    ],
)
def test_overridden_methods_take_the_arguments_that_ours_pass_on(method: str, parameters: list[str]) -> None:
    found = list(inspect.signature(getattr(DPOTrainer, method)).parameters)
    assert found == parameters, seam(f"Trainer.{method}{tuple(parameters)}")


def test_a_checkpoint_is_saved_model_first_then_optimizer_then_random_state(run: Recorded) -> None:
    assert [name for name in run.names() if name in SAVING] == SAVING, seam(f"a checkpoint is saved by {SAVING}")
    folders = [Path(args[0]).name for name, args, _ in run.calls if name in SAVING]
    assert folders == ["checkpoint-2"] * 3, seam("each of them is given the checkpoint's folder")


def test_a_checkpoint_marks_its_call_of_save_model_and_a_user_does_not(run: Recorded) -> None:
    assert next(keywords for name, _, keywords in run.calls if name == "save_model") == {"_internal_call": True}, seam(
        "_save_checkpoint calls save_model(folder, _internal_call=True)"
    )
    assert inspect.signature(Trainer.save_model).parameters["_internal_call"].default is False, seam("its default")


def test_the_trainers_state_is_the_last_file_of_a_checkpoint(run: Recorded) -> None:
    folder = Path(run.args.output_dir) / "checkpoint-2"
    assert (folder / "trainer_state.json").is_file(), seam("trainer_state.json", "distributed/checkpoints.py")
    for name, files in run.files.items():
        assert "trainer_state.json" not in files, seam(
            f"trainer_state.json is written after {name}, and so marks a complete checkpoint", "distributed/"
        )


def test_the_best_model_is_loaded_by_one_call_after_training(run: Recorded) -> None:
    found = [(args, keywords) for name, args, keywords in run.calls if name == "_load_best_model"]
    assert found == [((), {})], seam("train calls _load_best_model() once at its end")
    assert run.state.best_model_checkpoint, seam("_load_best_model reads state.best_model_checkpoint")


def test_the_accelerator_is_made_once_in_the_constructor_before_anything_is_prepared(run: Recorded) -> None:
    assert run.names()[0] == "create_accelerator_and_postprocess", seam("the accelerator is made first")
    assert run.names().count("create_accelerator_and_postprocess") == 1, seam("the accelerator is made once")


def test_every_batch_goes_through_prepare_inputs_and_an_evaluations_through_prediction_step_first(
    run: Recorded,
) -> None:
    steps = [name for name in run.names() if name in ("prediction_step", "_prepare_inputs")]
    # two batches of training, then two of evaluation; the evaluation's are prepared inside prediction_step
    assert steps == ["_prepare_inputs"] * 2 + ["prediction_step", "_prepare_inputs"] * 2, seam(
        "training_step and prediction_step call _prepare_inputs once per batch"
    )
    given = [args[1] for name, args, _ in run.calls if name == "prediction_step"]
    assert [len(inputs["input_ids"]) for inputs in given] == [4, 2], seam(
        "prediction_step is given the collator's batch, two rows per pair"
    )


def test_resuming_loads_the_model_by_one_call_with_the_checkpoint(run: Recorded, tmp_path) -> None:
    settings = {**CHECKPOINTS, "max_steps": 3, "save_strategy": "no"}
    resumed = runs.trainer(tmp_path, Recorded, ref_model=tiny.model(1), **settings)
    folder = str(Path(run.args.output_dir) / "checkpoint-2")
    resumed.train(resume_from_checkpoint=folder)
    found = [args for name, args, _ in resumed.calls if name == "_load_from_checkpoint"]
    assert found == [(folder,)], seam("train calls _load_from_checkpoint(folder), with no model in plain runs")


def test_loading_a_checkpoint_fills_the_model_of_the_trainer(run: Recorded, tmp_path) -> None:
    other = runs.trainer(tmp_path, DPOTrainer, model=tiny.model(7), ref_model=tiny.model(1))
    other._load_from_checkpoint(str(Path(run.args.output_dir) / "checkpoint-2"))
    for name, tensor in runs.weights(run).items():
        assert torch.equal(runs.weights(other)[name], tensor), seam("_load_from_checkpoint loads into self.model")


def test_under_deepspeed_floats_of_a_batch_are_cast_to_the_engines_dtype(run: Recorded, monkeypatch) -> None:
    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
    monkeypatch.setattr(run, "is_deepspeed_enabled", True)
    monkeypatch.setattr(run, "accelerator", SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin)))
    batch = {"ref_chosen_logps": torch.ones(2), "input_ids": torch.ones(2, 2, dtype=torch.long)}
    dtypes = {name: tensor.dtype for name, tensor in Trainer._prepare_inputs(run, batch).items()}
    assert dtypes == {"ref_chosen_logps": torch.bfloat16, "input_ids": torch.long}, seam(
        "_prepare_inputs casts floats under DeepSpeed", "distributed/precision.py (split_uncast)"
    )


def test_columns_that_are_not_in_the_signature_are_dropped_before_the_collator(run: Recorded) -> None:
    run._signature_columns = None
    run._set_signature_columns_if_needed()
    run._signature_columns += ["kept"]
    rows = tiny.preferences(2).add_column("kept", [1, 2]).add_column("dropped", [3, 4])
    left = run._remove_unused_columns(rows, "training").column_names
    assert "kept" in left, seam("_signature_columns is a list to which names can be added", "trainer.py")
    assert "dropped" not in left, seam("_remove_unused_columns drops what _signature_columns lacks", "trainer.py")


def test_checkpointing_options_are_copied_to_their_newer_name_once(tmp_path) -> None:
    args = runs.config(tmp_path, DPOConfig, gradient_checkpointing_kwargs={"use_reentrant": True})
    if not hasattr(args, "activation_checkpointing_kwargs"):
        pytest.skip("this transformers has the older name alone")
    assert args.activation_checkpointing_kwargs == {"use_reentrant": True}, seam(
        "activation_checkpointing_kwargs is the newer name", "distributed/precision.py (keep_checkpointing)"
    )
    assert "activation_checkpointing_kwargs" in inspect.getsource(Trainer), seam(
        "the trainer reads the newer name alone", "distributed/precision.py (keep_checkpointing)"
    )


def test_zero3_is_known_by_a_weak_reference_in_the_integrations_module(monkeypatch) -> None:
    config = SimpleNamespace(is_zero3=lambda: True)
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", lambda: config)
    assert deepspeed.is_deepspeed_zero3_enabled(), seam("ZeRO-3 is read from that reference", PLACEMENT)
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", None)
    assert not deepspeed.is_deepspeed_zero3_enabled(), seam("without it, models load unsharded", PLACEMENT)


def test_zero3_is_asked_for_when_a_model_is_loaded() -> None:
    from transformers import modeling_utils

    assert modeling_utils.is_deepspeed_zero3_enabled is deepspeed.is_deepspeed_zero3_enabled, seam(
        "loading asks is_deepspeed_zero3_enabled", PLACEMENT
    )


def test_loading_on_one_process_alone_is_asked_for_by_an_environment_variable(monkeypatch) -> None:
    monkeypatch.setattr(fsdp, "_is_torch_distributed_initialized", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    assert fsdp.is_fsdp_enabled(), seam("FSDP_CPU_RAM_EFFICIENT_LOADING is read at each call", PLACEMENT)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")
    assert not fsdp.is_fsdp_enabled(), seam("false loads all weights on every process", PLACEMENT)


def test_the_attention_in_use_stands_in_the_configuration() -> None:
    eager = tiny.model(attn_implementation="eager")
    assert eager.config._attn_implementation == "eager", seam(
        "config._attn_implementation",
        "_trl/attention.py, forward/masks.py, forward/compatibility.py, reference/identity/identity.py",
    )
    assert eager.config.get_text_config()._attn_implementation == "eager", seam(
        "the text configuration has it too", "forward/packed_model.py"
    )
    default = tiny.model().config._attn_implementation
    assert default == "sdpa", seam("a model that was asked for nothing has its choice there", "forward/masks.py")


def test_a_mask_of_four_dimensions_is_taken_as_it_is() -> None:
    model, ids = tiny.model(attn_implementation="sdpa").eval(), torch.tensor([[5, 6, 7, 8]])
    itself = torch.eye(4, dtype=torch.bool)[None, None]
    with torch.no_grad():
        alone = [model(ids[:, k : k + 1], position_ids=torch.tensor([[k]])).logits for k in range(4)]
        masked = model(ids, attention_mask=itself).logits
    torch.testing.assert_close(
        masked, torch.cat(alone, dim=1), msg=seam("a 4-dimensional mask replaces the causal one", "forward/masks.py")
    )


def test_a_model_remembers_the_name_that_it_was_loaded_by(tmp_path) -> None:
    folder = tiny.saved_model(str(tmp_path / "model"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config._name_or_path == folder, seam(
        "config._name_or_path", "reference/model/resolve.py, reference/identity/identity.py"
    )


def test_recurrent_models_say_that_they_keep_a_state() -> None:
    sizes = {"vocab_size": 16, "hidden_size": 8, "state_size": 4, "num_hidden_layers": 1}
    assert MambaForCausalLM(MambaConfig(**sizes))._is_stateful is True, seam(
        "_is_stateful", "forward/compatibility.py (_state_problems)"
    )
    assert tiny.model()._is_stateful is False, seam("_is_stateful", "forward/compatibility.py (_state_problems)")


def test_an_adapter_inside_a_model_is_flagged() -> None:
    model = tiny.model()
    assert not getattr(model, "_hf_peft_config_loaded", False)
    add_inside(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert model._hf_peft_config_loaded is True, seam(
        "_hf_peft_config_loaded", "reference/source.py (reference_identity)"
    )


def test_a_model_is_made_from_a_state_dict_in_memory_and_reports_what_is_missing() -> None:
    policy = tiny.model()
    mend = "reference/model/clone.py (from_memory)"
    settings = {"config": policy.config, "output_loading_info": True, "device_map": {"": "cpu"}}
    copy, report = type(policy).from_pretrained(None, state_dict=policy.state_dict(), **settings)
    assert torch.equal(copy.lm_head.weight, policy.lm_head.weight), seam("from_pretrained(None, state_dict=...)", mend)
    assert not report["missing_keys"], seam("missing_keys is empty for a complete state dict", mend)
    part = {name: tensor for name, tensor in policy.state_dict().items() if "q_proj" not in name}
    _, report = type(policy).from_pretrained(None, state_dict=part, **settings)
    assert any("q_proj" in name for name in report["missing_keys"]), seam("missing_keys names the rest", mend)
    tied = tiny.model(tie_word_embeddings=True)
    assert "lm_head.weight" in tied.all_tied_weights_keys, seam("all_tied_weights_keys", mend)


def test_skipped_modules_are_the_start_or_the_end_of_a_name() -> None:
    mend = "reference/model/quantization.py (skipped_layers)"
    name = "model.layers.0.self_attn.q_proj"
    for pattern in ("q_proj", "self_attn.q_proj", "model.layers.0", name):
        assert not should_convert_module(name, [pattern]), seam(f"{pattern!r} skips {name!r}", mend)
    for pattern in ("model.layers.1", "k_proj", "q_pro"):
        assert should_convert_module(name, [pattern]), seam(f"{pattern!r} does not skip {name!r}", mend)


def test_the_linear_layer_of_gpt2_is_a_class_of_its_own() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.pytorch_utils import Conv1D

    model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2))
    layer = model.transformer.h[0].mlp.c_fc
    mend = "estimate/model_size.py, reference/model/quantization.py (_is_conv1d)"
    assert isinstance(layer, Conv1D), seam("GPT-2's linear layers are Conv1D", mend)
    assert type(layer).__name__ == "Conv1D", seam("GPT-2's linear layers are Conv1D", mend)
    assert layer.weight.shape == (8, 32), seam("Conv1D keeps its weight transposed", mend)


def test_a_file_of_a_local_folder_is_found_under_its_name(tmp_path) -> None:
    from transformers.utils import cached_file

    (tmp_path / "config.json").write_text("{}")
    mend = "reference/identity/files.py"
    assert cached_file(str(tmp_path), "config.json") == str(tmp_path / "config.json"), seam(
        "cached_file(folder, n)", mend
    )
    quiet = ("gated_repo", "missing_entries", "connection_errors")
    settings = {f"_raise_exceptions_for_{kind}": False for kind in quiet}
    found = cached_file("no/such-model", "none.json", local_files_only=True, **settings)
    assert found is None, seam(f"{', '.join(settings)}: nothing is raised", mend)


def test_flash_attention_is_told_by_the_configuration() -> None:
    from transformers.utils.generic import is_flash_attention_requested

    config = tiny.model().config
    mend = "forward/masks.py, forward/compatibility.py"
    assert not is_flash_attention_requested(config), seam("sdpa is not flash attention", mend)
    config._attn_implementation = "flash_attention_2"
    assert is_flash_attention_requested(config), seam("flash_attention_2 is", mend)


def test_a_configuration_sets_up_devices_once_by_one_property() -> None:
    mend = "_trl/constructor.py (without_devices)"
    assert isinstance(vars(TrainingArguments)["_setup_devices"], functools.cached_property), seam(
        "_setup_devices", mend
    )
    args = TrainingArguments("out", use_cpu=True)
    Accelerator(cpu=True)
    with _trl.without_devices(args):
        args.__post_init__()
    assert AcceleratorState._shared_state, seam("without _setup_devices, accelerate's state is left alone", mend)


def test_texts_in_a_mapping_given_as_json_become_numbers_and_truth_values(tmp_path) -> None:
    mend = "_trl/json_text.py (typed_values)"
    text = '{"a": "true", "b": "2", "c": {"d": "0.5"}, "e": "x"}'
    expected = {"a": True, "b": 2, "c": {"d": 0.5}, "e": "x"}
    decoded = TrainingArguments(str(tmp_path), lr_scheduler_kwargs=text, use_cpu=True).lr_scheduler_kwargs
    assert decoded == expected, seam("a mapping given as JSON text has typed values", mend)
    assert _trl.typed_values({**expected, "a": "true", "b": "2", "c": {"d": "0.5"}}) == expected, seam(
        "`_convert_str_dict` makes them so", mend
    )


def test_the_engine_stands_in_the_arguments_before_an_accelerator_exists(tmp_path) -> None:
    """What a launched process sees is tested in tests/distributed/test_starts.py."""
    mend = "_trl/engine.py (planned_engine)"
    plain = TrainingArguments(str(tmp_path), use_cpu=True)
    assert (plain.fsdp_plugin_args, plain.deepspeed_plugin) == (None, None), seam(
        "without FSDP and DeepSpeed, `fsdp_plugin_args` and `deepspeed_plugin` are None", mend
    )
    split = TrainingArguments(str(tmp_path), use_cpu=True, fsdp=True, fsdp_config={"version": 1})
    assert split.fsdp_plugin_args["fsdp_version"] == 1, seam("`fsdp_plugin_args` has FSDP's version", mend)


def test_training_step_leaves_the_gradients_of_a_batch(tmp_path: Path) -> None:
    class Watched(DPOTrainer):
        reached: ClassVar[list[bool]] = []

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            self.reached.append(all(p.grad is not None for p in self.model.parameters()))
            return loss

    settings = {"ref_model": tiny.model(), "max_steps": 2}
    runs.trained(tmp_path, Watched, **settings, gradient_accumulation_steps=2, per_device_train_batch_size=2)
    assert Watched.reached == [True] * 4, seam(
        "training_step(...) runs once per batch, and ends with the backward pass"
    )
