"""Statistics of evaluations: numpy alone."""
