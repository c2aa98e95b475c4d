"""Resolve model names to checkpoint folders, and load their tokenizers."""
