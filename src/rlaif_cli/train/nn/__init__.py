"""Models for training: heads, attention, packing, adapters, precision."""
