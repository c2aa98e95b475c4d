"""Training: pure tensor maths, and the loops built on it."""
