"""The estimate: sizes counted exactly, bytes against real models and a real step, published measurements, known traps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model

from tests.support import runs, tiny
from tests.support.published_models import MODELS
from trl_dpo_ext.cli import main as cli
from trl_dpo_ext.errors import InputError
from trl_dpo_ext.estimate import formulas
from trl_dpo_ext.estimate.formulas import GIB, Quantized, Reference, Training, estimate
from trl_dpo_ext.estimate.model_size import model_size_of
from trl_dpo_ext.estimate.pitfalls import CHECKS, RunContext, find_pitfalls, warnings_of
from trl_dpo_ext.estimate.search import plan
from trl_dpo_ext.estimate.strategy import ParallelStrategy, read_strategy
from trl_dpo_ext.recipe_registry import accelerate_configs

SINGLE = ParallelStrategy("single", 1)
LORA = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_published_weights(name: str) -> None:
    config, published = MODELS[name]
    assert model_size_of(config()).parameters == published


@pytest.mark.parametrize("name", ["llama-3-8b", "qwen2.5-7b", "gpt2-large"])
def test_an_adapter_is_counted_by_peft_itself(name: str) -> None:
    # r x (in + out) of every linear layer but the output layer; all-linear leaves that one out.
    assert model_size_of(MODELS["llama-3-8b"][0](), LORA).trainable == 41943040
    base = model_size_of(MODELS[name][0]())
    adapted = model_size_of(MODELS[name][0](), LORA)
    assert (adapted.parameters, adapted.linear) == (base.parameters, base.linear)
    assert 0 < adapted.trainable < base.parameters / 50


def test_the_counts_are_those_of_a_real_model() -> None:
    model = tiny.model()
    shape = model_size_of(model.config)
    linear = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    assert shape.parameters == model.num_parameters()
    assert shape.linear == sum(m.weight.numel() for m in linear)
    assert shape.embedding == model.get_input_embeddings().weight.numel()
    adapted: Any = get_peft_model(model, LORA)
    assert model_size_of(tiny.model().config, LORA).trainable == adapted.get_nb_trainable_parameters()[0]


def held(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("optim", ["adamw_torch", "rmsprop", "sgd", "adamw_8bit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapter", [False, True])
def test_bytes_of_weights_gradients_and_optimizer_are_those_of_a_real_step(tmp_path, optim, dtype, adapter) -> None:
    model, ref_model = (tiny.model().to(getattr(torch, dtype)) for _ in range(2))
    others = {"peft_config": LORA} if adapter else {"ref_model": ref_model}
    run = runs.trainer(tmp_path, model=model, optim=optim, max_steps=1, **others)
    gradients: list[int] = []
    run.create_optimizer()
    trained = [p for p in run.model.parameters() if p.requires_grad]
    run.optimizer.register_step_pre_hook(lambda *_: gradients.append(held(p.grad for p in trained)))
    run.train()
    shape = model_size_of(tiny.model().config, LORA if adapter else None)
    training = Training(dtype=dtype, adapter=adapter, optimizer=optim, pairs=4, tokens=16)
    engine = ParallelStrategy("single", 1, half=False)
    assert formulas.weights(shape, training, engine) == held(run.model.parameters())
    assert formulas.gradients(shape, training, engine) == gradients[0]
    optimizer = run.optimizer.optimizer if hasattr(run.optimizer, "optimizer") else run.optimizer
    states = held(
        tensor
        for state in optimizer.state.values()
        for tensor in state.values()
        if isinstance(tensor, torch.Tensor) and tensor.dim()
    )
    if optim == "adamw_8bit":  # tensors below 4096 values, which are all of these, keep 32-bit states
        assert states == formulas.optimizer(shape, Training(adapter=adapter, optimizer="adamw_bnb_32bit"), engine)
    else:
        assert states == formulas.optimizer(shape, training, engine)


def test_8_bit_states_take_what_bitsandbytes_allocates() -> None:
    from bitsandbytes.optim import AdamW8bit, GlobalOptimManager

    GlobalOptimManager.get_instance().initialize()  # it remembers what transformers has asked for in other tests
    weight = torch.nn.Parameter(torch.randn(256, 128))
    weight.grad = torch.randn_like(weight)
    optimizer = AdamW8bit([weight])
    optimizer.step()
    state = optimizer.state[weight]
    taken = held(state[name] for name in ("state1", "state2", "absmax1", "absmax2"))
    assert formulas.state_bytes("adamw_bnb_8bit", 4) * weight.numel() == taken


@pytest.mark.parametrize("double", [False, True])
def test_4_bit_weights_take_what_bitsandbytes_allocates(double: bool) -> None:
    import bitsandbytes.functional as bnb

    weight = torch.randn(1024, 1024)
    packed, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=double)
    taken = held([packed, state.absmax, *([state.state2.absmax] if double else [])])
    assert Quantized(4, double).bytes * weight.numel() == pytest.approx(taken, rel=1e-3)


# PEFT's documentation, "DeepSpeed" and "Fully Sharded Data Parallel": GB per GPU as the authors report them for supervised
# fine-tuning of Llama-2-70B with rank 8, sequences of 2048, gradient checkpointing; they built whole logits.
PUBLISHED = {
    "LoRA, ZeRO-3, 8 GPUs": (ParallelStrategy("zero3", 8), None, 8, 64),
    "LoRA, FSDP, 8 GPUs": (ParallelStrategy("fsdp1", 8), None, 8, 76),
    "QLoRA, FSDP, 2 GPUs": (ParallelStrategy("fsdp1", 2), Quantized(4, True, True), 2, 35.6),
    "QLoRA, ZeRO-3, 2 GPUs": (ParallelStrategy("zero3", 2), Quantized(4, True, True), 2, 36.6),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_measurements_come_out_within_fifteen_percent(case: str) -> None:
    engine, quantized, rows, measured = PUBLISHED[case]
    adapter = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    shape = model_size_of(MODELS["llama-2-70b"][0](), adapter)
    training = Training(
        dtype="bfloat16", adapter=True, adapter_dropout=True, quantized=quantized, pairs=rows // 2, tokens=2048
    )
    ours = estimate(shape, training, engine)
    logits = 10.0 * training.batch_tokens * shape.vocabulary
    with_whole_logits = ours.total + 1.2 * (logits - ours.head)
    assert with_whole_logits / GIB == pytest.approx(measured, rel=0.15)


def total(name: str, engine: ParallelStrategy, peft: Any = None, **settings: Any) -> float:
    return estimate(model_size_of(MODELS[name][0](), peft), Training(**settings), engine).total / GIB


def test_each_way_of_saving_memory_saves_it() -> None:
    one = {"pairs": 1, "tokens": 1024, "accumulates": True}
    loaded, nf4 = Reference("loaded"), Reference("loaded", "bfloat16", Quantized(4, True))
    full, stored = total("qwen2.5-7b", SINGLE, reference=loaded, **one), total("qwen2.5-7b", SINGLE, **one)
    assert full - stored == pytest.approx(1.1 * 4 * 7615616512 / GIB)
    assert stored < total("qwen2.5-7b", SINGLE, reference=nf4, **one) < full
    assert total("qwen2.5-7b", SINGLE, optimizer="adamw_bnb_8bit", **one) < stored
    lora = total("qwen2.5-7b", SINGLE, LORA, adapter=True, dtype="bfloat16", **one)
    qlora = total("qwen2.5-7b", SINGLE, LORA, adapter=True, dtype="bfloat16", quantized=Quantized(4, True), **one)
    assert qlora < lora < stored
    by_stage = [
        total("qwen2.5-7b", ParallelStrategy(kind, 8), dtype="bfloat16", **one) for kind in ("zero1", "zero2", "zero3")
    ]
    assert by_stage == sorted(by_stage, reverse=True)
    away = ParallelStrategy("zero3", 8, offload=True, offload_optimizer=True)
    offloaded = estimate(model_size_of(MODELS["qwen2.5-7b"][0]()), Training(dtype="bfloat16", pairs=1), away)
    assert (offloaded.weights, offloaded.gradients, offloaded.optimizer) == (0, 0, 0)
    assert offloaded.host == pytest.approx(16 * 7615616512)


def test_a_reference_is_split_where_the_policy_is_and_4_bits_never() -> None:
    shape = model_size_of(MODELS["llama-3.1-70b"][0]())
    loaded = Training(dtype="bfloat16", reference=Reference("loaded", "bfloat16"))
    by_engine = {
        kind: formulas.reference_model(shape, loaded, ParallelStrategy(kind, 8))
        for kind in ("ddp", "zero2", "zero3", "fsdp2")
    }  # type: ignore[arg-type]
    whole = 2 * shape.parameters
    assert by_engine == {"ddp": whole, "zero2": whole, "zero3": whole / 8, "fsdp2": whole / 8}
    nf4 = Training(dtype="bfloat16", reference=Reference("loaded", "bfloat16", Quantized(4, True)))
    assert formulas.reference_model(shape, nf4, ParallelStrategy("fsdp2", 8)) == formulas.reference_model(
        shape, nf4, SINGLE
    )


def test_every_shipped_accelerate_config_is_read() -> None:
    kinds = {name: read_strategy(file) for name, file in accelerate_configs().items()}
    assert kinds["cpu"].on_cpu
    for name, engine in kinds.items():
        if name[:4] in ("fsdp", "zero"):
            assert engine.kind == name[:5]
            assert engine.offload == name.endswith("offload")


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({"distributed_type": "NO"}, "single"),
        ({"distributed_type": False}, "single"),  # what YAML makes of a bare NO
        ({"distributed_type": "MULTI_GPU", "num_processes": 4}, "ddp"),
        ({"distributed_type": "FSDP", "num_processes": 4, "fsdp_config": {"fsdp_version": 1}}, "fsdp1"),
        ({"distributed_type": "FSDP", "num_processes": 4, "fsdp_config": {"fsdp_version": 2}}, "fsdp2"),
        ({"distributed_type": "DEEPSPEED", "num_processes": 4, "deepspeed_config": {"zero_stage": 2}}, "zero2"),
    ],
)
def test_the_engine_is_read_from_an_accelerate_config(tmp_path, keys: dict[str, Any], kind: str) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(keys))
    assert read_strategy(tmp_path / "a.yaml").kind == kind


FSDP = {"distributed_type": "FSDP", "num_processes": 16, "num_machines": 2}


@pytest.mark.parametrize(
    ("fsdp", "shards", "keeps"),
    [
        ({"fsdp_version": 1}, 16, False),
        ({"fsdp_version": 1, "fsdp_sharding_strategy": "SHARD_GRAD_OP"}, 16, True),
        ({"fsdp_version": 1, "fsdp_sharding_strategy": 4}, 8, False),
        ({"fsdp_version": 1, "fsdp_sharding_strategy": "HYBRID_SHARD_ZERO2"}, 8, True),
        ({"fsdp_version": 2, "fsdp_reshard_after_forward": False}, 16, True),
        ({"fsdp_version": 2}, 16, False),
    ],
)
def test_how_fsdp_shards_is_read(tmp_path, fsdp: dict[str, Any], shards: int, keeps: bool) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({**FSDP, "fsdp_config": fsdp}))
    engine = read_strategy(tmp_path / "a.yaml")
    assert (engine.splits, engine.keeps_gathered) == (shards, keeps)
    shape = model_size_of(MODELS["llama-3-8b"][0]())
    kept = (
        estimate(shape, Training(), engine).sharding
        - estimate(shape, Training(), ParallelStrategy("fsdp2", 16)).sharding
    )
    assert kept == pytest.approx(2 * shape.linear * (30 / 32) if keeps else 0)


def test_deepspeeds_own_file_is_read(tmp_path) -> None:
    zero = {"stage": 3, "offload_param": {"device": "cpu"}, "offload_optimizer": {"device": "none"}}
    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": zero}))
    keys = {"distributed_type": "DEEPSPEED", "num_processes": 8}
    keys["deepspeed_config"] = {"deepspeed_config_file": str(tmp_path / "zero.json")}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(keys))
    engine = read_strategy(tmp_path / "a.yaml")
    assert (engine.kind, engine.offload, engine.offload_optimizer) == ("zero3", True, False)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "is not valid YAML"),
        ("- a", "must hold a YAML mapping"),
        ("distributed_type: TPU\nnum_processes: 8", "distributed_type TPU is not one that this package knows"),
        ("num_processes: many", "invalid literal for int"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 4}", "there is no ZeRO stage 4"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: no.json}", "No such file"),
        ("distributed_type: FSDP\nfsdp_config: {fsdp_sharding_strategy: ALL}", "fsdp_sharding_strategy ALL is none of"),
    ],
)
def test_a_configuration_that_is_none_is_named(tmp_path, text: str, expected: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InputError, match=expected) as caught:
        read_strategy(tmp_path / "a.yaml")
    assert "a.yaml" in str(caught.value)


FULL_BF16 = Training(dtype="bfloat16")
LORA_BF16 = Training(dtype="bfloat16", adapter=True)
QLORA = Training(dtype="bfloat16", adapter=True, quantized=Quantized(4, True))


def situation(**changes: Any) -> RunContext:
    given = {"training": Training(), "engine": SINGLE, "learning_rate": 5e-7, "batch": 128}
    return RunContext(**{**given, "losses": (("sigmoid", {"beta": 0.1}),), **changes})


WALKS_IN = {
    "bf16_weights": {"training": FULL_BF16},
    "float32_base": {"training": Training(adapter=True)},
    "small_beta": {"losses": (("sigmoid_norm", {"beta": 0.1}),)},
    "whole_4bit_weights": {"training": QLORA, "engine": ParallelStrategy("fsdp2", 8)},
    "unsaved_states": {"training": Training(optimizer="adamw_bnb_8bit"), "engine": ParallelStrategy("fsdp1", 8)},
    "other_batch": {"published_batch": 64},
}
STAYS_OUT = {
    "bf16_weights": [{}, {"training": FULL_BF16, "engine": ParallelStrategy("zero3", 8)}, {"training": LORA_BF16}],
    "float32_base": [
        {"training": LORA_BF16},
        {"training": Training(adapter=True), "engine": ParallelStrategy("single", 1, on_cpu=True)},
    ],
    "small_beta": [{"losses": (("sigmoid_norm", {"beta": 5.0}),)}],
    "whole_4bit_weights": [{"training": QLORA}],
    "unsaved_states": [{"training": Training(optimizer="adamw_bnb_8bit")}, {"engine": ParallelStrategy("fsdp1", 8)}],
    "other_batch": [{"published_batch": 128}, {"published_batch": None}],
}


@pytest.mark.parametrize("name", CHECKS)
def test_every_trap_is_seen_and_nothing_else_is(name: str) -> None:
    found = find_pitfalls(situation(**WALKS_IN[name]))
    assert list(found) == [name]
    (line,) = warnings_of(found)
    assert line.endswith(f"(ignore_pitfalls: {name})")
    assert find_pitfalls(situation(**WALKS_IN[name]), ignore=[name]) == {}
    for harmless in STAYS_OUT[name]:
        assert find_pitfalls(situation(**harmless)) == {}


def test_another_number_of_gpus_is_answered_with_the_accumulation_that_restores_the_batch() -> None:
    four = situation(engine=ParallelStrategy("zero3", 4), per_device=8, accumulation=2, batch=64, published_batch=128)
    assert "Set gradient_accumulation_steps: 4" in find_pitfalls(four)["other_batch"][0]


@pytest.fixture
def model_config(tmp_path) -> str:
    MODELS["llama-3-8b"][0]().save_pretrained(tmp_path / "llama")
    return str(tmp_path / "llama" / "config.json")


RUN = ["--model_name_or_path", "nobody/llama", "--output_dir", "out", "--report_to", "none"]


def test_the_command_says_what_fits_from_a_config_file_alone(model_config, capsys) -> None:
    argv = [*RUN, "--model_config", model_config, "--dtype", "bfloat16", "--per_device_train_batch_size", "1"]
    assert cli.main(["estimate", *argv, "--accelerate_config", "single_gpu", "--gpu_memory", "24"]) == 0
    printed = capsys.readouterr().out
    assert "LlamaForCausalLM, 8.03 billion parameters, all trained; 1 x sigmoid(beta=0.1)" in printed
    assert "single_gpu x 1 (chosen)" in printed
    assert "Expected loss at the first step: 0.6931" in printed
    assert "Warning: Weights in bfloat16 hardly move at learning_rate 1e-06" in printed
    assert "(ignore_pitfalls: bf16_weights)" in printed


def test_the_smallest_that_fits_is_the_simplest(model_config) -> None:
    full = [*RUN, "--dtype", "bfloat16", "--per_device_train_batch_size", "1", "--ignore_pitfalls", "bf16_weights"]
    assert plan(full, 80, model_config=model_config).smallest.name == "zero1"
    assert plan(full, 40, model_config=model_config).smallest.name == "fsdp2"
    adapter = [*full, "--use_peft", "--lora_target_modules", "all-linear"]
    assert plan(adapter, 24, model_config=model_config).smallest.name == "single_gpu"
    nothing = plan(full, 1, model_config=model_config)
    assert nothing.smallest is None


def test_what_fits_and_then_hardly_trains_is_not_the_smallest(model_config, capsys) -> None:
    bf16 = [*RUN, "--dtype", "bfloat16", "--per_device_train_batch_size", "1", "--learning_rate", "5e-7"]
    bf16 += ["--precompute_ref_log_probs", "true", "--model_config", model_config]
    assert cli.main(["estimate", *bf16, "--accelerate_config", "zero3"]) == 0
    printed = capsys.readouterr().out
    rows = {line.split(" x ")[0]: line for line in printed.splitlines() if " x " in line}
    assert rows["single_gpu"].endswith("yes, but bf16_weights")
    assert rows["zero3"].endswith("  yes")
    assert "Smallest that fits 80 GB: zero1 on 8 GPUs." in printed
    assert "Warning" not in printed  # of the run's own configuration there is nothing to say
    one = [*bf16, "--gpus", "1", "--accelerate_config", "single_gpu", "--ignore_pitfalls", "bf16_weights"]
    assert cli.main(["estimate", *one]) == 0
    assert "Smallest that fits 80 GB: single_gpu on 1 GPU." in capsys.readouterr().out


def test_a_trap_that_no_configuration_avoids_does_not_keep_one_from_being_the_smallest(model_config) -> None:
    adapter = [*RUN, "--use_peft", "--lora_target_modules", "all-linear", "--per_device_train_batch_size", "1"]
    found = plan(adapter, 80, model_config=model_config)
    assert all("float32_base" in row.traps for row in found.rows)
    assert found.smallest is not None
    assert found.smallest.name == "single_gpu"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--gpu_memory", "0", "--gpus", "-2"],
            ["--gpu_memory must be above 0; got 0.", "--gpus must be 1 or more; got -2."],
        ),
        (["--gpu_memory", "nan"], ["--gpu_memory must be above 0; got nan."]),
        (
            ["--accelerate_config", "zeor3"],
            ["--accelerate_config zeor3 is neither a file nor the name of a shipped one."],
        ),
    ],
)
def test_wrong_numbers_are_said_before_a_configuration_is_looked_for(flags, expected, capsys) -> None:
    assert cli.main(["estimate", *RUN, *flags]) == 2
    error = capsys.readouterr().err
    assert all(line in error for line in expected)
    assert "neither on this machine nor reachable" not in error


def test_flags_say_what_is_estimated(model_config) -> None:
    def settings(*flags: str) -> Training:
        return plan([*RUN, *flags], model_config=model_config).training

    base = settings("--dtype", "bfloat16", "--max_length", "512", "--gradient_accumulation_steps", "4")
    assert (base.dtype, base.tokens, base.accumulates, base.reference) == (
        "bfloat16",
        512,
        True,
        Reference("loaded", "bfloat16"),
    )
    assert settings("--precompute_ref_log_probs", "true").reference == Reference("stored")
    assert settings("--loss_type", "simpo").reference == Reference("none")
    qlora = settings("--use_peft", "--load_in_4bit", "--bnb_4bit_quant_storage", "bfloat16", "--lora_dropout", "0")
    assert qlora.quantized == Quantized(4, False, True)
    assert (qlora.reference.kind, qlora.adapter_dropout) == ("adapter off", False)
    assert settings("--optim", "adamw_bnb_8bit").optimizer == "adamw_bnb_8bit"


def test_without_the_models_config_the_error_says_how_to_give_it(capsys) -> None:
    assert cli.main(["estimate", *RUN]) == 2
    error = capsys.readouterr().err
    assert "The configuration of nobody/llama is neither on this machine nor reachable" in error
    assert "--model_config FILE" in error


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "no such file"),
        ("{", "not valid JSON"),
        ("{}", "names no model_type"),
        ('{"model_type": "none"}', "none"),
    ],
)
def test_a_model_config_that_is_none_is_named(tmp_path, text: str | None, expected: str) -> None:
    file = tmp_path / "config.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=expected):
        plan(RUN, model_config=str(file))


def test_an_unknown_trap_is_an_error() -> None:
    with pytest.raises(InputError, match="ignore_pitfalls: unknown bf16_weight; one of bf16_weights"):
        plan([*RUN, "--ignore_pitfalls", "bf16_weight"])


def test_training_says_what_will_run_and_warns_like_the_estimate(tmp_path, capsys) -> None:
    tiny.preferences(8).to_json(str(tmp_path / "pairs.jsonl"))
    recipe = tmp_path / "recipe.yaml"
    keys = {
        "model_name_or_path": tiny.saved_model(str(tmp_path / "model")),
        "dataset_name": str(tmp_path / "pairs.jsonl"),
        "output_dir": str(tmp_path / "out"),
        "loss_type": "sigmoid_norm",
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 1,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
    }
    recipe.write_text("# A recipe\n#\n# Batch        128 pairs per step\n" + yaml.safe_dump(keys))
    with pytest.warns(UserWarning, match="ignore_pitfalls") as caught:
        assert cli.main(["train", "--config", str(recipe)]) == 0
    said = [str(warning.message) for warning in caught]
    assert any("beta=0.1 with sigmoid_norm" in message for message in said)
    assert any("the recipe's 128. Set gradient_accumulation_steps: 64" in message for message in said)
    printed = capsys.readouterr().out
    assert "at the first step 0.6931" in printed
    assert "Reference: LlamaForCausalLM in float32, 0.0 MiB of weights on this process" in printed
    assert "Batch: 4 pairs per step" in printed
    assert "Steps: 2 (1 epochs of 2)" in printed
    state = json.loads((Path(keys["output_dir"]) / "trainer_state.json").read_text())
    assert state["global_step"] == 2
