"""How fast is reinforcement learning? Against TRL's RLOOTrainer: same prompts, samples, lengths and reward function.

    python benchmarks/ppo.py PROMPTS.jsonl [--model smollm2-135m | random-135m | random-1b] [--prompts 12] [--n 4]
                             [--tokens 48] [--steps 3] [--rounds 2] [--precision bf16] [--engine vllm]
                             [--contenders rloo rloo-transformers gae trl]

rloo: `rlaif ppo --advantage rloo`, rollouts by `--engine`. rloo-transformers: the same, rollouts by transformers. gae:
PPO with a value model, and a reward model (random, of the policy's size) for the scores, rollouts by `--engine`. trl:
RLOOTrainer (pinned, in an environment of its own, made here). The reward of the others is the share of a response's
characters that are vowels. KL to the reference is on everywhere. Each runs in a process of its own, in turn,
`--rounds` times, on the GPU where there is one; the first `--warmup` steps of each are not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peers import peak_gib, run_apart, wait_for_device
from random_models import checkpoint

PHASES = ("rollout", "reward", "forward", "update", "sync")


def vowels(text: str) -> float:
    return sum(letter in "aeiou" for letter in text.lower()) / max(1, len(text))


def write_inputs(options: Any, folder: Path) -> None:
    """The prompts, short enough for everyone."""
    rows = [json.loads(line) for line in options.prompts_file.read_text("utf-8").splitlines()]
    texts = [row["prompt"] for row in rows if isinstance(row["prompt"], str) and len(row["prompt"]) < 600]
    with open(folder / "prompts.jsonl", "w", encoding="utf-8") as file:
        for text in texts[: options.prompts * (options.steps + options.warmup)]:
            file.write(json.dumps({"prompt": text}) + "\n")


# ------------------------------------------------------------------------------------------------ the contenders


class Vowels:
    """A reward source that costs nothing."""

    def score(self, _: Any, responses: Sequence[Sequence[str]]) -> Any:
        import torch

        return torch.tensor([[vowels(text) for text in texts] for texts in responses])


def run_ours(options: Any, folder: Path, advantage: str, engine: str) -> dict[str, Any]:
    from rlaif_cli.config.ppo import PPOConfig
    from rlaif_cli.data.atomic import read_rows
    from rlaif_cli.models.resolve import resolve_model
    from rlaif_cli.train.nn.heads import new_reward_model
    from rlaif_cli.train.ppo import train_ppo
    from rlaif_cli.train.reward_source import RewardModelScorer
    from rlaif_cli.train.runtime.export import save_checkpoint

    source: dict[str, Any] = {"judge": "fake", "constitution": "helpfulness"}  # not asked: the reward is given below
    if advantage == "gae":
        base = resolve_model(options.model)
        save_checkpoint(new_reward_model(base, 0), base, folder / "rm")
        source = {"reward_model": str(folder / "rm")}
    config = PPOConfig(
        prompts=str(folder / "prompts.jsonl"),
        output=str(folder / "ours"),
        overwrite=True,
        model=options.model,
        engine=engine,
        advantage=advantage,
        precision=options.precision,
        prompts_per_step=options.prompts,
        n=options.n,
        max_tokens=options.tokens,
        steps=options.steps + options.warmup,
        lr=options.lr,
        engine_memory=1 if engine == "vllm" else None,
        samples_every=0,
        tokens_per_batch=options.tokens_per_batch,
        compile=options.compile,
        **source,
    )

    def reward() -> Any:
        if advantage != "gae":
            return Vowels()
        return RewardModelScorer(folder / "rm", config.precision, config.tokens_per_batch)

    train_ppo(config, lambda _: reward())
    rows = read_rows(folder / "ours" / "metrics.jsonl")
    return {
        "steps": [
            {name: row[f"seconds_{name}"] for name in PHASES} | {"kl": row["kl"], "length": row["response_length"]}
            for row in rows
        ]
    }


def run_trl(options: Any, folder: Path) -> dict[str, Any]:
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    from rlaif_cli.models.resolve import resolve_model

    base = resolve_model(options.model)
    steps: list[dict[str, float]] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            wait_for_device()
            steps.append({"update": time.perf_counter() - self.started})

    class Timed(RLOOTrainer):  # type: ignore[misc]
        def _generate(self, *arguments: Any, **more: Any) -> Any:
            started = time.perf_counter()
            found = super()._generate(*arguments, **more)
            wait_for_device()
            generated.append(time.perf_counter() - started)
            return found

    generated: list[float] = []
    tokenizer = AutoTokenizer.from_pretrained(base)
    data = load_dataset("json", data_files=str(folder / "prompts.jsonl"), split="train")
    arguments = RLOOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=options.trl_micro,
        gradient_accumulation_steps=options.prompts * options.n // options.trl_micro,
        num_generations=options.n,
        max_completion_length=options.tokens,
        max_steps=options.steps + options.warmup,
        learning_rate=options.lr,
        beta=0.05,
        bf16=options.precision == "bf16",
        gradient_checkpointing=False,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Timed(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        reward_funcs=lambda completions, **_: [vowels(each[0]["content"]) for each in completions],
        processing_class=tokenizer,
        args=arguments,
        train_dataset=data.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]}),
        callbacks=[Clock()],
    )
    trainer.train()
    for step, seconds in zip(steps, generated, strict=True):
        step["rollout"], step["update"] = seconds, step["update"] - seconds
    return {"steps": steps}


CONTENDERS: dict[str, Callable[[Any, Path], dict[str, Any]]] = {
    "rloo": lambda options, folder: run_ours(options, folder, "rloo", options.engine),
    "rloo-transformers": lambda options, folder: run_ours(options, folder, "rloo", "transformers"),
    "gae": lambda options, folder: run_ours(options, folder, "gae", options.engine),
    "trl": run_trl,
}


# ------------------------------------------------------------------------------------------------ the comparison


def summary(runs: list[dict[str, Any]], samples: int, warmup: int) -> dict[str, Any]:
    steps = [step for run in runs for step in run["steps"][warmup:]]
    phases = {name: statistics.median(step.get(name, 0.0) for step in steps) for name in PHASES}
    whole = [sum(step.get(name, 0.0) for name in PHASES) for step in steps]
    return {
        "samples_per_second": round(samples / statistics.median(whole), 3),
        "slowest_and_fastest_step": [round(samples / max(whole), 3), round(samples / min(whole), 3)],
        "seconds": {name: round(value, 3) for name, value in phases.items() if value},
        "peak_gib": round(max(run["peak_gib"] for run in runs), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts_file", metavar="PROMPTS.jsonl", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokenizer", default="smollm2-135m", help="for a model of random weights: a name or a folder")
    parser.add_argument("--engine", default="vllm", choices=["vllm", "transformers"])
    parser.add_argument("--compile", action="store_true", help="ours")
    parser.add_argument("--tokens-per-batch", type=int, default=2048)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--n", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--trl-micro", type=int, default=12)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        found = CONTENDERS[options.child](options, options.folder)
        print(json.dumps(found | {"peak_gib": peak_gib()}))
        return
    runs: dict[str, list[dict[str, Any]]] = {contender: [] for contender in options.contenders}
    names = (
        *("prompts", "n", "tokens", "steps", "warmup", "lr", "precision", "trl_micro"),
        *("engine", "compile", "tokens_per_batch"),
    )
    passed = {name: getattr(options, name) for name in names}
    with tempfile.TemporaryDirectory() as shared:
        passed["model"] = checkpoint(options.model, Path(shared), options.tokenizer)
        for round_ in range(options.rounds):
            place = round_ % len(options.contenders)
            for contender in options.contenders[place:] + options.contenders[:place]:
                with tempfile.TemporaryDirectory() as folder:
                    write_inputs(options, Path(folder))
                    runs[contender].append(
                        run_apart(__file__, contender, options.prompts_file, passed | {"folder": folder})
                    )
    found = {name: summary(of, options.prompts * options.n, options.warmup) for name, of in runs.items()}
    result: dict[str, Any] = {"prompts": options.prompts, "n": options.n, "tokens": options.tokens, **found}
    for other in found:
        if "rloo" in found and other != "rloo":
            ratio = found["rloo"]["samples_per_second"] / found[other]["samples_per_second"]
            rollout = found[other]["seconds"]["rollout"] / found["rloo"]["seconds"]["rollout"]
            result[f"rloo_to_{other}"] = {"samples_per_second": round(ratio, 2), "rollout": round(rollout, 2)}
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
