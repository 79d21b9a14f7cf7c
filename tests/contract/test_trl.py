"""One test for each seam of `trl_dpo_ext/_trl`: a fact about TRL's inside that this package leans on.

A failure here means that the installed TRL has moved the seam that the failing test's message names; mend `_trl`."""

from __future__ import annotations

import copy
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trl import DPOTrainer
from trl.trainer import dpo_trainer

from tests.support import runs, tiny
from tests.support.tolerances import rounding
from trl_dpo_ext import _trl

from .trl_seams import Spy, seam


def test_the_loss_only_calls_the_model_and_reads_log_probs(host: Any, batch: dict) -> None:
    spy = Spy(host.model)
    host.compute_loss(spy, batch)
    assert len(spy.calls) == 1, seam("the model is called once")
    assert spy.calls[0].get("fused_lm_head") is True, seam("fused_lm_head=True asks for log-probs")


def test_log_probs_are_rows_by_tokens_and_zero_outside_the_completion(host: Any, batch: dict) -> None:
    recorder = _trl.Recorder(host.model)
    host.compute_loss(recorder, batch)
    log_probs, mask = recorder.output.log_probs, batch[_trl.COMPLETION_MASK][:, 1:].bool()
    assert log_probs.shape == mask.shape, seam("log_probs has shape (rows, tokens - 1)")
    assert (log_probs[~mask] == 0).all(), seam("log_probs is zero outside the completion")
    assert (log_probs[mask] < 0).all(), seam("log_probs holds log-probabilities on the completion")


def test_the_first_half_of_a_batch_is_the_chosen_side(host: Any) -> None:
    example = {"prompt_ids": [5, 6], "chosen_ids": [7, 2], "rejected_ids": [8, 9, 2]}
    built = host.data_collator([example])
    assert built["input_ids"].tolist() == [[5, 6, 7, 2, 0], [5, 6, 8, 9, 2]], seam("chosen half first")
    assert built[_trl.COMPLETION_MASK].tolist() == [[0, 0, 1, 1, 0], [0, 0, 1, 1, 1]], seam("completion_mask")


def test_tokenized_completions_stand_in_columns_of_their_own(host: Any) -> None:
    row = host.train_dataset[0]
    ends = {side: row[column][-1] for side, column in _trl.COMPLETION_IDS.items()}
    assert ends == dict.fromkeys(("chosen", "rejected"), tiny.tokenizer().eos_token_id), seam(
        "chosen_ids, rejected_ids"
    )


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_the_collator_truncates_by_its_mode(mode: str) -> None:
    collator = dpo_trainer.DataCollatorForPreference(pad_token_id=0, max_length=2, truncation_mode=mode)
    built = collator([{"prompt_ids": [5], "chosen_ids": [7, 2], "rejected_ids": [8, 2]}])
    kept = [7, 2] if _trl.keeps_end(collator) else [5, 7]
    assert built["input_ids"][0].tolist() == kept, seam("truncation_mode of the collator")


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
@pytest.mark.parametrize("max_length", [None, *range(1, 8)])
def test_the_collator_feeds_the_token_ids_of_columns_and_no_more(max_length: int | None, mode: str) -> None:
    collator = dpo_trainer.DataCollatorForPreference(0, max_length=max_length, truncation_mode=mode)
    assert _trl.reads_token_ids(collator)
    assert not _trl.reads_token_ids(type("Other", (type(collator),), {})(0))
    row = dict(zip(_trl.TOKEN_IDS, ([5, 6, 7], [8, 2], [9, 10, 2]), strict=True))
    built = collator([{**row, "prompt": "x", "score": 1.0}])
    cut = slice(-max_length, None) if max_length and _trl.keeps_end(collator) else slice(max_length)
    for at, column in enumerate(_trl.COMPLETION_IDS.values()):
        ids, mask = (row[_trl.TOKEN_IDS[0]] + row[column])[cut], ([0] * 3 + [1] * len(row[column]))[cut]
        there = built["attention_mask"][at].bool()
        assert built["input_ids"][at][there].tolist() == ids, seam("DataCollatorForPreference feeds TOKEN_IDS")
        assert built[_trl.COMPLETION_MASK][at][there].tolist() == mask, seam("completion_mask")


def test_an_empty_list_of_losses_is_legal_and_adds_no_loss(host: Any, batch: dict, monkeypatch) -> None:
    monkeypatch.setattr(host, "loss_types", [])
    monkeypatch.setattr(host, "loss_weights", [])
    assert float(host.compute_loss(host.model, batch)) == 0.0, seam("an empty loss_types adds no loss")


def test_a_model_with_a_head_gives_token_log_probs(host: Any, batch: dict) -> None:
    model = _trl.with_head(tiny.model(2))
    scored = _trl.Host(host).token_logps(model, batch)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    expected = logits[:, :-1].gather(-1, batch["input_ids"][:, 1:, None]).squeeze(-1)
    expected = expected * batch[_trl.COMPLETION_MASK][:, 1:]
    torch.testing.assert_close(scored, expected.detach(), msg=seam("add_fused_lm_head, and who calls it"))


def test_a_copy_of_a_model_with_a_head_runs_the_original_for_logits() -> None:
    model = _trl.with_head(tiny.model(2))
    ids = {"input_ids": torch.tensor([[5, 6, 7]])}
    before, copied = model(**ids).logits, copy.deepcopy(model)
    own = _trl.with_own_forward(copy.deepcopy(model))
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    torch.testing.assert_close(copied(**ids).logits, 2 * before, msg=seam("add_fused_lm_head keeps a bound forward"))
    torch.testing.assert_close(own(**ids).logits, before)
    assert _trl.with_own_forward(tiny.model(2)) is not None
    assert _trl.with_head(own)(**ids, labels=ids["input_ids"], fused_lm_head=True).log_probs is not None


def test_stored_reference_log_probs_are_read_from_the_batch(host: Any, batch: dict) -> None:
    stored = {name: torch.full((4,), -3.0) for name in _trl.REFERENCE_COLUMNS}
    with _trl.Host(host).reference_from_batch():
        host._metrics["train"].clear()
        host.compute_loss(host.model, {**batch, **stored})
    reward = host._metrics["train"]["rewards/chosen"][-1]
    logps = host._metrics["train"]["logps/chosen"][-1]
    assert reward == pytest.approx(host.beta * (logps + 3.0), abs=rounding(host.beta * 30)), seam(
        "ref_chosen_logps in the batch is the reference"
    )


def test_the_divergence_is_read_at_each_loss_and_left_out_of_metrics(host: Any, batch: dict, monkeypatch) -> None:
    def metrics_and_loss() -> tuple[dict, float]:
        host._metrics["train"].clear()
        loss = float(host.compute_loss(host.model, batch))
        return {name: values[-1] for name, values in host._metrics["train"].items() if name != "num_tokens"}, loss

    plain, plain_loss = metrics_and_loss()
    monkeypatch.setattr(host, "f_divergence_type", "js_divergence")
    scored, scored_loss = metrics_and_loss()
    assert scored == plain, seam("metrics do not read scores")
    assert scored_loss != plain_loss, seam("f_divergence_type is read at each loss")
    monkeypatch.setattr(host, "f_divergence_type", "unheard_of")
    with _trl.Host(host).with_reverse_kl():
        assert metrics_and_loss() == (plain, plain_loss), seam("f_divergence_type is read at each loss")


def test_the_reference_pass_calls_the_model_it_is_given(host: Any, batch: dict) -> None:
    chosen, rejected, output = _trl.Host(host).run_reference(batch, lambda model: model)
    assert chosen.shape == rejected.shape == (4,), seam("compute_ref_log_probs returns (pairs,) twice")
    torch.testing.assert_close(output.log_probs.sum(1), torch.cat([chosen, rejected]), msg=seam("sums of log_probs"))


def test_metrics_are_lists_by_mode_that_log_averages_and_clears(host: Any) -> None:
    host.model.train()
    host._metrics["train"].clear()
    _trl.Host(host).add_metric("loss/x", 1.0)
    _trl.Host(host).add_metric("loss/x", 2.0)
    _trl.Host(host).replace_metric("loss/x", 3.0)
    host.log({})
    assert host.state.log_history[-1]["loss/x"] == 2.0, seam("_metrics[mode][name] is averaged by log")
    assert not host._metrics["train"], seam("log clears _metrics")


def test_the_metrics_that_are_replaced_exist(host: Any, batch: dict) -> None:
    host.model.train()
    host.compute_loss(host.model, batch)
    names = {f"rewards/{what}" for what in ("chosen", "rejected", "margins", "accuracies")}
    assert names <= set(host._metrics["train"]), seam("the names of the reward metrics")


def test_a_policy_that_is_its_own_reference_has_entropies(host: Any, batch: dict) -> None:
    recorder = _trl.Recorder(host.model)
    host.compute_loss(recorder, batch)
    assert recorder.output.entropy.shape == recorder.output.log_probs.shape, seam("the policy's head gives entropies")


def test_logits_are_hidden_states_of_the_backbone_through_the_output_layer(host: Any, batch: dict) -> None:
    mask = batch[_trl.COMPLETION_MASK][:, 1:].bool()
    recorder = _trl.Recorder(host.model)
    with _trl.Host(host).capture_projection(host.model, mask, wanted=True) as caught:
        host.compute_loss(recorder, batch)
    assert len(caught) == 1, seam("the fused head calls base_model as a module")
    logits = torch.nn.functional.linear(caught[0].hidden, caught[0].weight, caught[0].bias)
    labels = batch["input_ids"][:, 1:].unsqueeze(-1)
    logps = logits.log_softmax(-1).gather(-1, labels).squeeze(-1) * batch[_trl.COMPLETION_MASK][:, 1:]
    torch.testing.assert_close(
        logps, recorder.output.log_probs, rtol=1e-4, atol=1e-5, msg=seam("logits are last_hidden_state @ output layer")
    )
    assert _trl.Host(host).projection_problems() == []


def test_the_backbone_takes_another_mask_and_the_head_scores_what_it_is_given(host: Any, batch: dict) -> None:
    ids, masks, backbone = batch["input_ids"], [], host.model.base_model
    spy = backbone.register_forward_pre_hook(lambda _m, _a, kwargs: masks.append(kwargs), with_kwargs=True)
    labels, scored = ids[:, 1:].flatten(), torch.arange(ids.numel()).view(ids.shape)[:, :-1].flatten()
    order = torch.randperm(len(scored))
    with _trl.override_attention_mask(host.model, None, scored[order]):
        output = host.model(
            input_ids=ids, attention_mask="for the head", shift_labels=labels[order][None], fused_lm_head=True
        )
    spy.remove()
    assert masks[0]["attention_mask"] is None, seam("keywords are passed on to base_model")
    logps = host.model(input_ids=ids).logits[:, :-1].log_softmax(-1).flatten(0, 1).gather(-1, labels[:, None])
    torch.testing.assert_close(
        output.log_probs, logps[order].T, rtol=1e-4, atol=1e-5, msg=seam("shift_labels are scored without shifting")
    )
    assert not backbone._forward_hooks
    assert not backbone._forward_pre_hooks


def test_of_a_scored_output_all_but_the_losses_is_per_token(host: Any, batch: dict) -> None:
    recorder = _trl.Recorder(host.model)
    host.compute_loss(recorder, batch)
    output, mask = recorder.output, batch[_trl.COMPLETION_MASK][:, 1:].bool()
    per_token = {name: value for name, value in output.items() if name not in ("loss", "aux_loss")}
    assert all(value.shape == mask.shape for value in per_token.values()), seam("fields of the fused head's output")
    assert {"log_probs", "entropy", "mean_logits", "is_top1", "label_mask"} <= set(per_token), seam("its names")
    compact = type(output)(**{name: value[mask][None] for name, value in per_token.items()})
    restored = _trl.scatter_to_batch(compact, mask.flatten().nonzero().squeeze(1), mask.shape)
    for name, value in per_token.items():
        assert torch.equal(getattr(restored, name), value), seam("fields are zero outside the completion")


def test_the_labels_are_the_completion_tokens(host: Any, batch: dict) -> None:
    spy = Spy(host.model)
    host.compute_loss(spy, batch)
    assert torch.equal(spy.calls[0]["labels"], _trl.labels_of(batch)), seam("labels")
    batch_keys = set(spy.calls[0]) - {"labels", "fused_lm_head"}
    assert batch_keys <= {"input_ids", "attention_mask", "use_cache", "output_router_logits"}, seam("keywords")


def test_tokenized_data_has_the_columns_that_lengths_are_made_of(host: Any) -> None:
    assert set(_trl.TOKEN_IDS) <= set(host.train_dataset.column_names), seam("prompt_ids, chosen_ids, rejected_ids")
    parameters = list(inspect.signature(DPOTrainer._prepare_dataset).parameters)
    assert parameters == ["self", "dataset", "processing_class", "args", "dataset_name"], seam("_prepare_dataset")


def test_policy_and_reference_are_found_and_are_text(host: Any) -> None:
    assert _trl.Host(host).models() == {"policy": host.model, "reference": host.ref_model}, seam("ref_model")
    assert _trl.Host(host).unsupported_inputs() == []
    parallel = SimpleNamespace(cp_size=2, sp_size=1)
    real = host.accelerator
    accelerator = SimpleNamespace(parallelism_config=parallel, state=real.state, unwrap_model=real.unwrap_model)
    split = SimpleNamespace(_is_vision_dataset=True, accelerator=accelerator, model=host.model, ref_model=None)
    (parts,) = _trl.Host(split).unsupported_inputs()
    assert "cp_size=2" in parts
    assert host._is_vision_dataset is False, seam("_is_vision_dataset")


def test_trl_asks_a_reference_for_its_truth_before_a_pass(tmp_path) -> None:
    """So a compiled reference, which may have none, is unwrapped for a store."""
    reference: Any = tiny.model(1)
    asked = []
    kind = type("Asked", (type(reference),), {"__bool__": lambda model: not asked.append(model)})
    reference.__class__ = kind
    runs.trainer(tmp_path, DPOTrainer, ref_model=reference, precompute_ref_log_probs=True)
    assert asked, seam("self.ref_model or self.model")


def test_virtual_tokens_stand_in_front() -> None:
    output = SimpleNamespace(log_probs=torch.arange(10.0).view(2, 5))
    assert _trl.scored_tokens(output, 3).tolist() == [[2, 3, 4], [7, 8, 9]]


def test_signature_columns_are_a_list_filled_on_demand(host: Any) -> None:
    host._signature_columns = None
    host._set_signature_columns_if_needed()
    assert {"prompt_ids", "chosen_ids", "rejected_ids"} <= set(host._signature_columns), seam("_signature_columns")


def test_the_columns_that_the_collator_reads_are_listed(host: Any) -> None:
    columns = _trl.Host(host).collated_columns()
    assert {"prompt_ids", "chosen_ids", "rejected_ids", *_trl.REFERENCE_COLUMNS} <= {*columns}, seam(
        "_signature_columns"
    )


def test_new_data_is_prepared_by_a_method_that_leaves_tokenized_data_as_it_is(host: Any) -> None:
    once = _trl.Host(host).prepared(tiny.preferences(2))
    assert {"prompt_ids", "chosen_ids", "rejected_ids"} <= {*once.column_names}, seam("_prepare_dataset")
    assert _trl.Host(host).prepared({"a": once})["a"][:] == once[:], seam("_prepare_dataset leaves tokenized data")


def test_evaluate_runs_its_own_pass_only_where_precompute_ref_logps_is_set(host: Any, monkeypatch) -> None:
    monkeypatch.setattr(host, "precompute_ref_logps", True)
    monkeypatch.setattr(type(host), "_precompute_ref_logps", lambda *_: pytest.fail(seam("precompute_ref_logps")))
    with _trl.Host(host).no_precompute():
        host.evaluate(_trl.Host(host).prepared(tiny.preferences(2)))


def test_the_tokenizer_in_a_processing_class_is_an_attribute(host: Any) -> None:
    assert host._tokenizer is host.processing_class, seam("_tokenizer")
