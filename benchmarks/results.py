"""Human labels or AI labels? Two reward models and two policies from the same pairs, measured against people.

    python benchmarks/results.py PAIRS.jsonl -o runs/results [--judge smollm2-135m] [--method contrast]
                                 [--other-judge J] [--steps 10]

The pairs are split 80/20 by prompt. A reward model is trained on what people preferred in the 80 %, another on what
the judge prefers of the same pairs; both, and the judge itself, are measured against people on the 20 %. Then a
policy is tuned against each (`--advantage rloo`), and its answers to prompts of the 20 % are compared with the
start's by `--other-judge`, which training did not use. Every step is a command of `rlaif`, printed before it runs, and
what is there already is not done again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rlaif_cli.data.messages import prompt_text
from rlaif_cli.data.records import HumanPair
from rlaif_cli.train.dataset import held_out


def rlaif(*arguments: Any) -> None:
    command = [str(each) for each in arguments]
    print("rlaif", *command, flush=True)
    done = subprocess.run([sys.executable, "-m", "rlaif_cli", *command], check=False)
    if done.returncode not in (0, 3):  # 3: done, some rows unscored
        raise SystemExit(done.returncode)


def split(pairs: Path, folder: Path) -> None:
    """people.train.jsonl, people.held_out.jsonl, and the prompts of each."""
    lines = pairs.read_text("utf-8").splitlines()
    prompts = [prompt_text(HumanPair.model_validate_json(line).prompt) for line in lines]
    away = held_out(prompts, 0.2, seed=0)
    for side, wanted in (("train", False), ("held_out", True)):
        kept = [(line, prompt) for line, prompt in zip(lines, prompts, strict=True) if (prompt in away) is wanted]
        (folder / f"people.{side}.jsonl").write_text("".join(line + "\n" for line, _ in kept), "utf-8")
        rows = (json.dumps({"prompt": prompt}) + "\n" for prompt in dict.fromkeys(prompt for _, prompt in kept))
        (folder / f"prompts.{side}.jsonl").write_text("".join(rows), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/results"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--constitution", default="harmlessness")
    parser.add_argument("--judge", default="smollm2-135m")
    parser.add_argument("--method", default="contrast")
    parser.add_argument("--other-judge")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    folder = options.output
    folder.mkdir(parents=True, exist_ok=True)
    split(options.pairs, folder)
    judged = ("--constitution", options.constitution, "--method", options.method, "--judge", options.judge)
    train, unseen = folder / "people.train.jsonl", folder / "people.held_out.jsonl"
    fits = ("--max-length", 2048)

    rlaif("eval", "alignment", unseen, *judged, *fits, "--truncate", "head", "-o", folder / "judge.json")
    rlaif("label", train, *judged, *fits, "--truncate", "head", "-o", folder / "ai.train.jsonl")
    for labels, data in (("human", train), ("ai", folder / "ai.train.jsonl")):
        model = folder / f"rm-{labels}"
        rlaif("train-rm", data, "--model", options.model, "-o", model, *fits, "--eval-fraction", 0.05, "--lr", 2e-5)
        rlaif("eval", "reward-model", unseen, "--reward-model", model, *fits, "-o", folder / f"rm-{labels}.json")
        policy = folder / f"policy-{labels}"
        size = ("--steps", options.steps, "--prompts-per-step", 12, "-n", 4, "--max-tokens", 48, "--lr", 5e-5)
        source = ("--model", options.model, "--reward-model", model, "--advantage", "rloo")
        rlaif("ppo", folder / "prompts.train.jsonl", *source, *size, "-o", policy, "--save-every", 2)
    prompts = folder / "prompts.held_out.jsonl"
    for name, model in (("start", options.model), ("human", folder / "policy-human"), ("ai", folder / "policy-ai")):
        rlaif(
            "generate", prompts, "--model", model, "-n", 1, "--max-tokens", 48, "-o", folder / f"answers.{name}.jsonl"
        )
    for name in ("human", "ai") if options.other_judge else ():
        answers = (folder / f"answers.{name}.jsonl", folder / "answers.start.jsonl")
        other = ("--judge", options.other_judge, "--constitution", options.constitution, "--truncate", "head")
        rlaif("eval", "win-rate", *answers, *other, *fits, "-o", folder / f"win-{name}.json")
        rewarded = ("--reward-model", folder / f"rm-{name}", "--baseline", answers[1])
        rlaif("eval", "reward", answers[0], *rewarded, "-o", folder / f"reward-{name}.json")


if __name__ == "__main__":
    main()
