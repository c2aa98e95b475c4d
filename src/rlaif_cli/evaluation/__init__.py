"""Evaluations: each writes one result and its per-item rows."""
