"""Models as they are trained: heads, attention, packing, adapters, precision."""
