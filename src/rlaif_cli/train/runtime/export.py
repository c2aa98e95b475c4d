"""Save the trained model as a checkpoint that other tools can load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rlaif_cli.models.chat_template import ChatFormat
from rlaif_cli.models.load import set_pad_token
from rlaif_cli.models.metadata import stored_dtype
from rlaif_cli.models.tokenizer import ChatTokenizer
from rlaif_cli.train.nn import lora, selftest
from rlaif_cli.train.parallel.distributed import is_main, unshard
from rlaif_cli.train.runtime.checkpoint import saving


def save_trained_model(config: Any, model: Any, base: Path) -> None:
    """Save the run's checkpoint. A LoRA adapter is merged into it, and also saved in a subfolder."""
    folder = Path(config.output)
    model = unshard(model)
    if not is_main():
        return
    if config.lora_rank:
        with saving(folder):
            lora.save(model, config.model, folder / lora.ADAPTER)
        model = lora.merge(model)
    save_checkpoint(model, base, folder, ChatFormat(*config.chat_format))


def save_checkpoint(model: Any, base: Path, folder: Path, chat: ChatFormat = ChatFormat()) -> None:
    """Save a standard checkpoint with the base checkpoint's dtype and tokenizer.

    A reward model's head stays in fp32. Its pad token must not be one that ends a turn, because transformers finds the
    end of a text by the pad token. The chat template keeps the variables that it was trained with as its defaults.
    """
    tokenizer = ChatTokenizer(base, chat)
    head = model.score.state_dict() if hasattr(model, "score") else None
    model.to(getattr(torch, stored_dtype(base)))
    if head is not None:
        model.score.float().load_state_dict(head)
        set_pad_token(model, tokenizer.hf, tokenizer.eos_ids)
    for config in selftest.configs(model.config):
        config.use_cache = True
    with saving(folder):
        model.save_pretrained(folder)
        tokenizer.template.keep_arguments()
        tokenizer.hf.save_pretrained(folder)
