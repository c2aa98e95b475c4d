"""How much memory does training need? All weights, LoRA, and LoRA with gradient checkpointing; reward model and PPO.

    python benchmarks/memory.py PAIRS.jsonl [--model smollm2-135m | random-1b] [--rank 16] [--pairs 24]
                                            [--tokens-per-batch 2048] [--contenders all lora lora-checkpointing]

Each contender trains a reward model on the pairs, and then a policy and a value model against it (`--advantage gae`,
two steps of 4 prompts x 4 samples x 48 tokens, rollouts by transformers). Each stage runs in a process of its own; the
peak is the process's on a CPU (what Python and torch hold before a model is there is told beside it), torch's
allocated memory on a GPU. `random-1b` is a Llama of 1.1 billion random weights with SmolLM2's tokenizer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from peers import run_apart
from train_rm import peak_gib

CONTENDERS: dict[str, dict[str, Any]] = {
    "all": {},
    "lora": {"lora": True},
    "lora-checkpointing": {"lora": True, "gradient_checkpointing": True},
}
STAGES = ("reward model", "ppo")


def build_random_1b(folder: Path) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from rlaif_cli import models

    base = models.resolve("smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(base)
    shape = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        num_key_value_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        **shape,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def settings(options: Any) -> dict[str, Any]:
    chosen = dict(CONTENDERS[options.contender])
    lora = {"lora_rank": options.rank} if chosen.pop("lora", False) else {}
    shared = {"model": options.model, "tokens_per_batch": options.tokens_per_batch, "overwrite": True}
    return shared | lora | chosen


def run_reward_model(options: Any) -> None:
    from rlaif_cli.config import RewardModelConfig
    from rlaif_cli.train.reward_model import train_reward_model

    data = str(options.folder / "pairs.jsonl")
    train_reward_model(
        RewardModelConfig(preferences=data, output=str(options.folder / "rm"), batch_size=8, **settings(options))
    )


def run_ppo(options: Any) -> None:
    from rlaif_cli.config import PPOConfig
    from rlaif_cli.engines import EnginePool
    from rlaif_cli.train.ppo import train_ppo
    from rlaif_cli.train.rewards import reward_source

    config = PPOConfig(
        prompts=str(options.folder / "pairs.jsonl"),
        output=str(options.folder / "policy"),
        reward_model=str(options.folder / "rm"),
        engine="transformers",
        steps=2,
        prompts_per_step=4,
        n=4,
        max_tokens=48,
        samples_every=0,
        **settings(options),
    )
    with EnginePool() as engines:
        train_ppo(config, lambda on_body: reward_source(config, engines, on_body))


def peak() -> float:
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else peak_gib()


def before() -> float:
    """GiB of a process that has imported all and holds no model."""
    import peft  # noqa: F401
    import transformers  # noqa: F401

    return peak()


def write_pairs(options: Any, folder: Path) -> None:
    rows = map(json.loads, options.pairs_file.read_text("utf-8").splitlines())
    short = [row for row in rows if len(json.dumps(row)) < 2000 and row.get("human_fraction_a", 1) != 0.5]
    if len(short) < options.pairs:
        raise SystemExit(f"{options.pairs_file} holds {len(short)} usable pairs, too few")
    lines = (json.dumps(row) + "\n" for row in short[: options.pairs])
    (folder / "pairs.jsonl").write_text("".join(lines), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs_file", metavar="PAIRS.jsonl", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--tokens-per-batch", type=int, default=2048)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        start = before()
        (run_reward_model if options.child == STAGES[0] else run_ppo)(options)
        print(json.dumps({"before": round(start, 2), "peak": round(peak(), 2)}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.model == "random-1b":
            build_random_1b(folder / "random-1b")
        for contender in options.contenders:
            model = str(folder / "random-1b") if options.model == "random-1b" else options.model
            passed = {"model": model, "rank": options.rank, "tokens_per_batch": options.tokens_per_batch}
            work = folder / contender
            work.mkdir()
            write_pairs(options, work)
            passed |= {"contender": contender, "folder": work}
            found = {stage: run_apart(__file__, stage, options.pairs_file, passed) for stage in STAGES}
            print(json.dumps({"contender": contender, **found}), flush=True)


if __name__ == "__main__":
    main()
