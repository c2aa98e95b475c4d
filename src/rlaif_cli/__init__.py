"""rlaif: reinforcement learning from AI feedback, as one command-line pipeline."""

__version__ = "0.1.0"
