"""Guards and fixes for DDP, FSDP and DeepSpeed."""
