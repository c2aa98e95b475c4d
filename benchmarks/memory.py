"""How much memory does training need? All weights, LoRA, and LoRA with gradient checkpointing; reward model and PPO.

    python benchmarks/memory.py PAIRS.jsonl [--model smollm2-135m | random-135m | random-1b] [--rank 16] [--pairs 24]
                                            [--tokens-per-batch 2048] [--contenders all lora lora-checkpointing]

Each contender trains a reward model on the pairs, and then a policy and a value model against it (`--advantage gae`,
two steps of 4 prompts x 4 samples x 48 tokens, rollouts by transformers). Each stage runs in a process of its own; the
peak is the process's on a CPU (what Python and torch hold before a model is there is told beside it), torch's
allocated memory on a GPU. `random-1b` and `random-135m` have random weights (random_models.py).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from peers import peak_gib, run_apart
from random_models import checkpoint

CONTENDERS: dict[str, dict[str, Any]] = {
    "all": {},
    "lora": {"lora": True},
    "lora-checkpointing": {"lora": True, "gradient_checkpointing": True},
}
STAGES = ("reward model", "ppo")


def settings(options: Any) -> dict[str, Any]:
    chosen = dict(CONTENDERS[options.contender])
    lora = {"lora_rank": options.rank} if chosen.pop("lora", False) else {}
    shared = {"model": options.model, "tokens_per_batch": options.tokens_per_batch, "overwrite": True}
    return shared | lora | chosen


def run_reward_model(options: Any) -> None:
    from rlaif_cli.config.train import RewardModelConfig
    from rlaif_cli.train.reward_model import train_reward_model

    data = str(options.folder / "pairs.jsonl")
    train_reward_model(
        RewardModelConfig(preferences=data, output=str(options.folder / "rm"), batch_size=8, **settings(options))
    )


def run_ppo(options: Any) -> None:
    from rlaif_cli.config.ppo import PPOConfig
    from rlaif_cli.engines import EnginePool
    from rlaif_cli.train.ppo import train_ppo
    from rlaif_cli.train.reward_source import reward_source

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
        train_ppo(config, lambda load_adapter: reward_source(config, engines, load_adapter))


def before() -> float:
    """GiB of a process that has imported all and holds no model."""
    import peft  # noqa: F401
    import transformers  # noqa: F401

    return peak_gib()


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
    parser.add_argument("--tokenizer", default="smollm2-135m", help="for a model of random weights: a name or a folder")
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
        print(json.dumps({"before": round(start, 2), "peak": round(peak_gib(), 2)}))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = checkpoint(options.model, folder, options.tokenizer)
        for contender in options.contenders:
            passed = {"model": model, "rank": options.rank, "tokens_per_batch": options.tokens_per_batch}
            work = folder / contender
            work.mkdir()
            write_pairs(options, work)
            passed |= {"contender": contender, "folder": work}
            found = {stage: run_apart(__file__, stage, options.pairs_file, passed) for stage in STAGES}
            print(json.dumps({"contender": contender, **found}), flush=True)


if __name__ == "__main__":
    main()
