"""Lists of completions for the tiny model, and the pairs that they expand to."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

_PROMPTS = ("what is the capital of france", "how many legs has a dog", "two plus three is", "say yes")
_ANSWERS = ("paris", "well let me think about that", "five", "yes no", "four legs has dog", "blue sky", "really very")


def lists(sizes: tuple[int, ...] = (4, 3, 2, 5), conversational: bool = False, **columns: Any) -> Dataset:
    """Lists of these sizes, whose scores have ties, with prompts and answers of different lengths."""
    rows = []
    for row, size in enumerate(sizes):
        answers = [_ANSWERS[(row + at) % len(_ANSWERS)] for at in range(size)]
        prompt: Any = _PROMPTS[row % len(_PROMPTS)]
        completions: list[Any] = [f" {answer}" for answer in answers]
        if conversational:
            prompt = [{"role": "user", "content": prompt}]
            completions = [[{"role": "assistant", "content": answer}] for answer in answers]
        scores = [float((2 * at + row) % 3) for at in range(size)]
        rows.append({"prompt": prompt, "completions": completions, "scores": scores})
    dataset = Dataset.from_list(rows)
    for name, values in columns.items():
        dataset = dataset.add_column(name, values)
    return dataset


def ultrafeedback(rows: int = 8) -> Dataset:
    """Rows with the columns of openbmb/UltraFeedback; four answers each, one of which has no usable score."""
    found = []
    for row in lists((4,) * rows):
        answers = [
            {
                "response": text.strip(),
                "overall_score": None if row["prompt"] == "say yes" and not at else score + 7.5,
                "model": f"model-{at}",
                "fine-grained_score": score + 3,
                "principle": "helpfulness",
            }
            for at, (text, score) in enumerate(zip(row["completions"], row["scores"], strict=True))
        ]
        sources = ("sharegpt", "truthful_qa", "evol_instruct", "flan_v2_cot")
        found.append({"source": sources[len(found) % 4], "instruction": row["prompt"], "completions": answers})
    return Dataset.from_list(found)


def expanded(dataset: Any) -> Dataset:
    """Every ordered pair as a row, with a weight that gives each list the same part in the mean over all pairs."""
    found = []
    for row in dataset:
        answers = [*zip(row["completions"], row["scores"], strict=True)]
        pairs = [(better, worse) for better in answers for worse in answers if better[1] > worse[1]]
        found.append([_pair(row["prompt"], *pair) | {"weight": 1 / len(pairs)} for pair in pairs])
    every = [pair for pairs in found for pair in pairs]
    share = len(every) / len(found)
    return Dataset.from_list([pair | {"weight": pair["weight"] * share} for pair in every])


def _pair(prompt: Any, better: tuple[Any, float], worse: tuple[Any, float]) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "chosen": better[0],
        "rejected": worse[0],
        "score_chosen": better[1],
        "score_rejected": worse[1],
        "margin": better[1] - worse[1],
    }


def loss_and_gradients(run: Any) -> tuple[float, dict[str, Any]]:
    """The loss of a trainer on all of its training data as one batch, and the gradients."""
    batch = run._prepare_inputs(run.data_collator([*run.train_dataset]))
    run.model.train()
    run.model.zero_grad()
    loss = run.compute_loss(run.model, batch)
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in run.model.named_parameters() if weight.grad is not None}
    return float(loss), gradients
