"""Settings of the trainers."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import field_validator, model_validator

from rlaif_cli.config.base import FROM, OUTPUT, OWN, TRAINING, InputConfig, Names, Precision, setting


class TrainConfig(InputConfig, section=TRAINING):
    """What every trainer can be told."""

    model: str = setting(
        help="The checkpoint to start from: a built-in model, a folder, a .gguf file or a hub name.", section=OWN
    )
    output: str = setting(help="The folder of the trained model.", short="-o", section=OUTPUT, output=False)
    lr: float = setting(1e-5, "The peak learning rate.", gt=0)
    warmup: float = setting(0.1, "The share of the steps in which the learning rate rises.", ge=0, lt=1)
    weight_decay: float = setting(0.0, "AdamW's.", ge=0)
    max_grad_norm: float = setting(1.0, "Gradients are scaled down to this norm.", gt=0)
    precision: Precision = setting(
        "auto", "bf16 autocast over fp32 weights, or fp32; auto: bf16 where the machine has it."
    )
    tokens_per_batch: int = setting(
        2048, "Tokens that go through the model at once; sets the memory, not the result.", ge=64, output=False
    )
    lora_rank: int = setting(
        0, "Train adapters of this rank on the frozen model, merged at the end; 0: all weights.", ge=0
    )
    lora_alpha: int | None = setting(None, "LoRA's products count alpha / rank times. Default: twice the rank.", gt=0)
    gradient_checkpointing: bool = setting(
        False, "Compute each layer again in the backward pass: less memory, a third more work.", output=False
    )
    compile: bool = setting(
        False,
        "Compile the layers of what is trained with torch.compile: faster on a GPU, after a minute or so.",
        output=False,
    )
    optimizer: Literal["adamw", "adamw-8bit"] = setting(
        "adamw", "adamw-8bit holds its state in a quarter of the memory (a GPU, and the bitsandbytes package)."
    )
    tracker: Names = setting(
        (),
        "tensorboard, trackio or wandb: what is logged goes there as well; may be given several times.",
        output=False,
    )
    num_processes: int = setting(
        1,
        "Processes on this machine that share the work and the weights, a GPU each where there are GPUs.",
        ge=1,
        output=False,
    )
    save_every: int = setting(
        0, "Steps between checkpoints to resume from; 0: one every ten minutes.", ge=0, section=OUTPUT, output=False
    )

    @field_validator("tracker")
    @classmethod
    def _known_trackers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = ("tensorboard", "trackio", "wandb")
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"'{unknown[0]}' is none of {', '.join(known)}")
        return names

    @model_validator(mode="after")
    def _alpha_of_lora(self) -> TrainConfig:
        if self.lora_alpha is not None and not self.lora_rank:
            raise ValueError("--lora-alpha belongs to --lora-rank")
        return self


class EpochsConfig(TrainConfig, section=TRAINING):
    """Training that passes over fixed data."""

    epochs: int = setting(1, "Passes over the data.", ge=1)
    batch_size: int = setting(32, "Rows an optimizer step.", ge=1)
    eval_fraction: float = setting(0.1, "Share of the prompts held out.", ge=0, lt=1)
    eval_every: int = setting(0, "Steps between measurements of the held-out loss; 0: at the end of every epoch.", ge=0)
    patience: int = setting(
        0,
        "Stop after this many measurements without a new lowest held-out loss, and keep the weights of the lowest. "
        "One half of the held-out prompts chooses, the other is reported. 0: train to the end, keep the last.",
        ge=0,
    )

    @model_validator(mode="after")
    def _something_to_wait_for(self) -> EpochsConfig:
        if self.patience and not self.eval_fraction:
            raise ValueError("--patience watches the held-out loss, and --eval-fraction 0 holds nothing out")
        return self


class SftConfig(EpochsConfig):
    """Fine-tune a model on responses. On revisions, chosen responses, or any prompts with their responses."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif sft revisions.jsonl --model org/model -o sft",
        "rlaif sft chats.jsonl --model org/model --lora-rank 16 -o sft",
    )
    records: str = setting(
        help=f"JSONL of prompts with a response, completion, chosen or messages: {FROM}.", argument=True
    )
    max_length: int = setting(2048, "Prompt and response together, tokens; longer records are refused.", ge=8)
    all_rounds: bool = setting(False, "Of `rlaif revise`: learn the revisions of every round, not the last alone.")


class RewardModelConfig(EpochsConfig):
    """Train a reward model on soft preferences."""

    examples: ClassVar[tuple[str, ...]] = (
        "rlaif train-rm preferences.jsonl --model org/model -o rm",
        "rlaif train-rm preferences.jsonl --model org/model --human people.jsonl --patience 3 --eval-every 20 -o rm",
    )
    preferences: str = setting(help=f"JSONL of preferences: {FROM}.", argument=True)
    max_length: int = setting(1024, "Prompt and response together, tokens; longer pairs are refused.", ge=8)
    margin: float = setting(0.0, "Asked of r_chosen - r_rejected beyond what the label asks.", ge=0)
    centering: float = setting(0.0, "eta in eta (r_chosen + r_rejected)^2.", ge=0)
    human: str | None = setting(
        None, "JSONL of pairs that people judged, to be measured by at the end (without the prompts trained on)."
    )
    hard_labels: bool = setting(False, "Round p_chosen to 0 or 1 (to compare with; soft is better). Ties stay 0.5.")
    ties: Literal["keep", "drop"] = setting(
        "keep", "Pairs with p_chosen of exactly 0.5: keep trains them towards equal rewards; drop leaves them out."
    )
