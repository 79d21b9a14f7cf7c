"""Short runs of both trainers on the GPU: the same losses and weights, every variant, the host's waits."""

from __future__ import annotations

import collections
import contextlib
import random
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from .book import NOT_MEASURED, Book
from .clocks import free

PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {"dtype": torch.float32, "bf16": False},
    "bf16 autocast": {"dtype": torch.float32, "bf16": True},
    "bf16 weights": {"dtype": torch.bfloat16, "bf16": False},
}
WAYS: dict[str, dict[str, Any]] = {
    "TRL again": {},
    "ours": {},
    "ours, share_prompt": {"share_prompt": True},
    "ours, padding_free": {"padding_free": True},
    "ours, store": {"precompute_ref_log_probs": True},
    "ours, store, share_prompt": {"precompute_ref_log_probs": True, "share_prompt": True},
}


DRY_SIZES = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}


def run(book: Book) -> None:
    parity(book)
    waits(book)
    deterministic(book)
    variants(book)
    other_attention(book)
    compiled_model(book)


def small(dtype: torch.dtype = torch.float32, seed: int = 0, attention: str = "sdpa", **sizes: int) -> Any:
    """A Llama of 4 layers with heads of 64, on the CPU."""
    from tests.support import tiny

    torch.manual_seed(seed)
    size = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, **sizes}
    config = LlamaConfig(
        vocab_size=len(tiny.tokenizer()),
        num_key_value_heads=2,
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=2,
        attn_implementation=attention,
        **size,
    )
    return LlamaForCausalLM(config).to(dtype)


def preferences(rows: int, longest: int = 1) -> Any:
    """Pairs of random words with lengths of all kinds."""
    from datasets import Dataset

    from tests.support import tiny

    draw, words = random.Random(0), tiny.SENTENCE.split()

    def text(low: int, high: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(low, high * longest)))

    return Dataset.from_dict(
        {
            "prompt": [text(5, 90) for _ in range(rows)],
            "chosen": [" " + text(2, 60) for _ in range(rows)],
            "rejected": [" " + text(2, 60) for _ in range(rows)],
        }
    )


def trainer(book: Book, kind: str, policy: Any, reference: Any = None, **settings: Any) -> Any:
    from trl import DPOTrainer

    from tests.support import runs
    from trl_dpo_ext import DPOExtTrainer

    settings = {
        "max_steps": 1 if book.dry else 5,
        "use_cpu": book.dry,
        "max_length": None,
        "gradient_checkpointing": False,
        "learning_rate": 0.1,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "train_dataset": preferences(8 if book.dry else 20),
        **settings,
    }
    if reference is not None:
        settings["ref_model"] = reference
    folder = tempfile.mkdtemp()
    return runs.trainer(folder, DPOTrainer if kind == "TRL" else DPOExtTrainer, model=policy, **settings)


def _run(book: Book, kind: str, precision: dict[str, Any], attention: str = "sdpa", **settings: Any) -> Any:
    """Losses of every step, and the weights' change."""
    sizes = DRY_SIZES if book.dry else {}
    policy, reference = (small(precision["dtype"], seed, attention, **sizes) for seed in (0, 1))
    if settings.get("precompute_ref_log_probs"):
        settings["ref_store"] = str(Path(tempfile.mkdtemp()) / "refs")
    made = trainer(book, kind, policy, reference, bf16=precision["bf16"], **settings)
    start = {name: tensor.detach().clone() for name, tensor in made.model.state_dict().items()}
    made.train()
    losses = [line["loss"] for line in made.state.log_history if "loss" in line]
    change = {name: (tensor.double() - start[name].double()) for name, tensor in made.model.state_dict().items()}
    return losses, change


def _apart(ours: Any, theirs: Any) -> dict[str, Any]:
    difference = sum(float((ours[1][name] - change).square().sum()) for name, change in theirs[1].items()) ** 0.5
    moved = sum(float(change.square().sum()) for change in theirs[1].values()) ** 0.5
    return {
        "losses": ours[0],
        "largest difference of a loss": max(abs(a - b) for a, b in zip(ours[0], theirs[0], strict=True)),
        WEIGHTS_APART: difference / moved,
    }


def parity(book: Book) -> None:
    """Each way of ours beside TRL's run; TRL a second time shows what two equal runs differ by."""
    for name, precision in book.some(PRECISIONS.items()):
        ways = ("ours", "ours, store, share_prompt") if book.dry else WAYS
        cells = [way for way in ways if book.wanted(f"parity {name}: {way}", 15)]
        if not cells:
            continue
        theirs = None
        with book.cell(f"parity {name}: TRL") as out:
            theirs = _run(book, "TRL", precision)
            out["losses"] = theirs[0]
        for way in cells if theirs is not None else []:
            with book.cell(f"parity {name}: {way}") as out:
                settings, kind = WAYS[way], "TRL" if way == "TRL again" else "ours"
                apart = _apart(_run(book, kind, precision, **settings), theirs)
                out |= apart
                if settings:
                    _check_near(book, out, name)
                else:
                    same = apart[WEIGHTS_APART] == apart["largest difference of a loss"] == 0
                    book.check(out, "losses and weights equal TRL's to the last bit", same)
            free()


WEIGHTS_APART = "weights apart, of how far TRL moved them"


def _check_near(book: Book, out: dict[str, Any], precision: str) -> None:
    """What rounding may change; the first measurements on an H100 were 1e-6 in float32, 0.027 in bf16."""
    allowed = 1e-4 if precision == "float32" else 0.06
    book.check(out, f"weights at most {allowed} of their way apart", out[WEIGHTS_APART] <= allowed)


def deterministic(book: Book) -> None:
    """Bit for bit, where PyTorch is told to be deterministic and attention is eager."""
    if not book.wanted("deterministic", 8):
        return
    with book.cell("deterministic") as out:
        torch.use_deterministic_algorithms(True)
        try:
            theirs, ours = (_run(book, kind, PRECISIONS["float32"], "eager") for kind in ("TRL", "ours"))
        finally:
            torch.use_deterministic_algorithms(False)
        book.check(out, "losses equal TRL's", theirs[0] == ours[0])
        equal = all(torch.equal(ours[1][name], change) for name, change in theirs[1].items())
        book.check(out, "weights equal TRL's to the last bit", equal)


@contextlib.contextmanager
def counted_waits(book: Book) -> Iterator[collections.Counter]:
    """Places in the code where the host waits for the device, and how often."""
    found: collections.Counter = collections.Counter()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if not book.dry:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            if not book.dry:
                torch.cuda.set_sync_debug_mode("default")
    for one in seen:
        if "synchroniz" in str(one.message):
            parts = Path(one.filename).parts
            found["/".join(parts[-2:]) + f":{one.lineno}"] += 1


def waits(book: Book) -> None:
    """In one step, the third."""
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "TRL": ("TRL", {}),
        "ours": ("ours", {}),
        "ours, share_prompt": ("ours", {"share_prompt": True}),
        "ours, padding_free": ("ours", {"padding_free": True}),
    }
    if not book.wanted("waits", 15):
        return
    torch.set_warn_always(True)
    with book.cell("waits") as out:
        found, where = {}, {}
        for name, (kind, settings) in book.some(kinds.items(), dry=2):
            found[name], where[name] = _waits_of(book, kind, settings)
        out["waits for the device in a step"], out["where"] = found, where
        if not book.dry:
            theirs, ours = (sum(found[name].values()) for name in ("TRL", "ours"))
            book.check(out, "without flags, no more than TRL", ours <= theirs)
    torch.set_warn_always(False)


def _waits_of(book: Book, kind: str, settings: dict[str, Any]) -> tuple[dict[str, float], dict[str, int]]:
    sizes = DRY_SIZES if book.dry else {}
    made = trainer(book, kind, small(**sizes), small(seed=1, **sizes), **settings)
    batches = iter(made.get_train_dataloader())
    for _ in range(1 if book.dry else 2):
        _step(made, next(batches))
    inputs = made._prepare_inputs(next(iter(made.get_train_dataloader())))
    book.sync()
    with counted_waits(book) as forward:
        loss = made.compute_loss(made.model, dict(inputs))
    with counted_waits(book) as backward:
        loss.backward()
    found = {"forward": forward.total(), "backward": backward.total()}
    return dict.fromkeys(found, NOT_MEASURED) if book.dry else found, dict((forward + backward).most_common(14))


def _step(made: Any, inputs: Any) -> torch.Tensor:
    made.model.train()
    loss = made.compute_loss(made.model, dict(made._prepare_inputs(inputs)))
    loss.backward()
    made.model.zero_grad()
    return loss.detach()


def variants(book: Book) -> None:
    """Two steps of every variant inside the trainer, with shared prompts: finite, on the device, and its waits."""
    if not book.wanted("variants", 20):
        return
    from tests.integration.test_every_variant_trains import choose, columns
    from trl_dpo_ext import list_losses

    everything = [v.name for v in list_losses() if not v.columns and v.name != "exo_pair"]
    chosen = list_losses()[::9] if book.dry else list_losses()
    sizes = DRY_SIZES if book.dry else {}
    failed, values, waited = {}, {}, {}
    with book.cell("variants") as out:
        models = small(**sizes), small(seed=1, **sizes)
        made = trainer(book, "ours", *models, loss_type=everything, share_prompt=True)
        batch = made._prepare_inputs(next(iter(made.get_train_dataloader())))
        out["loss of all together"] = float(_step(made, batch))
        for variant in chosen:
            if book.left < 5 and not book.dry:
                break
            try:
                choose(made, variant)
                more = {name: value.to(book.device) for name, value in columns(variant, batch).items()}
                values[variant.name] = [float(_step(made, {**batch, **more})) for _ in range(1 if book.dry else 2)]
                with counted_waits(book) as found:
                    made.compute_loss(made.model, {**batch, **more})
                waited[variant.name] = found.total()
            except Exception as error:
                failed[variant.name] = f"{type(error).__name__}: {str(error)[:200]}"
        usual = collections.Counter(waited.values()).most_common(1)[0][0] if waited else 0
        out |= {"errors": failed} if failed else {}
        out["waits of the forward, most variants"] = NOT_MEASURED if book.dry else usual
        out["waits of the forward, others"] = {name: count for name, count in waited.items() if count != usual}
        out["values"] = {name: value[0] for name, value in values.items()}
        book.check(out, f"all {len(chosen)} variants train", len(values) == len(chosen))
        book.check(out, "all values are finite", all(torch.tensor(v).isfinite().all() for v in values.values()))


def other_attention(book: Book) -> None:
    """Shared prompts under other kernels; flex attention last, since it compiles."""
    for attention, name in (("eager", "float32"), ("eager", "bf16 weights"), ("flex_attention", "bf16 weights")):
        cell = f"{attention}, {name}, share_prompt"
        if not book.wanted(cell, 8 if attention == "eager" else 40):
            continue
        if book.dry and (attention == "flex_attention" or name != "float32"):
            if attention == "flex_attention":
                book.not_run(cell, "flex_attention has no gradient on a CPU")
            continue
        with book.cell(cell) as out:
            theirs = _run(book, "TRL", PRECISIONS[name])
            out |= _apart(_run(book, "ours", PRECISIONS[name], attention, share_prompt=True), theirs)
            _check_near(book, out, name)


def compiled_model(book: Book) -> None:
    """`torch_compile` without the flags that it excludes, beside the same run uncompiled."""
    if not book.wanted("torch_compile", 60):
        return
    if book.dry:
        book.not_run("torch_compile", "compiling takes too long for a dry run")
        return
    with book.cell("torch_compile") as out:
        theirs = _run(book, "ours", PRECISIONS["bf16 autocast"])
        out |= _apart(_run(book, "ours", PRECISIONS["bf16 autocast"], torch_compile=True), theirs)
        _check_near(book, out, "bf16 autocast")
