"""What a run needs before it is started: memory per GPU from the model's configuration alone, and known traps."""
