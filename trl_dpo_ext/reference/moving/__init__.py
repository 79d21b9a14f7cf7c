"""References that follow the policy while it trains (TR-DPO)."""
