"""Training on lists gives the loss and gradients of the expanded pairs, for every loss of pairs and every forward."""

from __future__ import annotations

import pytest
import torch

from tests.support import runs, tiny
from tests.support.lists import expanded, lists, loss_and_gradients
from tests.support.tolerances import rounding
from trl_dpo_ext.core.list_pairs import ordered_pairs
from trl_dpo_ext.forward.outputs import PairBatch

DOUBLE = {"per_device_train_batch_size": 16, "disable_dropout": True}


def both(tmp_path, data, loss_type, **settings):
    """Loss and gradients on lists, and on their expanded pairs fed one by one by the plain forward; in float64."""
    found = []
    for name, dataset, more in (
        ("lists", data, settings),
        ("pairs", expanded(data), {"weight_column": "weight"}),
    ):
        torch.manual_seed(0)
        run = runs.trainer(
            tmp_path / name,
            model=tiny.model().double(),
            ref_model=tiny.model(seed=1).double(),
            train_dataset=dataset,
            loss_type=loss_type,
            **more,
        )
        found.append(loss_and_gradients(run))
    return found


def assert_same(ours, theirs):
    (loss, gradients), (pair_loss, pair_gradients) = ours, theirs
    # Log-probs are sums of up to a dozen logs of a float32 softmax; losses weight them by a few units.
    assert loss == pytest.approx(pair_loss, abs=rounding(6.0 * max(1.0, pair_loss)))
    largest = max(float(each.abs().max()) for each in pair_gradients.values())
    assert largest > 0.01
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, pair_gradients[name], rtol=0, atol=rounding(8 * largest))


def test_lists_are_their_expanded_pairs(tmp_path):
    assert_same(*both(tmp_path, lists(), "sigmoid"))


@pytest.mark.slow
@pytest.mark.parametrize("loss_type", ["dpop", "simpo", "rpo_sq", "ipo", "sigmoid_norm", "tdpo1", ["sigmoid", "hinge"]])
def test_losses_of_pairs_on_lists_are_those_of_the_expanded_pairs(tmp_path, loss_type):
    assert_same(*both(tmp_path, lists(), loss_type))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"share_prompt": True}, {"padding_free": True}, {"precompute_ref_log_probs": True}]
)
@pytest.mark.parametrize("conversational", [False, True])
def test_every_forward_gives_the_same(tmp_path, settings, conversational):
    if "precompute_ref_log_probs" in settings:
        settings = {**settings, "ref_store": str(tmp_path / "store")}
    assert_same(*both(tmp_path, lists(conversational=conversational), "sigmoid", **settings))


def test_what_is_logged_is_of_the_best_answers_and_the_others(tmp_path):
    """Against the naive form: every answer by itself, through the plain model."""
    data = lists((3, 2, 5))
    run = runs.trainer(
        tmp_path, ref_model=tiny.model(seed=1), train_dataset=data, disable_dropout=True, max_length=None
    )
    batch = run._prepare_inputs(run.data_collator([*run.train_dataset]))
    run.model.train()
    run.compute_loss(run.model, batch)
    expected = _naive(run.model, run.ref_model, [*run.train_dataset])
    logged = {name: values[-1] for name, values in run._metrics["train"].items()}
    assert logged == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("padding_free", [False, True])
def test_an_evaluation_with_a_partial_last_batch_logs_means_over_all_lists(tmp_path, padding_free):
    data = lists((3, 2, 5, 4, 7))
    run = runs.trainer(
        tmp_path, ref_model=tiny.model(seed=1), train_dataset=data, eval_dataset=data, max_length=None,
        per_device_eval_batch_size=2, padding_free=padding_free,
    )  # fmt: skip
    expected = _naive(run.model, run.ref_model, [*run.eval_dataset])
    expected.pop("num_tokens")
    found = run.evaluate()
    assert {name: found[f"eval_{name}"] for name in expected} == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_under_accumulation_the_logged_means_are_those_of_the_batches_as_trl_has_them(tmp_path):
    """TRL logs the mean of the micro-batches' means, of pairs, too; here of 2, 2, and 1 lists."""
    data = lists((3, 2, 5, 4, 7))
    run = runs.trainer(
        tmp_path, ref_model=tiny.model(seed=1), train_dataset=data, max_length=None, max_steps=1,
        per_device_train_batch_size=2, gradient_accumulation_steps=3,
    )  # fmt: skip
    collator, batches = run.data_collator, []

    def noting(rows):
        batches.append(rows)
        return collator(rows)

    run.data_collator = noting
    run.train()
    assert [len(rows) for rows in batches] == [2, 2, 1]
    of_batches = [_naive(tiny.model(), tiny.model(seed=1), rows) for rows in batches]
    expected = {name: sum(each[name] for each in of_batches) / 3 for name in of_batches[0]}
    expected["num_tokens"] *= 3
    assert {name: runs.logs(run)[0][name] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_where_the_policy_is_its_reference_every_pair_is_a_tie(tmp_path):
    data = lists((3, 2, 5, 4, 7))
    run = runs.trainer(tmp_path, train_dataset=data, eval_dataset=data, per_device_eval_batch_size=2)
    found = run.evaluate()
    best = [row["scores"].count(max(row["scores"])) / len(row["scores"]) for row in data]
    assert found["eval_rewards/accuracies"] == 0.5
    assert found["eval_rewards/top1_accuracy"] == pytest.approx(sum(best) / len(best))


def _naive(policy, ref_model, rows):
    found, tokens = [], {"best": [], "rest": []}
    for row in rows:
        best = max(row["list_scores"])
        answers = []
        for ids, score in zip(row["list_ids"], row["list_scores"], strict=True):
            whole = torch.tensor([row["prompt_ids"] + ids])
            logits, reference = (
                model(input_ids=whole).logits[0, len(row["prompt_ids"]) - 1 : -1].detach()
                for model in (policy, ref_model)
            )
            labels = torch.tensor(ids)
            logps, ref_logps = (
                each.log_softmax(-1).gather(1, labels[:, None]).sum().item() for each in (logits, reference)
            )
            p = logits.softmax(-1)
            tokens["best" if score == best else "rest"] += [
                (line.mean().item(), float(line.argmax() == label), -(q * q.log()).sum().item())
                for line, label, q in zip(logits, labels, p, strict=True)
            ]
            answers.append((score, logps, 0.1 * (logps - ref_logps)))
        found.append(answers)

    def mean(values):
        values = [*values]
        return sum(values) / len(values)

    def by_prompt(value, chosen):
        return mean(mean(a[value] for a in one if (a[0] == max(b[0] for b in one)) == chosen) for one in found)

    def accuracy(one):
        pairs = [(a[2], b[2]) for a in one for b in one if a[0] > b[0]]
        return mean(float(a > b) + 0.5 * (a == b) for a, b in pairs)

    rewards = {"rewards/chosen": by_prompt(2, True), "rewards/rejected": by_prompt(2, False)}
    return rewards | {
        "rewards/margins": rewards["rewards/chosen"] - rewards["rewards/rejected"],
        "rewards/accuracies": mean(map(accuracy, found)),
        "rewards/top1_accuracy": mean(
            float(max(one, key=lambda a: a[2])[0] == max(a[0] for a in one)) for one in found
        ),
        "logps/chosen": by_prompt(1, True),
        "logps/rejected": by_prompt(1, False),
        "logits/chosen": mean(each[0] for each in tokens["best"]),
        "logits/rejected": mean(each[0] for each in tokens["rest"]),
        "mean_token_accuracy": mean(each[1] for each in tokens["best"]),
        "entropy": mean(each[2] for each in (*tokens["best"], *tokens["rest"])),
        "num_tokens": sum(len(row["prompt_ids"]) + len(ids) for row in rows for ids in row["list_ids"]),
    }


@pytest.mark.slow
def test_lists_of_two_are_pairs_bit_for_bit(tmp_path):
    pairs = tiny.preferences(8)
    as_lists = pairs.map(
        lambda row: {"completions": [row["chosen"], row["rejected"]], "best": 0},
        remove_columns=["chosen", "rejected"],
    )
    settings = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 3}
    ours = runs.trained(tmp_path / "lists", train_dataset=as_lists, eval_dataset=as_lists.select(range(5)), **settings)
    theirs = runs.trained(tmp_path / "pairs", train_dataset=pairs, eval_dataset=pairs.select(range(5)), **settings)
    assert all(torch.equal(tensor, runs.weights(theirs)[name]) for name, tensor in runs.weights(ours).items())
    for mine, other in zip(runs.logs(ours), runs.logs(theirs), strict=True):
        counted = {name for name in other if "accuracies" not in name}  # where ties count one half
        assert {name: mine[name] for name in counted} == pytest.approx(
            {name: other[name] for name in counted}, rel=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize("list_pairs", ["all", "1", "3"])
def test_evaluation_does_not_depend_on_batches(tmp_path, list_pairs):
    data = lists((3, 2, 5, 4, 2))
    found = []
    for size in (1, 2, 5):
        run = runs.trainer(tmp_path, loss_type=["sigmoid", "pl"], train_dataset=data, ref_model=tiny.model(seed=1),
                           per_device_eval_batch_size=size, list_pairs=list_pairs)  # fmt: skip
        found.append({name: value for name, value in run.evaluate(data).items() if "_per_" not in name})
        found[-1].pop("eval_runtime")
    assert "eval_rewards/top1_accuracy" in found[0]
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[2] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.slow
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    data = lists((3, 2, 5, 4, 2, 3, 6, 2))
    settings = {"train_dataset": data, "list_pairs": "2", "per_device_train_batch_size": 2, "max_steps": 6}
    whole = runs.trained(tmp_path / "whole", **settings)
    runs.trained(tmp_path / "parts", save_strategy="steps", save_steps=3, **settings)
    resumed = runs.trainer(tmp_path / "parts", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    assert all(torch.equal(tensor, runs.weights(whole)[name]) for name, tensor in runs.weights(resumed).items())


def drawn_by(run, rows, train=True):
    """By list: the scores of the pairs that a trainer draws from a batch of these rows of its training data."""
    batch = PairBatch.take(run.data_collator([run.train_dataset[row] for row in rows]), ())
    run.model.train(train)
    better, worse = ordered_pairs(batch.lists.scores, batch.lists.prompt, 3, run._draw(batch.lists))
    pairs = {row: [] for row in rows}
    for i, j in zip(better.tolist(), worse.tolist(), strict=True):
        row = rows[batch.lists.prompt[i]]
        pairs[row].append((i - batch.lists.prompt.tolist().index(batch.lists.prompt[i]), j - i))
    return pairs


def test_the_pairs_drawn_of_a_list_depend_on_seed_and_step_not_on_its_batch(tmp_path):
    run = runs.trainer(tmp_path, train_dataset=lists((5, 6, 7, 4)), list_pairs="3")
    together = drawn_by(run, [0, 1, 2, 3])
    assert together == drawn_by(run, [0, 1]) | drawn_by(run, [3, 2])
    evaluated = drawn_by(run, [0, 1, 2, 3], train=False)
    assert evaluated == drawn_by(run, [2], train=False) | drawn_by(run, [3, 0, 1], train=False)
    run.state.global_step = 7
    assert drawn_by(run, [0, 1, 2, 3]) != together
    assert drawn_by(run, [0, 1, 2, 3], train=False) == evaluated
    run.args.seed += 1
    assert drawn_by(run, [0, 1, 2, 3], train=False) != evaluated


@pytest.mark.slow
def test_an_adapter_is_its_own_reference(tmp_path):
    from peft import LoraConfig

    def trained(name, **more):
        torch.manual_seed(0)
        adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        return runs.trained(tmp_path / name, train_dataset=lists(), peft_config=adapter, disable_dropout=True, **more)

    live, stored = trained("live"), trained("store", precompute_ref_log_probs=True, ref_store=str(tmp_path / "logps"))
    assert live.ref_model is None
    for mine, theirs in zip(runs.logs(stored), runs.logs(live), strict=True):
        assert mine["step"] == theirs["step"]
        if "loss" in mine:
            assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


@pytest.mark.slow
def test_shared_prompts_feed_the_prompt_and_each_answer_once(tmp_path):
    data = lists((5, 4), conversational=False).map(lambda row: {"prompt": "well " * 10 + row["prompt"]})
    run = runs.trainer(tmp_path, train_dataset=data, share_prompt=True, ref_model=tiny.model(seed=1))
    fed = []
    run.model.get_input_embeddings().register_forward_hook(lambda module, given, out: fed.append(given[0].numel()))
    run.pair_forward.to_verify = False
    loss_and_gradients(run)
    rows = [*run.train_dataset]
    # Without the last token of each answer, which is only predicted; answers may begin alike, and prompts do.
    most = sum(len(row["prompt_ids"]) + sum(len(ids) - 1 for ids in row["list_ids"]) for row in rows)
    assert fed[0] <= most
