"""The reference: which model it is, where its log-probs are kept, how they are computed, how far a 4-bit one is off."""
