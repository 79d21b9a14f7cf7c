"""The golden cases of `score`: pairs whose numbers float32 holds exactly, and the file that their statistics are in.

python -m tests.golden.score_cases
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from .oracle_scores import statistics

FILE = Path(__file__).parent / "score_vectors.json"
BETA = 0.125


def pairs(number: int, seed: int, lean: float, longer: float) -> list[dict[str, Any]]:
    """Pairs with ties, sides of equal length, rows without log-probs, and gaps of which some are missing or equal.

    Args:
        number: of pairs.
        seed: of the random numbers.
        lean: what the chosen side's log-ratio has more, on average.
        longer: share of chosen sides that are the longer ones.
    """
    chance = random.Random(seed)

    def eighth(low: float, high: float) -> float:
        return round(chance.uniform(low, high) * 8) / 8

    made = []
    for at in range(number):
        lengths = sorted(chance.randint(1, 40) for _ in range(2))
        lengths = lengths[::-1] if chance.random() < longer else lengths
        sides = {}
        for side, count, more in (("chosen", lengths[0], lean), ("rejected", lengths[1], 0.0)):
            ref = eighth(-4.0 * count, -0.25 * count)
            sides |= {f"ref_{side}": ref, f"policy_{side}": ref + more + eighth(-9, 9), f"n_{side}": count}
        status = "ok"
        if at % 11 == 5:
            sides |= {name.replace("rejected", "chosen"): value for name, value in sides.items() if "rejected" in name}
            status = "identical"
        elif at % 17 == 3:
            status = "cut"
        elif at % 19 == 7:
            status = chance.choice(["dropped", "nonfinite"])
        gap = None if at % 13 == 2 else float(chance.randint(-3, 5)) if at % 2 else eighth(-4, 6)
        made.append({**sides, "status": status, "gap": gap})
    return made


CASES = {
    "mixed": pairs(60, 1, 3.0, 0.5),
    "worse than chance": pairs(40, 2, -5.0, 0.4),
    "all right": pairs(30, 3, 40.0, 0.5),
    "one-sided length": pairs(50, 4, 2.0, 0.05),
    "few": pairs(3, 5, 1.0, 0.5),
}


def vectors() -> dict[str, Any]:
    """Every case with its statistics."""
    return {name: {"pairs": case, "statistics": statistics(case, BETA)} for name, case in CASES.items()}


if __name__ == "__main__":
    FILE.write_text(json.dumps({"beta": BETA, "cases": vectors()}, indent=1) + "\n", encoding="utf-8")
