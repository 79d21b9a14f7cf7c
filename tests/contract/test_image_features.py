"""What the package leans on inside vision-language models: one test per fact, whose failure names the place to mend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers.utils import is_torchvision_available
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from tests.support import vision_families
from tests.support.seams import moved
from trl_dpo_ext import _trl
from trl_dpo_ext.forward.tree_attention import TreeAttention

# In transformers 5.17 the image processor of Idefics3 needs torchvision.
NEEDS_TORCHVISION = (
    {"idefics3"} if Version(transformers.__version__) < Version("5.18") and not is_torchvision_available() else set()
)
FAMILIES = sorted(vision_families.FAMILIES.keys() - NEEDS_TORCHVISION)
TOWERS = ("visual", "vision_tower", "vision_model")


def seam(fact: str) -> str:
    return moved("transformers", fact, "_trl/image_features.py")


def batch_of(family: str, mixed: bool = True) -> dict[str, Any]:
    rows = vision_families.preferences(4, mixed=mixed)
    return dict(DataCollatorForVisionPreference(vision_families.FAMILIES[family].processor())(list(rows)))


def logits(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    fed = {name: value for name, value in batch.items() if name not in (_trl.COMPLETION_MASK, _trl.IMAGES_ONCE)}
    with torch.no_grad():
        return model.eval()(**fed).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_one_module_computes_the_features_of_all_images_once_in_a_forward(family: str, monkeypatch) -> None:
    model, batch, calls = vision_families.model(family), batch_of(family), []
    module = _trl.tower_of(model)
    plain = module.get_image_features
    monkeypatch.setattr(module, "get_image_features", lambda *a, **k: (calls.append(1), plain(*a, **k))[1])
    logits(model, batch)
    assert calls == [1], seam("forward calls get_image_features of one module, once")


@pytest.mark.parametrize("family", FAMILIES)
def test_both_halves_of_a_batch_can_have_the_features_of_the_same_images(family: str) -> None:
    model, batch = vision_families.model(family), batch_of(family)
    once = _trl.with_images_once(batch)
    assert once[_trl.IMAGES_ONCE], seam("the collator gives images twice, in the known keys")
    assert 2 * len(once["pixel_values"]) == len(batch["pixel_values"])
    assert once["pixel_values"].untyped_storage().nbytes() == batch["pixel_values"].nbytes // 2
    with _trl.sharing_features(_trl.tower_of(model)):
        shared = logits(model, once)
    expected, there = logits(model, batch), batch["attention_mask"].bool()
    torch.testing.assert_close(shared[there], expected[there], msg=seam("pooler_output holds the features of images"))
    with pytest.raises(Exception, match=r"\w"):  # without it, half of the image tokens have no features
        logits(model, once)


@pytest.mark.parametrize("change", ["other images", "an unknown key", "no images"])
def test_what_may_differ_between_the_halves_stays_as_it_is(change: str) -> None:
    batch = batch_of("llava")
    if change == "other images":
        batch["pixel_values"][-1] += 1
    elif change == "an unknown key":
        batch["num_crops"] = torch.zeros(len(batch["pixel_values"]))
    else:
        del batch["pixel_values"]
    assert _trl.with_images_once(batch).keys() == batch.keys()


def test_families_that_are_not_known_run_the_tower_plainly() -> None:
    model = vision_families.model("llava")
    model.config.model_type = "other"
    assert _trl.tower_of(model) is None
    assert _trl.tower_of(vision_families.model("llava").model.language_model) is None


@pytest.mark.parametrize("family", FAMILIES)
def test_the_configuration_tells_the_patches_and_the_sizes_of_the_tower(family: str) -> None:
    model, batch = vision_families.model(family), batch_of(family, mixed=False)
    module, config = _trl.tower_of(model), model.config
    tower = next(getattr(module, name) for name in TOWERS if hasattr(module, name))
    patches: list[int] = []

    def seen(_module: Any, _inputs: Any, output: Any) -> None:
        patches.append(output.last_hidden_state.flatten(0, -2).shape[0])

    tower.register_forward_hook(seen)
    logits(model, batch)
    config_id = next(getattr(config, n) for n in ("image_token_id", "image_token_index") if hasattr(config, n))
    tokens = int((batch["input_ids"] == config_id).sum())
    classes = len(batch["pixel_values"]) if family == "llava" else 0  # CLIP's extra position
    assert (sum(patches) - classes) / tokens == _trl.patches_per_token(config), seam("patches of an image token")
    hidden, mlp = _trl.tower_sizes(config)
    shapes = [tuple(each.shape) for name, each in tower.named_parameters() if "merger" not in name]
    assert (mlp, hidden) in shapes, seam("hidden size and MLP of the vision tower")


def test_a_model_says_that_image_tokens_are_missing() -> None:
    model, batch = vision_families.model("llava"), batch_of("llava", mixed=False)
    short = {**batch, **{name: batch[name][:, 3:] for name in ("input_ids", "attention_mask")}}
    with pytest.raises(Exception, match="image") as caught:
        logits(model, short)
    assert _trl.lacks_image_tokens(caught.value), moved("transformers", "the words of the error", "_trl/images.py")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tower_attends_after_the_attention_of_packed_rows_is_registered(family: str) -> None:
    """Some towers give the mask by name, and the registered function stays for the process."""
    model, batch = vision_families.model(family), batch_of(family)
    expected = logits(model, batch)
    _trl.replace_attention(model, TreeAttention)
    assert torch.equal(logits(model, batch), expected)
