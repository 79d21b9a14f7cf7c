"""Estimated bytes against real models, a real training step, and published measurements."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, CLIPVisionModel
from trl import ModelConfig

from tests.support import runs, tiny, vision_families
from tests.support.lists import lists
from tests.support.published_models import MODELS
from trl_dpo_ext import load_reference
from trl_dpo_ext.estimate import formulas
from trl_dpo_ext.estimate.formulas import GIB, Quantized, Reference, Training, estimate
from trl_dpo_ext.estimate.from_args import training_from_args
from trl_dpo_ext.estimate.model_size import compute_model_size
from trl_dpo_ext.estimate.strategy import ParallelStrategy
from trl_dpo_ext.estimate.vision_tower import VisionTower
from trl_dpo_ext.reference.correction.layers import terms
from trl_dpo_ext.reference.model.memory import weight_bytes

SINGLE = ParallelStrategy("single", 1)


LORA = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")


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
    size = compute_model_size(tiny.model().config, LORA if adapter else None)
    training = Training(dtype=dtype, adapter=adapter, optimizer=optim, pairs=4, tokens=16)
    strategy = ParallelStrategy("single", 1, half_precision=False)
    assert formulas.weights(size, training, strategy) == held(run.model.parameters())
    assert formulas.gradients(size, training, strategy) == gradients[0]
    optimizer = run.optimizer.optimizer if hasattr(run.optimizer, "optimizer") else run.optimizer
    states = held(
        tensor
        for state in optimizer.state.values()
        for tensor in state.values()
        if isinstance(tensor, torch.Tensor) and tensor.dim()
    )
    if optim == "adamw_8bit":  # tensors below 4096 values, which are all of these, keep 32-bit states
        assert states == formulas.optimizer(size, Training(adapter=adapter, optimizer="adamw_bnb_32bit"), strategy)
    else:
        assert states == formulas.optimizer(size, training, strategy)


@pytest.mark.parametrize("size", [2, 3, 4, 7])
def test_rows_and_positions_are_those_of_a_real_batch_of_lists(tmp_path, size: int) -> None:
    run = runs.trainer(tmp_path, train_dataset=lists((size, size, size)), per_device_train_batch_size=3)
    fed = run.data_collator([*run.train_dataset])["input_ids"]
    training = Training(pairs=3, completions=size, tokens=fed.size(1))
    assert (training.rows, training.batch_tokens) == (len(fed), fed.numel())


def test_activations_and_output_layer_of_lists_are_those_of_as_many_rows() -> None:
    model = compute_model_size(MODELS["qwen2.5-0.5b"][0]())
    for settings in ({}, {"eager_attention": True}, {"masked_attention": True}, {"checkpointing": False}):
        of_lists = estimate(model, Training(pairs=2, completions=7, **settings), SINGLE)
        of_pairs = estimate(model, Training(pairs=8, **settings), SINGLE)
        assert of_lists == of_pairs
        assert of_lists.total > estimate(model, Training(pairs=2, **settings), SINGLE).total


@pytest.mark.parametrize(("kind", "rank"), [("nf4", 4), ("nf4", 7), ("int8", 16)])
def test_the_terms_of_a_corrected_reference_take_what_is_estimated(kind: str, rank: int) -> None:
    data = [list(range(5, 25))] * 6
    reference = load_reference(tiny.model(), quantization=kind, correction_rank=rank, correction_data=data)
    size = compute_model_size(tiny.model().config)
    expected = held(buffer for term in terms(reference) for buffer in term.buffers())
    assert formulas.low_rank_terms(size, rank) == expected > 0
    bits = Quantized(8 if kind == "int8" else 4)
    plain, corrected = (Training(reference=Reference("loaded", quantized=bits, correction_rank=at)) for at in (0, rank))
    difference = formulas.reference_model(size, corrected, SINGLE) - formulas.reference_model(size, plain, SINGLE)
    assert difference == expected


def test_a_correction_of_rank_40_on_a_7b_model_has_its_published_size() -> None:
    """40 x (in + out) bytes of 28 layers, Qwen2.5: q and o 2 x 7168, k and v 2 x 4096, gate, up, down 3 x 22528."""
    size = compute_model_size(MODELS["qwen2.5-7b"][0]())
    sides = 28 * (2 * 7168 + 2 * 4096 + 3 * 22528)
    assert formulas.low_rank_terms(size, 40) == 40 * (sides + 4 * 28 * 7)


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
    strategy, quantized, rows, measured = PUBLISHED[case]
    adapter = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM")
    size = compute_model_size(MODELS["llama-2-70b"][0](), adapter)
    training = Training(
        dtype="bfloat16", adapter=True, adapter_dropout=True, quantized=quantized, pairs=rows // 2, tokens=2048
    )
    ours = estimate(size, training, strategy)
    logits = 10.0 * training.batch_tokens * size.vocabulary
    with_whole_logits = ours.total + 1.2 * (logits - ours.head)
    assert with_whole_logits / GIB == pytest.approx(measured, rel=0.15)


def total(name: str, strategy: ParallelStrategy, peft: Any = None, **settings: Any) -> float:
    return estimate(compute_model_size(MODELS[name][0](), peft), Training(**settings), strategy).total / GIB


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
    offloaded = estimate(compute_model_size(MODELS["qwen2.5-7b"][0]()), Training(dtype="bfloat16", pairs=1), away)
    assert (offloaded.weights, offloaded.gradients, offloaded.optimizer) == (0, 0, 0)
    assert offloaded.host == pytest.approx(16 * 7615616512)


def test_a_reference_is_split_where_the_policy_is_and_4_bits_never() -> None:
    size = compute_model_size(MODELS["llama-3.1-70b"][0]())
    loaded = Training(dtype="bfloat16", reference=Reference("loaded", "bfloat16"))
    by_strategy = {
        kind: formulas.reference_model(size, loaded, ParallelStrategy(kind, 8))
        for kind in ("ddp", "zero2", "zero3", "fsdp2")
    }  # type: ignore[arg-type]
    whole = 2 * size.parameters
    assert by_strategy == {"ddp": whole, "zero2": whole, "zero3": whole / 8, "fsdp2": whole / 8}
    nf4 = Training(dtype="bfloat16", reference=Reference("loaded", "bfloat16", Quantized(4, True)))
    assert formulas.reference_model(size, nf4, ParallelStrategy("fsdp2", 8)) == formulas.reference_model(
        size, nf4, SINGLE
    )


def test_masks_of_padded_rows_are_kept_by_each_layer_without_checkpointing() -> None:
    config = tiny.model().config
    config.num_hidden_layers = 3
    size = compute_model_size(config)
    half = ParallelStrategy("single", 1, half_precision=True)
    kept = []
    for masked in (False, True):
        for checkpointing in (False, True):
            training = Training(pairs=8, tokens=2048, checkpointing=checkpointing, masked_attention=masked)
            kept.append(formulas.activations(size, training, half))
    mask = 2 * 16 * 2048**2  # two bytes for each of 16 rows' squares
    assert kept[2][0] - kept[0][0] == 3 * mask
    assert kept[3][0] == kept[1][0]
    assert kept[3][1] - kept[1][1] == pytest.approx(1.25 * mask)


def test_a_quantized_reference_keeps_its_vision_tower_and_a_stored_one_needs_no_model() -> None:
    model = vision_families.model("qwen2.5-vl")
    size = compute_model_size(model.config)
    int8 = Training(reference=Reference("loaded", "float32", Quantized(8)))
    layers = [m for n, m in model.named_modules() if "language_model" in n and isinstance(m, torch.nn.Linear)]
    scales = 4 * sum(layer.out_features for layer in layers)
    reference = load_reference(model, quantization="int8")
    expected = sum(t.numel() * t.element_size() for t in reference.buffers())  # positions
    assert formulas.reference_model(size, int8, SINGLE) + scales + expected == weight_bytes(reference)["all"]
    assert formulas.reference_model(size, Training(reference=Reference("stored")), SINGLE) == 0


@pytest.mark.parametrize("kind", ["clip", "qwen2.5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_of_a_tower_are_at_most_what_is_estimated(kind: str, dtype: torch.dtype) -> None:
    """The estimate takes the block that keeps most; others keep half of that or more."""
    width, patches, layers = 64, 256, 3
    if kind == "clip":
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "patch_size": 4}
        tower: Any = CLIPVisionModel(CLIPVisionConfig(**sizes, num_attention_heads=4, image_size=64)).to(dtype)
        inputs = {"pixel_values": torch.randn(1, 3, 64, 64, dtype=dtype)}
    else:
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "depth": layers, "patch_size": 4}
        config = vision_families.FAMILIES["qwen2.5-vl"].config()
        config.vision_config = type(config.vision_config)(**sizes, num_heads=4, out_hidden_size=32)
        tower = AutoModelForImageTextToText.from_config(config, dtype=dtype).model.visual
        inputs = {"hidden_states": torch.randn(patches, 96, dtype=dtype), "grid_thw": torch.tensor([[1, 16, 16]])}
    kept = {parameter.untyped_storage().data_ptr(): 0 for parameter in tower.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        alive.append(tensor)  # so that no address is used twice
        return tensor

    alive: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        tower(**inputs)
    estimated, _ = VisionTower(layers, width, 4 * width, 0, 1, patches).activations(
        patches, dtype.itemsize, half=False, trained=True, checkpointing=False
    )
    assert 0.4 * estimated < sum(kept.values()) < 1.15 * estimated


def test_without_a_max_length_rows_of_images_are_not_as_long_as_the_model_allows(tmp_path) -> None:
    config = vision_families.FAMILIES["qwen2.5-vl"].config()
    config.text_config.max_position_embeddings = 128_000
    args = runs.config(tmp_path, max_length=None)
    tokens = {
        n: training_from_args(args, ModelConfig(), args.loss_mixture(), config, image_tokens=n).tokens for n in (0, 986)
    }
    assert tokens == {0: 128_000, 986: 2048 + 986}
