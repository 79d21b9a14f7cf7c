"""What a loss reads and how it is declared. Needs torch and the standard library only."""
