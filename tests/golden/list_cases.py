"""The golden cases of losses of lists: what the oracle works out, and the file they are written to.

    python -m tests.golden.list_cases

First it makes sure that the oracle reproduces every published number, then it writes `list_vectors.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mpmath import mpf, workdps

from .cases import as_text
from .oracle_lists import VARIANTS, Answer

FILE = Path(__file__).parent / "list_vectors.json"
PUBLISHED = json.loads((Path(__file__).parent / "published_lists.json").read_text())

AWKWARD = [
    # log-ratios 90, -90 and 0, the best answer the least likely one; a tie for worst
    {"pi": [-100.0, -10.0, -50.0], "ref": [-10.0, -100.0, -50.0], "n": [20, 16, 9], "u": [1.0, 0.25, 0.25]},
    # all tied
    {"pi": [-12.0, -15.0, -9.0], "ref": [-13.0, -14.0, -9.0], "n": [6, 8, 4], "u": [0.5, 0.5, 0.5]},
    # policy equal to reference; completions of one token
    {"pi": [-0.5, -2.25], "ref": [-0.5, -2.25], "n": [1, 1], "u": [0.125, 1.0]},
    # seven answers, two ties, one answer on the edge of the probable
    {
        "pi": [-30.0, -21.5, -8.25, -400.0, -0.125, -33.5, -17.0],
        "ref": [-29.0, -23.5, -9.0, -401.0, -0.25, -30.0, -18.25],
        "n": [12, 9, 4, 100, 1, 15, 7],
        "u": [0.75, 0.25, 0.75, 0.5, 0.0625, 0.25, 1.0],
    },
]
INPUTS = {"published": PUBLISHED["inputs"], "awkward": AWKWARD}

OPTIONS: dict[str, list[dict[str, Any]]] = {
    "pl": [{"beta": 0.1}, {"beta": 0.5, "pl_reduction": "mean"}],
    "pl_reference_free": [{}, {"pl_reference_free_beta": 0.5, "pl_reduction": "mean"}],
    "top1": [{"beta": 0.1}, {"beta": 1.0}],
    "infonca": [{"beta": 0.1, "infonca_tau": 1.0}, {"beta": 0.5, "infonca_tau": 0.01}],
    "nca": [{"beta": 0.1, "nca_tau": 1.0}, {"beta": 0.01, "nca_tau": 0.1}],
    "lipo": [{"beta": 0.1, "lipo_scale": 10.0}],
    "lipo_normalized": [{"beta": 0.1, "lipo_scale": 10.0}],
    "rrhf": [{}, {"rrhf_nll_weight": 0.0}, {"rrhf_nll_weight": 0.5, "rrhf_reduction": "mean"}],
    "sppo_list": [{}, {"sppo_beta": 0.1, "sppo_eta": 0.5}, {"sppo_beta": 0.1, "sppo_list_scores": "win_rates"}],
    "qrpo_list": [
        {"qrpo_list_scores": "samples"},
        {"qrpo_beta": 0.1},
        {"qrpo_beta": 0.1, "qrpo_transform": "log", "qrpo_error": "mae"},
    ],
}
"""Every set of hyperparameters that a variant is worked out for, on the published and on the awkward prompts."""


def answers_of(prompt: dict[str, list[float]]) -> list[Answer]:
    return [Answer(*numbers) for numbers in zip(*(prompt[name] for name in ("pi", "ref", "n", "u")), strict=True)]


@workdps(80)
def gradient(name: str, prompt: dict[str, list[float]], hyper: dict[str, Any]) -> list[float | None]:
    """Gradient of a prompt's value with respect to the policy's log-probs; None where the loss has a kink."""
    still = answers_of(prompt)
    at_rest = VARIANTS[name](still, **hyper)

    def slope(place: int, step: mpf) -> mpf:
        moved = [*still]
        moved[place] = Answer(still[place].pi + step, still[place].ref, still[place].n, still[place].u)
        moved[place].still = still[place]
        return (VARIANTS[name](moved, **hyper) - at_rest) / step

    def derivative(place: int) -> float | None:
        right, left = slope(place, mpf("1e-20")), slope(place, mpf("-1e-20"))
        smooth = abs(right - left) <= mpf("1e-12") * max(1, abs(right))
        return float((right + left) / 2) if smooth else None

    return [derivative(place) for place in range(len(still))]


def worked_out(name: str, batch: str, hyper: dict[str, Any]) -> dict[str, Any]:
    values = [float(VARIANTS[name](answers_of(prompt), **hyper)) for prompt in INPUTS[batch]]
    slopes = [gradient(name, prompt, hyper) for prompt in INPUTS[batch]]
    return {"inputs": batch, "hyper": hyper, "per_prompt": values, "gradient": slopes}


def disagreements() -> list[str]:
    """Published numbers that the oracle does not reproduce to 1e-12."""
    found = []
    for case in PUBLISHED["cases"]:
        prompts = PUBLISHED["inputs"]
        if case["at_the_reference"]:
            prompts = [prompt | {"ref": prompt["pi"]} for prompt in prompts]
        for prompt, value, slopes in zip(prompts, case["per_prompt"], case["gradient"], strict=True):
            ours = [VARIANTS[case["variant"]](answers_of(prompt), **case["hyper"])]
            ours += gradient(case["variant"], prompt, case["hyper"])
            wrong = [
                (mine, theirs)
                for mine, theirs in zip(ours, [value, *slopes], strict=True)
                if mine is not None and abs(mine - theirs) > 1e-12 * max(1.0, abs(theirs))
            ]
            found += [f"{case['variant']} {case['hyper']}: {wrong}"] if wrong else []
    return found


def vectors() -> dict[str, Any]:
    """What `list_vectors.json` holds."""
    on_tame = {name for name in VARIANTS if name not in ("qrpo_list", "sppo_list")}
    tame = {
        # Scores of about ten units are no quantiles and no win rates.
        name: [h for h in OPTIONS[name] if name in on_tame or "samples" in h.values() or "sppo_eta" in h]
        for name in VARIANTS
    }
    batches = {"published": tame, "awkward": OPTIONS}
    cases = {
        name: [worked_out(name, batch, hyper) for batch, hypers in batches.items() for hyper in hypers[name]]
        for name in sorted(VARIANTS)
    }
    return {"inputs": INPUTS, "cases": cases}


def main() -> None:
    """Write `list_vectors.json`, once the oracle agrees with everything published."""
    wrong = disagreements()
    assert not wrong, "\n".join(wrong)
    FILE.write_text(as_text(vectors()) + "\n")


if __name__ == "__main__":
    main()
