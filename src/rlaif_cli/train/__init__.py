"""Training: tensor maths, and the training loops built on it."""
