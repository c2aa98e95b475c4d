"""Save what was trained as a checkpoint that other tools load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rlaif_cli.models.load import set_pad_token
from rlaif_cli.models.metadata import stored_dtype
from rlaif_cli.models.tokenizer import ChatTokenizer
from rlaif_cli.train.nn import lora, selftest
from rlaif_cli.train.parallel.distributed import is_main, unshard
from rlaif_cli.train.runtime.checkpoint import saving


def save_trained_model(config: Any, model: Any, base: Path) -> None:
    """The run's checkpoint; an adapter is merged into it, and stands beside it in a folder of its own."""
    folder = Path(config.output)
    model = unshard(model)
    if not is_main():
        return
    if config.lora_rank:
        with saving(folder):
            lora.save(model, config.model, folder / lora.ADAPTER)
        model = lora.merge(model)
    save_checkpoint(model, base, folder)


def save_checkpoint(model: Any, base: Path, folder: Path) -> None:
    """A standard checkpoint, in the dtype of the one it started from, with that one's tokenizer.

    A reward model's head stays in fp32, and its pad token is none that ends a turn: transformers finds the end of a
    text by it.
    """
    tokenizer = ChatTokenizer(base)
    head = model.score.state_dict() if hasattr(model, "score") else None
    model.to(getattr(torch, stored_dtype(base)))
    if head is not None:
        model.score.float().load_state_dict(head)
        set_pad_token(model, tokenizer.hf, tokenizer.eos_ids)
    for config in selftest.configs(model.config):
        config.use_cache = True
    with saving(folder):
        model.save_pretrained(folder)
        tokenizer.hf.save_pretrained(folder)
