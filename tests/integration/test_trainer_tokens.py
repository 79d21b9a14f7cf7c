"""The trainer with losses of single tokens: its loss is what the full logits of both models give."""

from __future__ import annotations

import math
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid

from tests.support import runs, tiny
from trl_dpo_ext import Need, list_losses

LORA = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
BETA = 0.1


def distributions(model: Any, inputs: Any) -> torch.Tensor:
    """Next-token log-probs of every position but the last, (rows, tokens, vocabulary)."""
    with torch.no_grad():
        logits = model(**{k: inputs[k] for k in ("input_ids", "attention_mask")}).logits
    return logits[:, :-1].double().log_softmax(-1)


def completions(run: Any, inputs: Any, reference: Any = None) -> list[list[dict[str, Any]]]:
    """Of each pair both sides: `pi` and `ref`, (completion tokens, vocabulary), and the labels `y`."""
    run.model.eval()
    policy = distributions(run.model, inputs)
    if reference is None:
        reference = distributions(run.ref_model or run.model, inputs)
    mask, labels = inputs["completion_mask"][:, 1:].bool(), inputs["input_ids"][:, 1:]
    rows = [
        {"pi": p[m], "ref": q[m], "y": y[m], "row": row}
        for row, (p, q, y, m) in enumerate(zip(policy, reference, labels, mask, strict=True))
    ]
    half = len(rows) // 2
    return [list(pair) for pair in zip(rows[:half], rows[half:], strict=True)]


def logps(side: dict[str, Any], model: str) -> torch.Tensor:
    return side[model].gather(-1, side["y"].unsqueeze(-1)).squeeze(-1)


def logratios(side: dict[str, Any]) -> torch.Tensor:
    return logps(side, "pi") - logps(side, "ref")


def batch_of(run: Any) -> dict[str, Any]:
    return next(iter(run.get_train_dataloader()))


def dpo(difference: torch.Tensor) -> torch.Tensor:
    return -logsigmoid(BETA * difference)


def by_hand(name: str, chosen: dict[str, Any], rejected: dict[str, Any]) -> torch.Tensor:
    if name == "d2po":
        sides = [(logratios(s) * 0.98 ** torch.arange(len(s["y"]))).sum() for s in (chosen, rejected)]
        return dpo(sides[0] - sides[1])
    if name == "tis_dpo":  # a token's weight in these tests is a tenth of its id
        sides = [(logratios(s) * s["y"] / 10).sum() for s in (chosen, rejected)]
        return dpo(sides[0] - sides[1])
    if name in ("tdpo1", "tdpo2"):
        drift = [(s["ref"].exp() * (s["ref"] - s["pi"])).sum() for s in (chosen, rejected)]
        weight = 1.0 if name == "tdpo1" else 0.5
        return dpo(logratios(chosen).sum() - logratios(rejected).sum() - weight * (drift[1] - drift[0]))
    if name == "unlikelihood":
        return -logps(chosen, "pi").mean() - torch.log1p(-logps(rejected, "pi").exp()).mean()
    if name in ("mallows_dpo", "rainbowpo"):
        entropy = [
            -(s["ref"].exp() * s["ref"]).sum(-1).mean() / math.log(s["ref"].size(-1)) for s in (chosen, rejected)
        ]
        dispersion = -0.29 * torch.log((entropy[0] + entropy[1]) / 2)
        if name == "mallows_dpo":
            return dpo(dispersion * (logratios(chosen).sum() - logratios(rejected).sum()))
        gap, ref_gap = (logps(chosen, m).mean() - logps(rejected, m).mean() for m in ("pi", "ref"))
        return -logsigmoid(10.0 * dispersion * (gap - 0.25 * ref_gap - 0.75 * 0.1))
    raise AssertionError(name)


def check(run: Any, name: str, reference: Any = None) -> None:
    inputs = batch_of(run)
    loss = run.compute_loss(run.model, inputs)
    expected = torch.stack([by_hand(name, *pair) for pair in completions(run, inputs, reference)]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in run.model.parameters())


@pytest.mark.parametrize("name", ["d2po", "unlikelihood", "mallows_dpo", "rainbowpo", "tdpo1", "tdpo2"])
def test_the_loss_is_what_full_logits_give(tmp_path, name: str) -> None:
    needs_reference = next(v for v in list_losses() if v.name == name).needs_reference
    models = {"ref_model": tiny.model(1)} if needs_reference else {}
    run = runs.trainer(tmp_path, loss_type=name, **models)
    assert (run.ref_model is not None) == needs_reference
    check(run, name)


def test_sampo_counts_as_many_tokens_of_the_longer_side_as_the_shorter_one_has(tmp_path) -> None:
    run = runs.trainer(tmp_path, loss_type="sampo", ref_model=tiny.model(1))
    inputs = batch_of(run)
    values = torch.tensor([run.compute_loss(run.model, inputs).item() for _ in range(40)])
    drawn = run.mixture.state_dict()["sampo"]
    assert drawn == {"batches": 40}
    assert values.unique().numel() > 10
    low, high = [], []
    for pair in completions(run, inputs):
        few = min(len(side["y"]) for side in pair)
        ordered = [logratios(side).sort().values for side in pair]
        bottom, top = ([part.sum() for part in parts] for parts in (
            [side[:few] for side in ordered], [side[len(side) - few:] for side in ordered]
        ))  # fmt: skip
        low.append(dpo(top[0] - bottom[1]))
        high.append(dpo(bottom[0] - top[1]))
    assert (values >= torch.stack(low).mean() - 1e-4).all()
    assert (values <= torch.stack(high).mean() + 1e-4).all()


def weighted(rows: int = 4, extra: int = 0) -> Dataset:
    """Preferences whose tokens weigh a tenth of their ids; the last row has `extra` values too many."""
    tokenizer, data = tiny.tokenizer(), tiny.preferences(rows)
    columns = {}
    for side in ("chosen", "rejected"):
        ids = [tokenizer(text + tokenizer.eos_token)["input_ids"] for text in data[side]]
        columns[f"{side}_token_weights"] = [[token / 10 for token in row] for row in ids]
    columns["rejected_token_weights"][-1] += [1.0] * extra
    return Dataset.from_dict({**data.to_dict(), **columns})


@pytest.mark.parametrize("settings", [{}, {"max_length": 10}], ids=["whole", "truncated"])
def test_a_column_of_token_weights_meets_its_tokens(tmp_path, settings: dict) -> None:
    run = runs.trainer(
        tmp_path,
        loss_type="tis_dpo",
        ref_model=tiny.model(1),
        train_dataset=weighted(),
        eval_dataset=weighted(),
        **settings,
    )
    inputs = batch_of(run)
    mask = inputs["completion_mask"][:, 1:].chunk(2)[1]
    assert inputs["rejected_token_weights"].shape == mask.shape
    assert len(mask.sum(1).unique()) > 1
    check(run, "tis_dpo")


def test_a_list_of_another_length_than_its_completion_is_named_with_its_row(tmp_path) -> None:
    wrong = (
        r"train_dataset: column 'rejected_token_weights' must have one value per token; row 3 has \d+ for a rejected"
    )
    with pytest.raises(ValueError, match=wrong):
        runs.trainer(tmp_path, loss_type="tis_dpo", ref_model=tiny.model(1), train_dataset=weighted(extra=1))


@pytest.mark.parametrize("name", ["d2po", "mallows_dpo", "tdpo1"])
def test_an_adapters_reference_is_its_base(tmp_path, name: str) -> None:
    run = runs.trained(tmp_path, loss_type=name, peft_config=LORA, gradient_checkpointing=False)
    assert run.ref_model is None
    with run.model.disable_adapter():
        reference = distributions(run.model.eval(), batch_of(run))
    check(run, name, reference)


@pytest.mark.parametrize("name", ["d2po", "sampo"])
def test_without_a_reference_its_tokens_count_as_zero(tmp_path, name: str) -> None:
    run = runs.trainer(tmp_path, loss_type=name, reference_free=True)
    assert run.ref_model is None
    assert torch.isfinite(run.compute_loss(run.model, batch_of(run)))


NEEDS = {
    Need.REF_ENTROPY: "the reference's entropy",
    Need.TOKEN_KL: "the reference's distribution over the vocabulary",
}


@pytest.mark.parametrize(("need", "words"), NEEDS.items(), ids=str)
def test_what_a_stored_reference_cannot_give_is_refused_with_the_reason(tmp_path, need: Need, words: str) -> None:
    for variant in list_losses():
        if need in variant.needs:
            with pytest.raises(
                ValueError,
                match=f"with {variant.name}: the store holds token log-probs, and {variant.name} needs {words}",
            ):
                runs.config(tmp_path, loss_type=variant.name, precompute_ref_log_probs=True)
            with pytest.raises(ValueError, match=f"cannot be used with {variant.name}, which needs {words}"):
                runs.config(tmp_path, loss_type=variant.name, reference_free=True)


TOKEN_LOSSES = [v.name for v in list_losses() if Need.TOKEN_REFERENCE in v.needs]


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_a_divergence_is_refused_where_no_score_is_read(tmp_path, name: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be used with {name}: only losses of the difference"):
        runs.config(tmp_path, loss_type=name, f_divergence_type="js_divergence")
