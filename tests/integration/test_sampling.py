"""Samples of a run that trains: what plain transformers generates, and a run that does not notice."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig
from transformers import LlamaForCausalLM, TrainerCallback

from tests.support import architectures, runs, tiny
from trl_dpo_ext import InputError
from trl_dpo_ext.watch import kl, sampling
from trl_dpo_ext.watch.sampling import Sampler

WATCHED: dict[str, Any] = {"watch": True, "watch_prompts": 5, "watch_max_new_tokens": 8}
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.5, init_lora_weights=False)


class Sampling(TrainerCallback):
    """Samples before training and after each step."""

    def __init__(self, run: Any, before: Callable[[int], None] = lambda step: None) -> None:
        self.sampler, self.before = sampler(run), before
        self.sampled: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.sampler.begin(state.global_step)
        self._sample(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._sample(state.global_step)

    def _sample(self, step: int) -> None:
        self.before(step)
        self.sampled.append(self.sampler.sample(step))


def trainer(folder: Path, **settings: Any) -> Any:
    """A trainer that does not watch itself, and the options of a sampler as `run.watched`."""
    settings = {"eval_dataset": tiny.preferences(8), "max_steps": 2, **settings}
    watched = {name: settings.pop(name) for name in list(settings) if name.startswith("watch")}
    run = runs.trainer(folder, **settings)
    run.watched = copy.copy(run.args)
    vars(run.watched).update({**WATCHED, **watched})
    return run


def sampler(run: Any) -> Sampler:
    return Sampler(run.host, run.watched, run.reference)


def sampled(folder: Path, before: Callable[[int], None] = lambda step: None, **settings: Any) -> tuple[Any, Sampling]:
    run = trainer(folder, **settings)
    sampling = Sampling(run, before)
    run.add_callback(sampling)
    run.train()
    return run, sampling


@torch.no_grad()
def greedy(model: Any, prompt: str) -> list[int]:
    ids = torch.tensor([tiny.tokenizer()(prompt)["input_ids"]])
    found = model.eval().generate(input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    return found[0, ids.size(1) :].tolist()


def test_greedy_answers_are_those_of_plain_transformers(tmp_path) -> None:
    run, watched = sampled(tmp_path)
    for model, found in ((tiny.model(), watched.sampled[0]), (run.model, watched.sampled[-1])):
        assert len(found.rows) == 5
        for row in found.rows:
            assert row["completion_ids"] == greedy(model, row["prompt"])
    before, after = (each.rows for each in (watched.sampled[0], watched.sampled[-1]))
    assert [row["prompt_id"] for row in before] == [row["prompt_id"] for row in after]
    assert any(a["completion_ids"] != b["completion_ids"] for a, b in zip(before, after, strict=True))


def test_what_the_models_generation_configuration_asks_for_is_not_what_was_learned(tmp_path) -> None:
    model = tiny.model()
    model.generation_config.update(do_sample=True, temperature=9.0, repetition_penalty=30.0, max_new_tokens=2)
    run = trainer(tmp_path, model=model)
    settings = model.generation_config.to_dict()
    for row in sampler(run).sample(0).rows:
        assert row["completion_ids"] == greedy(tiny.model(), row["prompt"])
    assert model.generation_config.to_dict() == settings


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sampled": {"watch_temperature": 0.7, "watch_kl": "k3"},
    "checkpointing": {"gradient_checkpointing": True},
    "adapter": {"peft_config": LORA},
    "dropout": {"model_init_kwargs": None, "disable_dropout": False},
    "shared_prompts": {"share_prompt": True, "padding_free": True},
    "stored": {"precompute_ref_log_probs": True},
}


@pytest.mark.parametrize("name", list(SETTINGS))
def test_weights_and_logs_are_the_same_bit_for_bit(tmp_path, name: str) -> None:
    settings, found = SETTINGS[name], []
    for watching in (False, True):
        model = tiny.model(attention_dropout=0.5 if name == "dropout" else 0.0)
        stored = {"ref_store": str(tmp_path / "store")} if name == "stored" else {}
        run = trainer(tmp_path / str(watching), model=model, **settings, **stored)
        states: list[Any] = []
        if watching:
            run.add_callback(Sampling(run))
        random.seed(1)
        np.random.seed(1)
        run.train()
        states += [random.random(), np.random.rand(), torch.rand(1).item()]
        found.append((runs.weights(run), runs.logs(run), states, run.model.training, tiny.tokenizer().padding_side))
    (plain, logs, *rest), (watched, their_logs, *their_rest) = found
    assert all(torch.equal(plain[key], watched[key]) for key in plain)
    assert logs == their_logs
    assert rest == their_rest


@pytest.mark.parametrize("conversational", [False, True])
def test_prompts_are_the_tokens_that_training_feeds(tmp_path, conversational: bool) -> None:
    data = tiny.preferences(8, conversational)
    run = trainer(tmp_path, train_dataset=data, eval_dataset=data, watch_prompts=8)
    chosen = sampler(run).prompts
    assert {prompt.ids for prompt in chosen} == {tuple(ids) for ids in run.eval_dataset["prompt_ids"]}
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in data["prompt"]))
    run = trainer(tmp_path, train_dataset=data, eval_dataset=data, watch_prompts_file=str(file))
    of_file = sampler(run)
    assert {prompt.ids for prompt in of_file.prompts} == {prompt.ids for prompt in chosen}
    assert all(("<user>" in prompt.text) == conversational for prompt in of_file.prompts)  # special tokens can be seen


def test_a_text_in_a_file_of_prompts_is_a_message_where_training_has_messages(tmp_path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "say yes"}\n\n{"prompt": "say yes"}\n{"prompt": "is the sky blue"}\n')
    run = trainer(tmp_path, train_dataset=tiny.preferences(8, True), eval_dataset=None, watch_prompts_file=str(file))
    texts = [prompt.text for prompt in sampler(run).prompts]
    assert texts == ["<user> say yes <assistant>", "<user> is the sky blue <assistant>"]
    assert [row["last_message"] for row in sampler(run).sample(0).rows] == ["say yes", "is the sky blue"]


@pytest.mark.parametrize("line", ["not json", '{"text": "a"}', '{"prompt": ""}', '{"prompt": [{"role": "user"}]}', ""])
def test_a_line_without_a_prompt_is_named(tmp_path, line: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "say yes"}\n' * bool(line) + line + "\n")
    with pytest.raises(InputError, match="line 2 has none" if line else "it is empty"):
        runs.config(tmp_path, watch_prompts_file=str(file))


def test_the_same_prompts_are_chosen_in_any_order_of_the_rows(tmp_path) -> None:
    rows = tiny.preferences(8)
    found = []
    for data in (
        rows,
        rows.shuffle(seed=3),
        rows.select([*range(8), 2, 3]),
        {"first": rows.shuffle(seed=5), "b": rows},
    ):
        run = trainer(tmp_path, eval_dataset=data, watch_prompts=3)
        chosen = sampler(run)
        found.append([prompt.name for prompt in chosen.prompts])
    assert len(set(found[0])) == 3
    assert all(each == found[0] for each in found)
    assert chosen.source == "of the evaluation set 'first'"
    run = trainer(tmp_path, eval_dataset=None, watch_prompts=3)
    assert sampler(run).source == "of the training set"
    run = trainer(tmp_path, eval_dataset=rows.to_iterable_dataset(), watch_prompts=3)
    assert [prompt.name for prompt in sampler(run).prompts] == found[0]


def test_prompts_leave_room_for_the_answer_where_positions_are_learned(tmp_path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tiny.tokenizer()), **sizes))
    run = trainer(tmp_path, model=model, watch_prompts=8, watch_max_new_tokens=20, max_length=24)
    prompts = sampler(run).prompts
    assert {len(prompt.ids) for prompt in prompts} == {2, 4}
    run = trainer(tmp_path, model=model, watch_max_new_tokens=23, max_length=24)
    with pytest.warns(UserWarning, match="no prompts of the evaluation set that leave room for 23 tokens"):
        off = sampler(run)
    assert not off.is_on


def test_lines_are_appended_and_a_resumed_run_removes_those_of_later_steps(tmp_path) -> None:
    _, watched = sampled(tmp_path)
    file = tmp_path / "watch" / "samples.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [0] * 5 + [1] * 5 + [2] * 5
    assert lines == [dict(row) for each in watched.sampled for row in each.rows]
    resumed = trainer(tmp_path)
    again = sampler(resumed)
    again.begin(1)
    assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [0] * 5 + [1] * 5
    again.begin(0)
    assert file.read_text() == ""


def test_text_shows_how_an_answer_ends(tmp_path) -> None:
    model = tiny.model()
    with torch.no_grad():
        model.lm_head.weight[2] = model.lm_head.weight[2] * 0 + 100 * model.model.norm.weight
    run = trainer(tmp_path, model=model)
    rows = [row for step in (0,) for row in sampler(run).sample(step).rows]
    assert {row["ended"] for row in rows} == {True, False}
    for row in rows:
        assert row["completion"].endswith("<eos>" if row["ended"] else "...")
        assert row["length"] == len(row["completion_ids"]) - row["ended"]
        assert row["ended"] or row["length"] == 8


def test_kl_is_zero_at_the_start_and_log_probs_are_those_of_the_answers(tmp_path) -> None:
    _, watched = sampled(tmp_path)
    start, last = watched.sampled[0], watched.sampled[-1]
    assert start.kl == last.kl == "exact"
    assert start.metrics["watch/kl_per_token"] == pytest.approx(0.0, abs=1e-6)
    assert last.metrics["watch/kl_per_token"] > 1e-4
    assert last.metrics["watch/kl_per_answer"] > last.metrics["watch/kl_per_token"]
    model = tiny.model().eval()
    for row in start.rows:
        prompt = tiny.tokenizer()(row["prompt"])["input_ids"]
        ids = torch.tensor([[*prompt, *row["completion_ids"]]])
        with torch.no_grad():
            logps = model(input_ids=ids).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        truth = logps.gather(1, ids[0, len(prompt) :, None]).sum().item()
        assert row["logp"] == pytest.approx(truth, abs=1e-4)
        assert row["ref_logp"] == pytest.approx(truth, abs=1e-4)


def test_kl_does_not_depend_on_the_temperature_of_the_answers(tmp_path) -> None:
    found = []
    for temperature in (0.0, 2.0):
        _, watched = sampled(tmp_path, watch_temperature=temperature)
        found.append([each.metrics["watch/kl_per_token"] for each in watched.sampled])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "settings", [{"precompute_ref_log_probs": True}, {"loss_type": "simpo"}, {"watch_kl": "off"}], ids=str
)
def test_without_a_live_reference_there_is_no_kl(tmp_path, settings: dict) -> None:
    stored = {"ref_store": str(tmp_path / "store")} if "precompute_ref_log_probs" in settings else {}
    _, watched = sampled(tmp_path, **settings, **stored)
    assert not any("kl" in name for name in watched.sampled[-1].metrics)
    assert watched.sampled[-1].kl == ""
    assert (watched.sampled[-1].rows[0]["ref_logp"] is None) == ("watch_kl" not in settings)


def test_an_adapter_is_on_for_the_policy_and_off_for_the_reference(tmp_path) -> None:
    run, watched = sampled(tmp_path, peft_config=LORA)
    for row in watched.sampled[-1].rows:
        assert row["completion_ids"] == greedy(run.model, row["prompt"])
    assert watched.sampled[-1].metrics["watch/kl_per_token"] > 1e-3
    base = run.model.unload()
    assert any(row["completion_ids"] != greedy(base, row["prompt"]) for row in watched.sampled[-1].rows)


def test_an_adapter_that_learns_a_prompt_is_named_and_the_run_goes_on(tmp_path) -> None:
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.warns(UserWarning, match=r"no answers are sampled, because the adapter \(PREFIX_TUNING\)"):
        run, watched = sampled(tmp_path, peft_config=config, gradient_checkpointing=False)
    assert watched.sampled == [None, None, None]
    assert run.state.global_step == 2


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception, int], None]:
    """Lets the n-th forward of a policy from then on raise."""

    def arm(error: Exception, call: int) -> None:
        forward, calls = LlamaForCausalLM.prepare_inputs_for_generation, 0

        def raising(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                raise error
            return forward(self, *args, **kwargs)

        monkeypatch.setattr(LlamaForCausalLM, "prepare_inputs_for_generation", raising)

    return arm


def test_an_exception_is_told_once_and_training_goes_on(tmp_path, failing) -> None:
    plain = trainer(tmp_path / "plain")
    plain.train()

    def before(step: int) -> None:
        if step == 1:
            failing(RuntimeError("broken model"), 3)

    with pytest.warns(
        UserWarning, match=r"sampling failed at step 1 .* training goes on. RuntimeError: broken"
    ) as told:
        run, watched = sampled(tmp_path / "watched", before)
    assert sum("sampling failed" in str(each.message) for each in told) == 1
    assert [each is None for each in watched.sampled] == [False, True, True]
    assert all(torch.equal(runs.weights(run)[name], tensor) for name, tensor in runs.weights(plain).items())
    assert not run.model.training or plain.model.training


def test_out_of_memory_halves_the_batch_once(tmp_path, failing) -> None:
    def before(step: int) -> None:
        if step in (1, 2):
            failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), 3)

    with pytest.warns(UserWarning, match="sampling failed at step 2"):
        _, watched = sampled(tmp_path, before, per_device_eval_batch_size=4)
    assert [each is None for each in watched.sampled] == [False, False, True]
    assert watched.sampler.batch_size == 2
    assert len(watched.sampled[1].rows) == 5


def test_a_full_disk_ends_sampling_and_not_the_run(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(sampling, "append_lines", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        run, watched = sampled(tmp_path)
    assert watched.sampled == [None, None, None]
    assert run.state.global_step == 2


def test_a_compiled_policy_is_run_as_it_was(tmp_path) -> None:
    compiled: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    model = tiny.model()
    model.compile(backend=backend)
    run = trainer(tmp_path, model=model)
    found = sampler(run).sample(0)
    assert compiled == []
    assert [row["completion_ids"] for row in found.rows] == [greedy(tiny.model(), row["prompt"]) for row in found.rows]


def test_data_with_one_row_is_enough(tmp_path) -> None:
    row = Dataset.from_dict({"prompt": ["say yes"], "chosen": [" yes"], "rejected": [" no"]})
    run = trainer(tmp_path, eval_dataset=row)
    assert len(sampler(run).sample(0).rows) == 1


def test_a_stored_reference_gives_the_log_ratio_of_chosen_answers_and_it_is_not_called_kl(tmp_path) -> None:
    settings = {"eval_dataset": tiny.preferences(8), "eval_strategy": "steps", "eval_steps": 1}
    watched = {**WATCHED, "max_steps": 1, "precompute_ref_log_probs": True, "ref_store": str(tmp_path / "store")}
    run = runs.trained(tmp_path, **settings, **watched)
    evaluated = [line for line in run.state.log_history if "eval_rewards/chosen" in line][-1]
    told = [line for line in run.state.log_history if "watch/logratio_chosen" in line]
    tokens = sum(len(ids) for ids in run.eval_dataset["chosen_ids"]) / len(run.eval_dataset)
    assert told[0]["watch/logratio_chosen"] == pytest.approx(0.0, abs=1e-6)
    assert told[-1]["watch/logratio_chosen"] == pytest.approx(
        evaluated["eval_rewards/chosen"] / run.args.beta / tokens, rel=1e-4
    )
    assert abs(told[-1]["watch/logratio_chosen"]) > 1e-3
    assert not any("kl_per" in name for line in run.state.log_history for name in line)


@torch.no_grad()
@pytest.mark.parametrize("name", ["Bloom", "gemma2", "mistral-window", "Mamba"])
def test_other_architectures_are_sampled_as_plain_transformers_does(tmp_path, name: str) -> None:
    """No positions, capped logits, windows, and a state in place of a cache."""
    eager = {"n_head": 4, "attn_implementation": "eager"}
    model = architectures.construct(name, eager) if name in ("Bloom", "Mamba") else architectures.build(name)
    plain = copy.deepcopy(model)
    run = trainer(tmp_path, model=model, processing_class=tiny.tokenizer(), per_device_eval_batch_size=3)
    found = sampler(run).sample(0)
    assert [row["completion_ids"] for row in found.rows] == [greedy(plain, row["prompt"]) for row in found.rows]
    assert found.metrics["watch/kl_per_token"] == pytest.approx(0.0, abs=1e-5)
    for row in found.rows:
        assert row["logp"] == pytest.approx(row["ref_logp"], abs=1e-4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda run: setattr(run, "_is_vision_dataset", True), "prompts have images"),
        (lambda run: setattr(run.model.config, "is_encoder_decoder", True), "LlamaForCausalLM is an encoder-decoder"),
        (lambda run: setattr(run.accelerator.state, "parallelism_config", SimpleNamespace(cp_size=2)), "cp_size=2"),
    ],
)
def test_what_cannot_be_sampled_is_named(tmp_path, change: Callable[[Any], None], reason: str) -> None:
    run = trainer(tmp_path)
    change(run)
    with pytest.warns(UserWarning, match=f"no answers are sampled, because {reason}"):
        off = sampler(run)
    assert off.sample(0) is None


def test_k3_takes_the_place_of_exact_where_logits_exceed_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(type="cuda")
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 3 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 2 << 30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 29, 80 << 30))  # 1.5 GiB with what is reserved
    needed = 2 * 4 * 100_000 * 65  # bytes for each row
    rows = int(0.8 * 1.5 * 2**30 / needed)
    assert kl.choose("auto", 100_000, rows, gpu) == "exact"  # type: ignore[arg-type]
    assert kl.choose("auto", 100_000, rows + 1, gpu) == "k3"  # type: ignore[arg-type]
    assert kl.choose("exact", 100_000, rows + 1, gpu) == "exact"  # type: ignore[arg-type]
    assert kl.choose("auto", 100_000, rows + 1, torch.device("cpu")) == "exact"
