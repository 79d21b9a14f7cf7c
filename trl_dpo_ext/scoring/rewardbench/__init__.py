"""Scores as RewardBench does: texts, token ids, sections and weights, as of allenai/reward-bench at 05a9005."""
