"""Settings of the trainers."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import field_validator, model_validator

from rlaif_cli.config.base import FROM, OUTPUT, OWN, TRAINING, InputConfig, Names, Precision, setting
from rlaif_cli.config.naming import SettingError, option


class TrainConfig(InputConfig, section=TRAINING):
    """Settings of every trainer."""

    model: str = setting(
        help="Checkpoint to start from: a built-in name, a folder, a .gguf file or a hub name.", section=OWN
    )
    output: str = setting(help="Folder for the trained model.", short="-o", section=OUTPUT, output=False)
    lr: float = setting(1e-5, "Peak learning rate.", gt=0)
    warmup: float = setting(0.1, "Fraction of the steps over which the learning rate warms up.", ge=0, lt=1)
    weight_decay: float = setting(0.0, "AdamW weight decay.", ge=0)
    max_grad_norm: float = setting(1.0, "Clip the gradient to this norm.", gt=0)
    precision: Precision = setting(
        "auto", "bf16 (autocast over fp32 weights) or fp32; auto: bf16 if the hardware supports it."
    )
    tokens_per_batch: int = setting(
        2048, "Tokens per forward pass; affects memory, not the result.", ge=64, output=False
    )
    lora_rank: int = setting(
        0, "Train LoRA adapters of this rank and merge them at the end; 0 trains all weights.", ge=0
    )
    lora_alpha: int | None = setting(
        None, "LoRA alpha; adapters are scaled by alpha / rank. Default: twice the rank.", gt=0
    )
    gradient_checkpointing: bool = setting(
        False, "Recompute activations in the backward pass: less memory, a third more compute.", output=False
    )
    compile: bool = setting(
        False,
        "Compile the trained layers with torch.compile: faster on a GPU, after about a minute of compilation.",
        output=False,
    )
    optimizer: Literal["adamw", "adamw-8bit"] = setting(
        "adamw",
        "adamw-8bit needs a quarter of the memory for its state (requires a GPU and bitsandbytes).",
    )
    tracker: Names = setting(
        (),
        "Also log metrics to tensorboard, trackio or wandb. Repeatable.",
        output=False,
    )
    num_processes: int = setting(
        1,
        "Processes on this machine that share the work and the weights, one per GPU if there are GPUs.",
        ge=1,
        output=False,
    )
    save_every: int = setting(
        0, "Steps between checkpoints to resume from; 0: every ten minutes.", ge=0, section=OUTPUT, output=False
    )

    @field_validator("tracker")
    @classmethod
    def _known_trackers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = ("tensorboard", "trackio", "wandb")
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"unknown tracker '{unknown[0]}', expected one of {', '.join(known)}")
        return names

    @model_validator(mode="after")
    def _alpha_of_lora(self) -> TrainConfig:
        if self.lora_alpha is not None and not self.lora_rank:
            raise SettingError(f"{option('lora_alpha')} needs {option('lora_rank')}")
        return self


class EpochsConfig(TrainConfig, section=TRAINING):
    """Training for a number of epochs over fixed data."""

    epochs: int = setting(1, "Passes over the data.", ge=1)
    batch_size: int = setting(32, "Rows per optimizer step.", ge=1)
    eval_fraction: float = setting(0.1, "Fraction of the prompts to hold out for evaluation.", ge=0, lt=1)
    eval_every: int = setting(0, "Steps between evaluations of the held-out loss; 0: after every epoch.", ge=0)
    patience: int = setting(
        0,
        "Early stopping: stop after this many evaluations without a new lowest held-out loss and keep the best "
        "weights. Half of the held-out prompts choose the weights, the other half is reported. 0: train to the end.",
        ge=0,
    )

    @model_validator(mode="after")
    def _something_to_wait_for(self) -> EpochsConfig:
        if self.patience and not self.eval_fraction:
            raise SettingError(f"{option('patience')} needs {option('eval_fraction')} above 0")
        return self


class SftConfig(EpochsConfig):
    """Fine-tune a model on responses. Revisions, chosen responses, or any prompts with responses."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif sft revisions.jsonl --model org/model -o sft",
        "rlaif sft chats.jsonl --model org/model --lora-rank 16 -o sft",
    )
    records: str = setting(
        help=f"JSONL of prompts with a response, completion, chosen or messages: {FROM}.", argument=True
    )
    max_length: int = setting(2048, "Maximum tokens of prompt and response together; longer records are invalid.", ge=8)
    all_rounds: bool = setting(False, "Of `rlaif revise`: train on the revisions of every round, not only the last.")


class RewardModelConfig(EpochsConfig):
    """Train a reward model on soft preferences."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif train-rm preferences.jsonl --model org/model -o rm",
        "rlaif train-rm preferences.jsonl --model org/model --human people.jsonl --patience 3 --eval-every 20 -o rm",
    )
    preferences: str = setting(help=f"JSONL of preferences: {FROM}.", argument=True)
    max_length: int = setting(1024, "Maximum tokens of prompt and response together; longer pairs are invalid.", ge=8)
    margin: float = setting(0.0, "Extra margin that the loss demands of r_chosen - r_rejected.", ge=0)
    centering: float = setting(
        0.0, "Weight eta of the penalty eta (r_chosen + r_rejected)^2, which centers rewards on 0.", ge=0
    )
    human: str | None = setting(
        None, "JSONL of human pairs to evaluate on at the end; prompts that are trained on are left out."
    )
    hard_labels: bool = setting(
        False, "Round p_chosen to 0 or 1, for comparison; soft labels work better. Ties stay 0.5."
    )
    ties: Literal["keep", "drop"] = setting(
        "keep", "Pairs with p_chosen of exactly 0.5: keep trains them towards equal rewards, drop leaves them out."
    )
