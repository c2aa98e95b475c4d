"""Models of random weights, for machines that real ones cannot be brought to: speed and memory are the same."""

from __future__ import annotations

from pathlib import Path

# Llamas. The first has the shape of SmolLM2-135M, the second 0.97 billion parameters without its embedding.
SHAPES = {
    "random-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "random-1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
}


def checkpoint(name: str, folder: Path, tokenizer: str = "smollm2-135m") -> str:
    """The model to give to a contender: `name` itself, or a folder made for one of `SHAPES`.

    Args:
        tokenizer: a checkpoint, or a folder with a tokenizer and its chat template.
    """
    if name not in SHAPES:
        return name
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from rlaif_cli.models.resolve import resolve_model

    tokens = AutoTokenizer.from_pretrained(tokenizer if Path(tokenizer).is_dir() else resolve_model(tokenizer))
    config = LlamaConfig(
        vocab_size=len(tokens),
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        **SHAPES[name],
    )
    torch.manual_seed(0)
    made = folder / name
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(made)
    tokens.save_pretrained(made)
    return str(made)
