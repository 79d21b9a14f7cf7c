"""Peak memory of a training step, in bytes per GPU. Every formula of the estimate stands here, with its source.

Sources by letter, named again where they are used:

- A: Hugging Face, "Model memory anatomy": per parameter 4 + 2 bytes of weights in mixed precision, 4 of gradients, 8 of
  AdamW's states (2 with 8-bit states).
- B: Rajbhandari et al., ZeRO, arXiv 1910.02054, section 3: what each stage splits; 2 + 2 + 12 bytes per parameter.
- C: Dettmers et al., QLoRA, arXiv 2305.14314, section 3: 4 bits per weight, and per block of 64 one float32 constant,
  or 0.127 bits per weight with double quantization.
- D: PyTorch's documentation of DistributedDataParallel: its buckets take as much as the gradients.
- E: transformers' `Trainer.create_optimizer`: embedding tables keep 32-bit states under 8-bit optimizers.
- F: TRL 1.16: `prepare_deepspeed` and `prepare_fsdp` (how a reference is placed), `chunked_logprob` (tiles of 4096
  tokens x 32768 words instead of whole logits), 4-bit models' adapters in bf16.
- G: DeepSpeed's defaults: buckets of 5e8 elements, 1e9 live parameters in stage 3.
- H: measured for this project: bytes that one decoder layer saves for its backward pass, with saved-tensor hooks on
  layers of Qwen2.5 and Llama 3 on a CPU (PyTorch's scaled-dot-product attention).
- I: this project's allowance for the allocator and the context, set so that published measurements of PEFT's
  documentation (70B with LoRA and QLoRA under ZeRO-3 and FSDP) come out within 15 %. On one GPU and under DDP it rests
  on no measurement: `benchmarks/estimate_peak.py` makes one.

Not modeled: mixtures of experts (their activations), vision towers, prompts shared between rows (less, by how long the
prompts are), and the pass that computes reference log-probs before training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .model_size import ModelSize
from .strategy import ParallelStrategy

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
USABLE = 15 / 16
"""Share of a GPU's nominal gigabytes that an estimate in GiB may fill: 75 of 80."""

_TILE_TOKENS, _TILE_WORDS = 4096, 32768  # F
_STATES = {"sgd": 0, "rmsprop": 1, "adagrad": 1, "lion": 1, "adafactor": 0}  # tensors per parameter; two in AdamW's kin
_BLOCK_8BIT = 256  # one float32 constant per block and state, in bitsandbytes' optimizers


@dataclass(frozen=True, slots=True)
class Quantized:
    """A model whose linear layers bitsandbytes holds in few bits."""

    bits: Literal[4, 8] = 4
    double: bool = False
    shardable: bool = False
    """Whether its storage type can be split (`bnb_4bit_quant_storage` set to a float type)."""

    @property
    def bytes(self) -> float:
        """Per weight. Source C."""
        if self.bits == 8:
            return 1.0  # the constants, one per row, are left out
        return 0.5 + (0.127 / 8 if self.double else 4 / 64)


@dataclass(frozen=True, slots=True)
class Reference:
    """What the reference log-probs come from while training."""

    kind: Literal["none", "loaded", "stored", "adapter off"] = "none"
    dtype: str = "float32"
    quantized: Quantized | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How a model is trained, as far as memory depends on it."""

    dtype: str = "float32"
    adapter: bool = False
    adapter_dropout: bool = False
    quantized: Quantized | None = None
    optimizer: str = "adamw_torch"
    pairs: int = 8
    """Pairs per GPU and forward pass."""
    tokens: int = 1024
    """Of a row: prompt and answer."""
    accumulates: bool = False
    checkpointing: bool = True
    eager_attention: bool = False
    reference: Reference = field(default_factory=Reference)

    @property
    def batch_tokens(self) -> int:
        """Token positions of a forward pass: two rows per pair."""
        return 2 * self.pairs * self.tokens


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on each GPU at the peak of a step; `host` is on each machine, for what is offloaded."""

    weights: float
    gradients: float
    optimizer: float
    reference: float
    activations: float
    head: float
    sharding: float
    """What the engine holds for a while: gathered layers, buckets."""
    overhead: float
    host: float = 0.0

    @property
    def total(self) -> float:
        """The sum of all that is on the GPU."""
        parts = (self.weights, self.gradients, self.optimizer, self.reference)
        return sum(parts) + self.activations + self.head + self.sharding + self.overhead

    def fits(self, gpu_memory: float) -> bool:
        """Whether it fits on a GPU of `gpu_memory` nominal gigabytes."""
        return self.total / GIB <= USABLE * gpu_memory


def estimate(shape: ModelSize, training: Training, engine: ParallelStrategy) -> Memory:
    """The peak of one training step.

    Example:
        >>> from transformers import LlamaConfig
        >>> from .model_size import model_size_of
        >>> config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=320)
        >>> small = model_size_of(config)
        >>> estimate(small, Training(), ParallelStrategy("single", 1)).optimizer / small.parameters  # AdamW in float32
        8.0
    """
    held, grads, states = (part(shape, training, engine) for part in (weights, gradients, optimizer))
    away = 0.0
    if engine.offload:
        away, held, grads, states = held + grads + states, 0.0, 0.0, 0.0
    elif engine.offload_optimizer:
        away, states = states, 0.0
    reference = reference_model(shape, training, engine)
    stored, layer = activations(shape, training, engine)
    head = output_head(shape, training, engine)
    live = sharding(shape, training, engine)
    # The largest layer's and the head's backward passes do not happen at the same time.
    working = stored + max(0.0, layer - head)
    used = held + grads + states + reference + working + head + live
    share, constant = _allowance(engine)
    per_machine = engine.processes / engine.machines
    return Memory(held, grads, states, reference, working, head, live, share * used + constant, host=away * per_machine)


def weights(shape: ModelSize, t: Training, engine: ParallelStrategy) -> float:
    """The policy. Trained whole: A on one GPU and under DDP; B under ZeRO; FSDP with mixed precision keeps float32."""
    size = _held(t, engine)
    if t.quantized:
        base = t.quantized.bytes * shape.linear + BYTES[t.dtype] * (shape.parameters - shape.linear)
        split = engine.splits if engine.shards_weights and t.quantized.shardable else 1
        return base / split + _adapter_bytes(t, engine) * shape.trainable / _if_sharded(engine)
    if t.adapter:
        return (size * shape.parameters + _adapter_bytes(t, engine) * shape.trainable) / _if_sharded(engine)
    # Autocast keeps half-precision copies of float32 weights through a forward pass; gradients are there by then only
    # where they are accumulated, and the copies live on only where no layer is run again.
    cached = size == 4 and engine.half and not _is_sharding(engine) and (t.accumulates or not t.checkpointing)
    return (size + (2 if cached else 0)) * shape.parameters / _if_sharded(engine)


def gradients(shape: ModelSize, t: Training, engine: ParallelStrategy) -> float:
    """One value per trained parameter, in its precision (A); split from ZeRO-2 on (B) and under FSDP."""
    size = _adapter_bytes(t, engine) if t.adapter else _held(t, engine)
    split = engine.splits if engine.shards_weights or engine.kind == "zero2" else 1
    return size * shape.trainable / split


def optimizer(shape: ModelSize, t: Training, engine: ParallelStrategy) -> float:
    """The optimizer's states (A, E); under ZeRO also the float32 master copy, both split (B)."""
    trained = _adapter_bytes(t, engine) if t.adapter else _held(t, engine)
    zero = engine.kind.startswith("zero")
    states = state_bytes(t.optimizer, 4 if zero else trained)
    master = 4 if zero and trained == 2 else 0
    embedding = 0 if t.adapter else shape.embedding
    total = (
        states * (shape.trainable - embedding)
        + state_bytes(_in_32_bit(t.optimizer), 4 if zero else trained) * embedding
    )
    return (total + master * shape.trainable) / (engine.splits if _is_sharding(engine) else 1)


def state_bytes(name: str, parameter_bytes: float) -> float:
    """Bytes of states per parameter of the optimizer that `optim` names. Sources A and, for 8 bits, bitsandbytes."""
    family = next((count for kind, count in _STATES.items() if kind in name), 2)
    if "8bit" in name:
        return family * (1 + 4 / _BLOCK_8BIT)
    if "32bit" in name or "bnb" in name or "paged" in name:
        return family * 4.0
    return family * float(parameter_bytes)


def _in_32_bit(name: str) -> str:
    return name.replace("8bit", "32bit")


def reference_model(shape: ModelSize, t: Training, engine: ParallelStrategy) -> float:
    """The reference while training: nothing, a whole copy, or a part of one. Source F.

    ZeRO-1 and 2 replicate it, what splits the policy's weights splits it too, layer by layer (plain TRL makes one unit
    of it under FSDP2, and gathers all of it for each pass). A quantized one stays whole on each GPU.
    """
    ref = t.reference
    if ref.kind != "loaded":
        return 0.0
    size = BYTES[ref.dtype]
    base = shape.parameters
    if ref.quantized:
        return ref.quantized.bytes * shape.linear + size * (base - shape.linear)
    if engine.kind.startswith("zero") and engine.half:
        size = 2
    if engine.offload:
        return 0.0
    return size * base / (engine.splits if engine.shards_weights else 1)


def activations(shape: ModelSize, t: Training, engine: ParallelStrategy) -> tuple[float, float]:
    """What is kept for the backward pass, and what the largest layer needs on top while it is run. Source H."""
    tokens, hidden, mlp = t.batch_tokens, shape.hidden, shape.mlp
    residual = _residual_bytes(t, engine)
    per_token = _layer_bytes(t, engine, hidden, mlp)
    eager = (
        8.0 * 2 * t.pairs * shape.heads * t.tokens**2 if t.eager_attention else 0.0
    )  # scores in float32 and half, twice
    layer = per_token * tokens + eager
    if t.checkpointing:
        return residual * shape.layers * tokens * hidden, 1.25 * layer
    return shape.layers * layer, 0.25 * layer


def _layer_bytes(t: Training, engine: ParallelStrategy, hidden: int, mlp: int) -> float:
    """Bytes per token that one layer saves. Source H; without half precision, twice that of bf16 weights."""
    if t.adapter and t.adapter_dropout:
        return 51 * hidden + 12.5 * mlp if _adapter_bytes(t, engine) == 4 else 38 * hidden + 9.7 * mlp
    if t.adapter:
        return 29 * hidden + 8.4 * mlp
    if not engine.half:
        return (22 * hidden + 8 * mlp) * _held(t, engine) / 2
    return 32 * hidden + 8 * mlp if _residual_bytes(t, engine) == 4 else 22 * hidden + 8 * mlp


def _residual_bytes(t: Training, engine: ParallelStrategy) -> int:
    # Autocast leaves the residual stream in the precision of the weights; sharding engines cast the whole model.
    return 2 if _is_sharding(engine) and engine.half else BYTES[t.dtype]


def output_head(shape: ModelSize, t: Training, engine: ParallelStrategy) -> float:
    """The output layer at work: a tile of logits, the hidden states, and its gradient where it is trained. Source F."""
    tile = min(t.batch_tokens, _TILE_TOKENS) * min(shape.vocabulary, _TILE_WORDS) * 2
    states = t.batch_tokens * shape.hidden * (_residual_bytes(t, engine) + 4)
    return tile + states + (0 if t.adapter else 4 * shape.head)


def sharding(shape: ModelSize, t: Training, engine: ParallelStrategy) -> float:
    """What the engine holds beside its share: buckets (D, G), and layers that it has gathered."""
    if engine.kind == "single":
        return 0.0
    if engine.kind == "ddp":
        return (_adapter_bytes(t, engine) if t.adapter else _held(t, engine)) * shape.trainable
    if engine.kind in ("zero1", "zero2"):
        return 2 * min(1e9, 2.0 * shape.trainable)
    if engine.kind == "zero3":
        return min(3e9, 2.0 * shape.parameters)
    weight = t.quantized.bytes if t.quantized else 2.0
    at_once = shape.layers if engine.keeps_gathered else 2  # the one that runs and the one that is fetched
    layers = at_once * weight * shape.linear / shape.layers
    dequantized = 2.0 * shape.largest_linear if t.quantized else 0.0
    roots = 2 if t.adapter else 4  # embedding and output layer, and their gradients before these are split
    return layers + dequantized + roots * 2.0 * shape.head


def _allowance(engine: ParallelStrategy) -> tuple[float, float]:
    """Share for fragments and temporaries, and a constant for contexts and communicators. Source I."""
    share = 0.20 if engine.shards_weights else 0.10
    return share, (1 if engine.kind == "single" else 2) * GIB


def _is_sharding(engine: ParallelStrategy) -> bool:
    return engine.kind not in ("single", "ddp")


def _if_sharded(engine: ParallelStrategy) -> int:
    return engine.splits if engine.shards_weights else 1


def _held(t: Training, engine: ParallelStrategy) -> int:
    """Bytes per weight: DeepSpeed casts them, FSDP keeps float32 of what is trained where it computes in half."""
    if engine.kind.startswith("zero") and engine.half:
        return 2
    if engine.is_fsdp and engine.half and not t.adapter:
        return 4
    return BYTES[t.dtype]


def _adapter_bytes(t: Training, engine: ParallelStrategy) -> int:
    """PEFT keeps adapters in float32; TRL casts those of a quantized model, and under ZeRO-3, to half precision. F."""
    return 2 if t.quantized or (engine.kind.startswith("zero") and engine.half) else 4
