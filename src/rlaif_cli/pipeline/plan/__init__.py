"""What a pipeline will cost: rows, calls, tokens, time and money."""
