"""From a model's name to a checkpoint folder and its tokenizer."""
