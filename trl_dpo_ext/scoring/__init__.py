"""Scores preference data by the implicit rewards of a trained policy, beta * (log pi - log ref)."""
