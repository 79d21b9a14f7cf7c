"""Estimate the peak memory of a training step, in bytes per GPU, with the source of every formula.

Sources, cited below by letter:

- A: Hugging Face, "Model memory anatomy": per parameter 4 + 2 bytes of weights in mixed precision, 4 of gradients, 8 of
  AdamW's states (2 with 8-bit states).
- B: Rajbhandari et al., ZeRO, arXiv 1910.02054, section 3: what each stage splits; 2 + 2 + 12 bytes per parameter.
- C: Dettmers et al., QLoRA, arXiv 2305.14314, section 3: 4 bits per weight, and per block of 64 one float32 constant,
  or 0.127 bits per weight with double quantization.
- D: PyTorch's documentation of DistributedDataParallel: its buckets take as much memory as the gradients.
- E: transformers' `Trainer.create_optimizer`: embedding tables keep 32-bit states under 8-bit optimizers.
- F: TRL 1.16: `prepare_deepspeed` and `prepare_fsdp` (how a reference is placed), `chunked_logprob` (tiles of 4096
  tokens x 32768 vocabulary entries instead of the full logits), 4-bit models' adapters in bf16.
- G: DeepSpeed's defaults: buckets of 5e8 elements, 1e9 live parameters in stage 3.
- H: measured for this project with saved-tensor hooks: bytes that one decoder layer of Qwen2.5 or Llama 3 saves for its
  backward pass (on a CPU, with PyTorch's scaled-dot-product attention); `VisionTower` has those of vision towers.
- I: this project's allowance for the allocator and the context, chosen so that the measurements in PEFT's documentation
  (70B with LoRA and QLoRA under ZeRO-3 and FSDP) are reproduced within 15 %. For one GPU and for DDP no measurement
  supports it; `benchmarks/estimate_peak.py` takes one.
- J: this package: rows of lists (`data/lists/collator.py`), and the factors that correct a quantized reference
  (`reference/correction/layers.py`), whose bytes are counted exactly.

Not modeled: activations of mixtures of experts, prompts shared between rows (which save memory in proportion to the
prompts' length), and the pass that computes reference log-probs before training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .model_size import ModelSize
from .strategy import ParallelStrategy

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
USABLE = 15 / 16
"""Share of a GPU's nominal gigabytes that an estimate in GiB may use: 75 of 80."""

_TILE_TOKENS, _TILE_VOCABULARY = 4096, 32768  # F
# States per parameter; AdamW and its variants have two.
_STATES = {"sgd": 0, "rmsprop": 1, "adagrad": 1, "lion": 1, "adafactor": 0}
_BLOCK_8BIT = 256  # one float32 constant per block and state, in bitsandbytes' optimizers


@dataclass(frozen=True, slots=True)
class Quantized:
    """Quantization of a model's linear layers by bitsandbytes."""

    bits: Literal[4, 8] = 4
    double: bool = False
    shardable: bool = False
    """True if its storage type can be sharded (`bnb_4bit_quant_storage` set to a float type)."""

    @property
    def bytes(self) -> float:
        """Bytes per weight. Source C."""
        if self.bits == 8:
            return 1.0  # without the constants, one per row
        return 0.5 + (0.127 / 8 if self.double else 4 / 64)


@dataclass(frozen=True, slots=True)
class Reference:
    """Where the reference log-probs come from during training."""

    kind: Literal["none", "loaded", "stored", "adapter off"] = "none"
    dtype: str = "float32"
    quantized: Quantized | None = None
    correction_rank: int = 0
    """Rank of the terms beside its quantized layers; 0 for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The settings of a training run that its memory depends on."""

    dtype: str = "float32"
    adapter: bool = False
    adapter_dropout: bool = False
    quantized: Quantized | None = None
    optimizer: str = "adamw_torch"
    pairs: int = 8
    """Pairs, or lists, per GPU and forward pass."""
    completions: int = 2
    """Completions of each prompt: 2 of a pair, at most so many of a list."""
    tokens: int = 1024
    """Tokens per row: prompt, images, and answer together."""
    image_tokens: int = 0
    accumulates: bool = False
    checkpointing: bool = True
    eager_attention: bool = False
    masked_attention: bool = False
    """Whether `sdpa` is given masks, as for padded rows: each layer makes one of its own."""
    reference: Reference = field(default_factory=Reference)

    @property
    def rows(self) -> int:
        """Rows of one forward pass: one per completion, and one more for each list of an odd number. Source J."""
        return self.pairs * (self.completions + self.completions % 2)

    @property
    def batch_tokens(self) -> int:
        """Token positions of one forward pass."""
        return self.rows * self.tokens


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on each GPU at the peak of a step; `host` counts the offloaded bytes on each machine."""

    weights: float
    gradients: float
    optimizer: float
    reference: float
    activations: float
    head: float
    sharding: float
    """Temporary buffers of the parallel strategy: gathered layers and buckets."""
    overhead: float
    host: float = 0.0

    @property
    def total(self) -> float:
        """Sum of all parts on the GPU."""
        parts = (self.weights, self.gradients, self.optimizer, self.reference)
        return sum(parts) + self.activations + self.head + self.sharding + self.overhead

    def fits(self, gpu_memory: float) -> bool:
        """Return True if the total fits on a GPU of `gpu_memory` nominal gigabytes."""
        return self.total / GIB <= USABLE * gpu_memory


def estimate(size: ModelSize, training: Training, strategy: ParallelStrategy) -> Memory:
    """Estimate the peak memory of one training step.

    Example:
        >>> from transformers import LlamaConfig
        >>> from .model_size import compute_model_size
        >>> config = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2, vocab_size=320)
        >>> small = compute_model_size(config)
        >>> estimate(small, Training(), ParallelStrategy("single", 1)).optimizer / small.parameters  # AdamW in float32
        8.0
    """
    held, grads, states = (part(size, training, strategy) for part in (weights, gradients, optimizer))
    offloaded = 0.0
    if strategy.offload:
        offloaded, held, grads, states = held + grads + states, 0.0, 0.0, 0.0
    elif strategy.offload_optimizer:
        offloaded, states = states, 0.0
    reference = reference_model(size, training, strategy)
    saved, layer = activations(size, training, strategy)
    head = output_head(size, training, strategy)
    buffers = sharding(size, training, strategy)
    # The backward passes of the largest layer and of the output layer do not happen at the same time.
    working = saved + max(0.0, layer - head)
    used = held + grads + states + reference + working + head + buffers
    share, constant = _allowance(strategy)
    overhead = share * used + constant
    host = offloaded * strategy.processes / strategy.machines
    return Memory(held, grads, states, reference, working, head, buffers, overhead, host)


def weights(size: ModelSize, t: Training, strategy: ParallelStrategy) -> float:
    """Bytes of the policy's weights.

    All parameters trained: A on one GPU and under DDP, B under ZeRO; FSDP with mixed precision keeps float32.
    """
    per_weight = _bytes_per_weight(t, strategy)
    if t.quantized:
        base = t.quantized.bytes * size.linear + BYTES[t.dtype] * (size.parameters - size.linear)
        shards = strategy.weight_shards if t.quantized.shardable else 1
        return base / shards + _adapter_bytes(t, strategy) * size.trainable / strategy.weight_shards
    if t.adapter:
        adapter = _adapter_bytes(t, strategy) * size.trainable
        return (per_weight * size.parameters + adapter) / strategy.weight_shards
    # Autocast caches half-precision copies of float32 weights during a forward pass. They add to the peak only with
    # gradient accumulation (gradients already exist then) or without checkpointing (the copies live on).
    autocasts = per_weight == 4 and strategy.half_precision and not strategy.shards_optimizer
    cached = autocasts and (t.accumulates or not t.checkpointing)
    return (per_weight + (2 if cached else 0)) * size.parameters / strategy.weight_shards


def gradients(size: ModelSize, t: Training, strategy: ParallelStrategy) -> float:
    """Bytes of the gradients: one value per trained parameter, in its dtype (A); sharded by ZeRO-2, 3 (B) and FSDP."""
    per_gradient = _adapter_bytes(t, strategy) if t.adapter else _bytes_per_weight(t, strategy)
    shards = strategy.shards if strategy.shards_weights or strategy.kind == "zero2" else 1
    return per_gradient * size.trainable / shards


def optimizer(size: ModelSize, t: Training, strategy: ParallelStrategy) -> float:
    """Bytes of the optimizer's states (A, E) and of ZeRO's float32 master weights, both sharded (B)."""
    trained = _adapter_bytes(t, strategy) if t.adapter else _bytes_per_weight(t, strategy)
    stepped = 4 if strategy.is_zero else trained
    master = 4 if strategy.is_zero and trained == 2 else 0
    embedding = 0 if t.adapter else size.embedding
    states = state_bytes(t.optimizer, stepped) * (size.trainable - embedding)
    states += state_bytes(t.optimizer.replace("8bit", "32bit"), stepped) * embedding
    return (states + master * size.trainable) / (strategy.shards if strategy.shards_optimizer else 1)


def state_bytes(name: str, parameter_bytes: float) -> float:
    """Bytes of optimizer states per parameter, for a value of `optim`. Sources A and, for 8 bits, bitsandbytes."""
    states = next((count for kind, count in _STATES.items() if kind in name), 2)
    if "8bit" in name:
        return states * (1 + 4 / _BLOCK_8BIT)
    if "32bit" in name or "bnb" in name or "paged" in name:
        return states * 4.0
    return states * float(parameter_bytes)


def reference_model(size: ModelSize, t: Training, strategy: ParallelStrategy) -> float:
    """Bytes of the reference during training. Source F.

    ZeRO-1 and 2 replicate it; whatever shards the policy's weights shards it too, layer by layer (plain TRL makes it a
    single unit under FSDP2, and gathers all of it for each pass). A quantized reference is replicated.
    """
    ref = t.reference
    if ref.kind != "loaded":
        return 0.0
    if ref.quantized:
        linear = size.linear - size.linear_beside_text  # a vision tower is never quantized
        base = ref.quantized.bytes * linear + BYTES[ref.dtype] * (size.parameters - linear)
        return base + low_rank_terms(size, ref.correction_rank)
    if strategy.offload:
        return 0.0
    per_weight = 2 if strategy.is_zero and strategy.half_precision else BYTES[ref.dtype]
    return per_weight * size.parameters / strategy.weight_shards


def low_rank_terms(size: ModelSize, rank: int) -> int:
    """Bytes of the terms that correct a quantized reference: 8-bit factors, and float32 scales. Source J."""
    return rank * (size.linear_sides + 4 * size.linear_layers)


def activations(size: ModelSize, t: Training, strategy: ParallelStrategy) -> tuple[float, float]:
    """Bytes kept for the backward pass, and the extra bytes that the largest layer needs while it runs. Source H."""
    tokens, hidden = t.batch_tokens, size.hidden
    # Attention scores in float32 and in half precision, each twice.
    eager = 8.0 * t.rows * size.heads * t.tokens**2 if t.eager_attention else 0.0
    # In half precision, for all heads; the kernel keeps it for the backward pass.
    mask = 2.0 * t.rows * t.tokens**2 if t.masked_attention else 0.0
    layer = _layer_bytes(t, strategy, hidden, size.mlp) * tokens + eager + mask
    kept = _residual_bytes(t, strategy) * tokens * hidden if t.checkpointing else layer
    saved, working = size.layers * kept, (1.25 if t.checkpointing else 0.25) * layer
    if size.tower is None:
        return saved, working
    images, tower = size.tower.activations(
        t.rows * t.image_tokens * size.tower.patches_per_token,
        _residual_bytes(t, strategy),
        half=strategy.half_precision,
        trained=size.tower_trained,
        checkpointing=t.checkpointing,
    )
    return saved + images, max(working, tower)


def _layer_bytes(t: Training, strategy: ParallelStrategy, hidden: int, mlp: int) -> float:
    """Bytes per token that one layer saves. Source H; without half precision, twice that of bf16 weights."""
    if t.adapter and t.adapter_dropout:
        return 51 * hidden + 12.5 * mlp if _adapter_bytes(t, strategy) == 4 else 38 * hidden + 9.7 * mlp
    if t.adapter:
        return 29 * hidden + 8.4 * mlp
    if not strategy.half_precision:
        return (22 * hidden + 8 * mlp) * _bytes_per_weight(t, strategy) / 2
    return 32 * hidden + 8 * mlp if _residual_bytes(t, strategy) == 4 else 22 * hidden + 8 * mlp


def _residual_bytes(t: Training, strategy: ParallelStrategy) -> int:
    # Autocast leaves the residual stream in the dtype of the weights; sharding strategies cast the entire model.
    return 2 if strategy.shards_optimizer and strategy.half_precision else BYTES[t.dtype]


def output_head(size: ModelSize, t: Training, strategy: ParallelStrategy) -> float:
    """Bytes of the output layer's pass: a tile of logits, the hidden states, and its gradient if trained. Source F."""
    tile = min(t.batch_tokens, _TILE_TOKENS) * min(size.vocabulary, _TILE_VOCABULARY) * 2
    states = t.batch_tokens * size.hidden * (_residual_bytes(t, strategy) + 4)
    return tile + states + (0 if t.adapter else 4 * size.head)


def sharding(size: ModelSize, t: Training, strategy: ParallelStrategy) -> float:
    """Bytes of the strategy's temporary buffers: buckets (D, G) and gathered layers."""
    if strategy.kind == "single":
        return 0.0
    if strategy.kind == "ddp":
        return (_adapter_bytes(t, strategy) if t.adapter else _bytes_per_weight(t, strategy)) * size.trainable
    if strategy.kind in ("zero1", "zero2"):
        return 2 * min(1e9, 2.0 * size.trainable)
    if strategy.kind == "zero3":
        return min(3e9, 2.0 * size.parameters)
    per_weight = t.quantized.bytes if t.quantized else 2.0
    gathered = size.layers if strategy.keeps_gathered else 2  # the layer that runs and the one being prefetched
    layers = gathered * per_weight * size.linear / size.layers
    dequantized = 2.0 * size.largest_linear if t.quantized else 0.0
    roots = 2 if t.adapter else 4  # embedding and output layer, and their gradients before these are sharded
    return layers + dequantized + roots * 2.0 * size.head


def _allowance(strategy: ParallelStrategy) -> tuple[float, float]:
    """Share for fragmentation and temporaries, and bytes for contexts and communicators. Source I."""
    share = 0.20 if strategy.shards_weights else 0.10
    return share, (1 if strategy.kind == "single" else 2) * GIB


def _bytes_per_weight(t: Training, strategy: ParallelStrategy) -> int:
    """DeepSpeed casts the weights; FSDP with half precision keeps those that are trained in float32."""
    if strategy.is_zero and strategy.half_precision:
        return 2
    if strategy.is_fsdp and strategy.half_precision and not t.adapter:
        return 4
    return BYTES[t.dtype]


def _adapter_bytes(t: Training, strategy: ParallelStrategy) -> int:
    """PEFT keeps adapters in float32; TRL casts them to half precision on quantized models and under ZeRO-3. F."""
    return 2 if t.quantized or (strategy.is_zero and strategy.half_precision) else 4
