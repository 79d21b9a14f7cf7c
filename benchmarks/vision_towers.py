"""What the error of a quantized reference of images is with its vision tower quantized, and without.

A small Llava learns to name the color, the place, and the shade of a square in an image with noise, and is then judged
on new images: the margin between the right answer and one with another color, place, or shade. The sizes of published
models' towers are counted from their configurations. Errors are in nats.

Run: python benchmarks/vision_towers.py --seeds 1
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from trl_dpo_ext.reference.model.loading import freeze
from trl_dpo_ext.reference.model.quantization import bnb_config, skipped_layers

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.support.published_models import VISION_LANGUAGE
from trl_dpo_ext.estimate.model_size import compute_model_size

SIDE, PATCH, PLACES, COLORS, SHADES = 48, 8, 9, 8, 4
IMAGE, BOS = 0, 1
FIRST = (2, 2 + COLORS, 2 + COLORS + PLACES)
"""The tokens of colors, places, and shades begin here."""
COUNTS = (COLORS, PLACES, SHADES)
TOKENS = (SIDE // PATCH) ** 2


def small_llava(seed: int, width: int = 128) -> Any:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 4}
    vision = CLIPVisionConfig(**sizes, num_attention_heads=4, image_size=SIDE, patch_size=PATCH)
    text = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=4, vocab_size=FIRST[2] + SHADES)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config)


def images(count: int, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (count, 3, side, side), and color, place, and shade of their squares (count, 3)."""
    facts = torch.stack([torch.randint(0, most, (count,), generator=draw) for most in COUNTS], dim=1)
    pixels = 0.7 * torch.randn(count, 3, SIDE, SIDE, generator=draw)
    for image, (color, place, shade) in zip(pixels, facts.tolist(), strict=True):
        row, column = SIDE // 3 * (place // 3), SIDE // 3 * (place % 3)
        sign = torch.tensor([1.0 if color >> bit & 1 else -1.0 for bit in range(3)])
        image[:, row : row + SIDE // 4, column : column + SIDE // 4] += (0.5 + 0.25 * shade) * sign[:, None, None]
    return pixels, facts


def answer_logps(model: Any, pixels: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
    """Log-probs of the answers that state the facts, (count,)."""
    answers = facts + torch.tensor(FIRST)
    prompt = torch.tensor([IMAGE] * TOKENS + [BOS]).expand(len(facts), -1)
    logits = model(input_ids=torch.cat([prompt, answers], dim=1), pixel_values=pixels).logits[:, -4:-1]
    return logits.float().log_softmax(-1).gather(-1, answers.unsqueeze(-1)).sum(dim=(1, 2))


def train(model: Any, steps: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(1000 + seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps)
    for step in range(steps):
        loss = -answer_logps(model, *images(64, draw)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == steps - 1:
            print(f"seed {seed}, step {step}: {loss.item():.3f} nats per answer", file=sys.stderr, flush=True)


@torch.no_grad()
def margins(model: Any, count: int) -> torch.Tensor:
    """Margins of new images' right answers over wrong ones, (count,)."""
    draw = torch.Generator().manual_seed(7)
    pixels, facts = images(count, draw)
    wrong = facts.clone()
    for row in range(count):
        wrong[row, row % 3] = (wrong[row, row % 3] + 1 + row // 3 % (COUNTS[row % 3] - 1)) % COUNTS[row % 3]
    sides = [
        torch.cat([answer_logps(model, p, f) for p, f in zip(pixels.split(64), part.split(64), strict=True)])
        for part in (facts, wrong)
    ]
    return sides[0] - sides[1]


def quantized(model: Any, kind: str, parts: str) -> Any:
    """A copy whose language model (`text`), whatever else (`tower`), or both (`all`) is quantized."""
    kept = skipped_layers(type(model), model.config, (), "ref_skip_modules")
    skipped = {"text": kept, "all": kept[:1], "tower": [kept[0], "model.language_model"]}[parts]
    plan = bnb_config(kind, False, torch.float32, skipped)
    copied = type(model).from_pretrained(
        None, config=model.config, state_dict=model.state_dict(), quantization_config=plan, device_map={"": "cpu"}
    )
    return freeze(copied)


def measure(model: Any, count: int) -> dict[tuple[str, str], float]:
    """The rms error of margins, by quantization and what is quantized."""
    exact = margins(model.eval(), count)
    return {
        (kind, parts): float((margins(quantized(model, kind, parts), count) - exact).square().mean().sqrt())
        for kind in ("nf4", "fp4", "int8")
        for parts in ("all", "text", "tower")
    }


def print_errors(title: str, found: list[dict[tuple[str, str], float]]) -> None:
    print(
        f"\n{title}\n\n| quantized | everything | language model alone | tower and projector alone |\n|---|---|---|---|"
    )
    for kind in ("nf4", "fp4", "int8"):
        cells = [" / ".join(f"{each[kind, parts]:.3f}" for each in found) for parts in ("all", "text", "tower")]
        print(f"| {kind} | {' | '.join(cells)} |")


def print_sizes() -> None:
    print("\n| model | weights outside the language model | reference in nf4, tower in bf16 | tower in nf4, too |")
    print("|---|---|---|---|")
    for name, (config, _) in VISION_LANGUAGE.items():
        size = compute_model_size(config())
        text = size.linear - size.linear_beside_text
        kept, all_of_it = (2 * (size.parameters - n) + 0.5625 * n for n in (text, size.linear))
        outside, share = size.beside_text / 1e6, size.beside_text / size.parameters
        cell = f"{outside:.0f} million of {size.parameters / 1e6:.0f} ({share:.0%})"
        print(f"| {name} | {cell} | {kept / 2**30:.2f} GiB | {all_of_it / 2**30:.2f} GiB |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=201)
    parser.add_argument("--images", type=int, default=96)
    args = parser.parse_args()
    print_sizes()
    trained = []
    for seed in range(args.seeds):
        model = small_llava(seed)
        started = time.process_time()
        train(model, args.steps, seed)
        exact = margins(model.eval(), args.images)
        print(
            f"\nseed {seed}: {time.process_time() - started:.0f} s of processor time; the right answer is preferred in "
            f"{(exact > 0).float().mean():.0%} of pairs, by {exact.mean():.1f} nats",
            flush=True,
        )
        trained.append(measure(model, args.images))
        print(trained[-1], file=sys.stderr, flush=True)
    print_errors("Rms error of the margin (one number for each seed)", trained)


if __name__ == "__main__":
    main()
