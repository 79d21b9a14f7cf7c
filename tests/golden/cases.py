"""The golden cases: which batches and hyperparameters the oracle works out, and the file they are written to.

    python -m tests.golden.cases

First it makes sure that the oracle reproduces every published number, then it writes `vectors.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mpmath import mpf, workdps

from . import oracle_links, oracle_tokens, oracle_transforms  # noqa: F401  (importing the formulas enters them)
from .oracle import VARIANTS, Row, mean
from .oracle_running import cold_start

HERE = Path(__file__).parent
PUBLISHED = json.loads((HERE / "published.json").read_text())

SHARED = {"beta": 0.1, "label_smoothing": 0.0, "discopop_tau": 0.05}
"""TRL's defaults of the hyperparameters that variants share."""
NOT_DEFAULT = {"exo_pair": {"label_smoothing": 1e-3}, "beta_dpo": {"beta_dpo_rho": 0.0}}
"""What a variant is given in a default's place: exo has none at 0, and the oracle draws no random numbers."""

AWKWARD = {
    # log-ratios +90/-90, -90/+90 and +90/+86; completions of one token; policy equal to reference; chosen equal to
    # rejected; and an answer so long-winded that its mean log-prob is -400
    "chosen": [-10.0, -100.0, -3.0, -0.5, -14.0, -9.0, -400.0],
    "rejected": [-100.0, -10.0, -5.0, -2.25, -17.0, -9.0, -2.0],
    "ref_chosen": [-100.0, -10.0, -93.0, -0.75, -14.0, -8.5, -401.0],
    "ref_rejected": [-10.0, -100.0, -91.0, -1.5, -17.0, -8.5, -1.0],
    "chosen_lengths": [20, 16, 4, 1, 5, 3, 1],
    "rejected_lengths": [16, 20, 2, 1, 4, 3, 3],
    "ref_entropy": [0.3, 0.0, 1.0, 0.5, 0.9, 0.05, 0.2],
    "columns": {
        "score_chosen": [66.0, 3.0, 1.0, 5.0, 2.0, 4.0, 4.5],
        "score_rejected": [6.0, 2.5, 0.875, 4.0, 1.0, 3.5, 1.25],
        "p_chosen": [1.0, 0.0, 0.5, 0.75, 0.01, 0.9, 0.6],
        "delta_r": [1.0, 0.0, 0.125, 0.5, 0.25, 0.75, 0.9],
        "margin": [0.0, 3.0, -1.0, 0.5, 2.0, 1.0, 0.25],
        "quantile_chosen": [1.0, 0.5, 0.75, 0.02, 0.9, 1.0, 0.25],
        "quantile_rejected": [0.02, 0.5, 0.25, 1.0, 0.3, 0.75, 0.125],
    },
}
INPUTS = {"published": PUBLISHED["inputs"], "awkward": AWKWARD}

# Hyperparameters worth a case of their own, beside the published and the default ones.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "exo_pair": [{"beta": 0.5, "label_smoothing": 0.1}],
    "robust": [{"beta": 0.1, "label_smoothing": 0.4}],
    "aot": [{"beta": 0.2, "label_smoothing": 0.1, "aot_global": everyone} for everyone in (False, True)],
    "aot_unpaired": [{"beta": 0.2, "label_smoothing": 0.1, "aot_global": everyone} for everyone in (False, True)],
    "discopop": [{"beta": 1.0, "discopop_tau": 5.0}],
    "margin": [{"beta": 0.1, "margin_scale": 0.0}],
    "odpo": [{"beta": 0.1, "odpo_alpha": 0.5, "odpo_transform": "identity"}],
    "simpo": [
        {"simpo_beta": 2.5, "simpo_gamma_beta_ratio": 0.55},
        {"simpo_beta": 10.0, "simpo_gamma": 3.0, "simpo_label_smoothing": 0.1},
        {"simpo_link": "hinge"},
        {"simpo_link": "hinge", "simpo_label_smoothing": 0.2},
    ],
    "alphapo": [{"alphapo_alpha": -0.5}, {"alphapo_alpha": 0.0, "alphapo_gamma": 0.5}],
    "arpo": [{"beta": 0.1, "arpo_detach": True}],
    "chipo": [{"beta": 0.05, "chipo_clip": 0.25}],
    "bdpo": [{"beta": 0.1, "bdpo_lambda": 1.0}],
    "focalpo": [{"beta": 0.1, "focalpo_gamma": 2.0}],
    "hdpo": [{"beta": 0.1, "hdpo_alpha": 1.25}],
    "dpo_shift": [
        {"beta": 0.1, "dpo_shift_schedule": course, "dpo_shift_min": 0.5, "dpo_shift_max": 0.9}
        for course in ("increase_linear", "decrease_linear")
    ],
    "anc_dpo": [{"beta": 0.1, "anc_dpo_delta": 0.5}],
    "dr_dpo": [{"beta": 0.5, "dr_dpo_beta": 0.25}],
    "gamma_po": [{"gamma_po_beta": 2.5, "gamma_po_ratio": 0.15, "gamma_po_tau": 0.25}],
    "rainbowpo": [{"rainbowpo_alpha": alpha, "rainbowpo_home": 0.05} for alpha in (0.0, 0.9)],
    "qrpo": [{"qrpo_transform": "log", "qrpo_error": "mae"}],
    "sympo": [{"beta": 0.5, "sympo_clip": 0.0}, {"beta": 0.1, "sympo_link": "ramp", "sympo_clip": 0.0}],
    "centered": [{"beta": 1e-6}],
    "uni_dpo": [{"uni_dpo_beta": 10.0, "uni_dpo_tau_ref": 1.0, "uni_dpo_lambda": 0.2}],
    "amapo": [{"amapo_beta": 2.5, "amapo_label_smoothing": 0.1}],
    "dpo_nll": [{"beta": 0.1, "dpo_nll_weight": 0.2, "dpo_nll_norm": norm} for norm in ("seq_sum", "token_mean")],
}


WORDS = {
    "chosen": "pi_w",
    "rejected": "pi_l",
    "ref_chosen": "ref_w",
    "ref_rejected": "ref_l",
    "chosen_lengths": "n_w",
    "rejected_lengths": "n_l",
    "ref_entropy": "H",
}


def numbers_of(inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """What each row of a batch is made of."""
    numbers = {short: inputs[word] for word, short in WORDS.items()} | inputs["columns"]
    return [dict(zip(numbers, values, strict=True)) for values in zip(*numbers.values(), strict=True)]


def rows_of(inputs: dict[str, Any], f_divergence: dict[str, Any] | None = None) -> list[Row]:
    """A batch as the oracle reads it."""
    rows = [Row(**numbers) for numbers in numbers_of(inputs)]
    if f_divergence:
        for row in rows:
            row.z_w = oracle_transforms.f_divergence_score(row.lr_w, **f_divergence)
            row.z_l = oracle_transforms.f_divergence_score(row.lr_l, **f_divergence)
    return rows


@workdps(80)
def gradient(name: str, inputs: dict[str, Any], given: dict[str, Any]) -> dict[str, list[float | None]]:
    """Gradient of the mean loss with respect to the policy's log-probs; None where the loss has a kink.

    A policy log-prob is moved to either side by 1e-20, while stop-gradients (`row.still`) keep reading the batch as it
    was.
    """
    still = rows_of(inputs)  # each is its own `still`
    at_rest = mean(VARIANTS[name](still, **given))

    numbers = numbers_of(inputs)

    def slope(side: str, pair: int, step: mpf) -> mpf:
        word = WORDS[side]
        moved = [*still]
        moved[pair] = Row(**{**numbers[pair], word: mpf(numbers[pair][word]) + step})
        moved[pair].still = still[pair]
        return (mean(VARIANTS[name](moved, **given)) - at_rest) / step

    def derivative(side: str, pair: int) -> float | None:
        right, left = slope(side, pair, mpf("1e-20")), slope(side, pair, mpf("-1e-20"))
        smooth = abs(right - left) <= mpf("1e-12") * max(1, abs(right))
        return float((right + left) / 2) if smooth else None

    return {side: [derivative(side, pair) for pair in range(len(still))] for side in ("chosen", "rejected")}


def default_hyper(name: str) -> dict[str, Any]:
    """TRL's defaults for what is shared; what a variant owns keeps its own."""
    return {shared: SHARED[shared] for shared in VARIANTS[name].shared} | NOT_DEFAULT.get(name, {})


def cases_of(name: str) -> list[dict[str, Any]]:
    """Every case of one variant: published, default and optional hyperparameters, on tame and awkward batches."""
    published = PUBLISHED["variants"].get(name, [])
    hypers = [case["hyper"] for case in published if "f_divergence" not in case]
    for hyper in [default_hyper(name), *OPTIONS.get(name, [])]:
        if hyper not in hypers:
            hypers.append(hyper)
    told = [{"hyper": hyper} for hyper in hypers]
    told += [
        {"hyper": case["hyper"], "f_divergence": case["f_divergence"]} for case in published if "f_divergence" in case
    ]
    if VARIANTS[name].running:
        told += [{"hyper": hyper, "earlier": ["published", "awkward"]} for hyper in hypers]
    return [worked_out(name, {"inputs": batch, **case}) for batch in INPUTS for case in told]


def worked_out(name: str, case: dict[str, Any]) -> dict[str, Any]:
    """A case with its values and, for the plain log-ratio, its gradient."""
    inputs, given = INPUTS[case["inputs"]], dict(case["hyper"])
    if "earlier" in case:
        given["earlier"] = [rows_of(INPUTS[batch]) for batch in case["earlier"]]
    case = case | _rounded(VARIANTS[name](rows_of(inputs, case.get("f_divergence")), **given))
    return case if "f_divergence" in case else case | {"gradient": gradient(name, inputs, given)}


def _rounded(values: list[mpf]) -> dict[str, Any]:
    return {"per_pair": [float(value) for value in values], "mean": float(mean(values))}


def disagreements() -> list[str]:
    """Published numbers that the oracle does not reproduce to 1e-12."""
    found = []
    for name, published in PUBLISHED["variants"].items():
        for case in published:
            rows = rows_of(PUBLISHED["inputs"], case.get("f_divergence"))
            cold = "cold_start" in case
            ours = _rounded(cold_start(name, rows, case["hyper"]) if cold else VARIANTS[name](rows, **case["hyper"]))
            expected = case.get("per_pair", ours["per_pair"])  # of Dr. DPO, only the batch's value is published
            pairs = [(ours["mean"], case["mean"]), *zip(ours["per_pair"], expected, strict=True)]
            if any(abs(a - b) > 1e-12 * max(1.0, abs(b)) for a, b in pairs):
                found.append(f"{name} {case['hyper']}: {pairs}")
    fixture = PUBLISHED["stages"]["token_fixture"]
    real_tokens = [oracle_tokens.row_of_tokens(fixture, PUBLISHED["tokens"]["tis_dpo"]["weights"])]
    for name, case in ((name, case) for name, case in PUBLISHED["tokens"].items() if name in VARIANTS):
        rows = oracle_tokens.rows_of_logps(case["logps"]) if "logps" in case else real_tokens
        if abs(mean(VARIANTS[name](rows, **case["hyper"])) - case["mean"]) > 1e-12:
            found.append(f"{name} {case['hyper']} on tokens")
    return found


def as_text(value: Any, indent: int = 0) -> str:
    """JSON with whatever fits on one line kept on one line."""
    flat = json.dumps(value)
    if len(flat) + indent <= 118 or not isinstance(value, (dict, list)):
        return flat
    pad = " " * (indent + 2)
    if isinstance(value, dict):
        inner = [f"{pad}{json.dumps(key)}: {as_text(item, indent + 2)}" for key, item in value.items()]
        return "{\n" + ",\n".join(inner) + "\n" + pad[2:] + "}"
    if not any(isinstance(item, (dict, list)) for item in value):
        return flat
    return "[\n" + ",\n".join(f"{pad}{as_text(item, indent + 2)}" for item in value) + "\n" + pad[2:] + "]"


def vectors() -> dict[str, Any]:
    """What `vectors.json` holds."""
    return {"inputs": INPUTS, "cases": {name: cases_of(name) for name in sorted(VARIANTS)}}


def main() -> None:
    """Write `vectors.json`, once the oracle agrees with everything published."""
    wrong = disagreements()
    assert not wrong, "\n".join(wrong)
    (HERE / "vectors.json").write_text(as_text(vectors()) + "\n")


if __name__ == "__main__":
    main()
