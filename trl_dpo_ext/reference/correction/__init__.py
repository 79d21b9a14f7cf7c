"""Low-rank corrections of quantized layers."""
