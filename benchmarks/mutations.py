"""Do the tests notice a wrong program? `python benchmarks/mutations.py`

Each mutation changes one line of what the project stands for in a copy of the source, and runs the quick tests of that
part. A mutation is caught if they fail. The exit code is 1 if one survives, or if its line is no longer there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Mutation(NamedTuple):
    what: str
    file: str
    line: str
    instead: str
    tests: str


MUTATIONS = (
    Mutation(
        "a principle that asks for the worse response is not inverted",
        "judge/base.py",
        'return -1.0 if principle.choose == "worse" else 1.0',
        "return 1.0",
        "test_judge.py",
    ),
    Mutation(
        "a pair counts in one order only",
        "judge/pairwise.py",
        "p_a=min(max(0.5 + (a_first - b_first) / 2, low), high)",
        "p_a=min(max(a_first, low), high)",
        "test_judge.py",
    ),
    Mutation(
        '"10" also counts as "1"',
        "judge/labels.py",
        "p[other] = max(0.0, p[other] - share)",
        "p[other] = max(0.0, p[other])",
        "test_judge.py",
    ),
    Mutation(
        "labels without mass are scored",
        "judge/labels.py",
        "if min(masses) < min_mass or not min(masses):",
        "if not min(masses):",
        "test_judge.py",
    ),
    Mutation(
        "a reply that was cut off counts as an answer",
        "judge/labels.py",
        'if completion.no_answer or completion.finish_reason == "length" or not completion.answered:',
        "if completion.no_answer or not completion.answered:",
        "test_server_answers.py",
    ),
    Mutation(
        "reasoning without an answer is an answer",
        "data/records.py",
        "return reasoning is None or bool(text.strip())",
        "return True",
        "test_reasoning.py",
    ),
    Mutation(
        "control tokens in data stay control tokens",
        "models/tokenizer.py",
        "escaped = [Message(role=m.role, content=self._encoder.escape(m.content, hidden)) for m in messages]",
        "escaped = list(messages)",
        "test_chat.py",
    ),
    Mutation(
        "the soft label is swapped",
        "train/math/losses.py",
        "return -(p_chosen * logsigmoid(difference) + (1 - p_chosen) * logsigmoid(-difference)).mean()",
        "return -((1 - p_chosen) * logsigmoid(difference) + p_chosen * logsigmoid(-difference)).mean()",
        "test_math.py",
    ),
    Mutation(
        "the policy loss is not clipped",
        "train/math/losses.py",
        "losses = torch.maximum(unclipped, clipped)",
        "losses = unclipped",
        "test_math.py",
    ),
    Mutation(
        "advantages do not skip masked steps",
        "train/math/advantages.py",
        "next_advantage = torch.where(real[:, t], advantages[:, t], next_advantage)",
        "next_advantage = advantages[:, t]",
        "test_math.py",
    ),
    Mutation(
        "a sample is part of its own baseline",
        "train/math/advantages.py",
        "return zero_masked((rewards.sum(1, keepdim=True) - rewards) / (count - 1), real)",
        "return zero_masked(rewards.sum(1, keepdim=True) / count, real)",
        "test_math.py",
    ),
    Mutation(
        "importance weights have no cap",
        "train/math/advantages.py",
        "return zero_masked(torch.exp(log_ratio).clamp(max=cap), real)",
        "return zero_masked(torch.exp(log_ratio), real)",
        "test_math.py",
    ),
    Mutation(
        "an unscored response gets the penalty",
        "train/ppo.py",
        "keeps_score = answered & (ended | raw.isnan())",
        "keeps_score = answered & ended",
        "test_ppo_faults.py",
    ),
    Mutation(
        "a partly written row counts as done",
        "data/torn_lines.py",
        "    if end < path.stat().st_size:\n        os.truncate(path, end)\n",
        "",
        "test_output.py",
    ),
    Mutation(
        "a run resumes with other settings",
        "data/run_settings.py",
        "(record: dict[str, Any], now: dict[str, Any], where: Path) -> None:\n",
        "(record: dict[str, Any], now: dict[str, Any], where: Path) -> None:\n    return\n",
        "test_cli.py -k train_rm",
    ),
    Mutation(
        "the optimizer's state is lost when training resumes",
        "train/runtime/checkpoint.py",
        "        self._optimizer.load_state_dict(_unflatten(tensors, optimizer))\n",
        "",
        "test_training.py -k interrupted",
    ),
    Mutation(
        "every item counts as independent, whatever its prompt",
        "stats/intervals.py",
        "n = effective_n((totals - rate * sizes) / len(items), sizes, rate)",
        "n = float(len(items))",
        "test_intervals.py",
    ),
)


def survives(mutation: Mutation, source: Path) -> bool:
    """Whether the tests pass with the mutation."""
    file = source / "rlaif_cli" / mutation.file
    original = file.read_text("utf-8")
    if original.count(mutation.line) != 1:
        raise SystemExit(f"{mutation.file} does not have this line exactly once: {mutation.line}")
    file.write_text(original.replace(mutation.line, mutation.instead), "utf-8")
    tests, *selection = mutation.tests.split()
    found = next((ROOT / "tests").rglob(tests))
    quick = ["-x", "-q", "-m", "not slow and not vllm", "-p", "no:cacheprovider", *selection]
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", str(found), *quick], env=environment, cwd=ROOT, capture_output=True
        )
    finally:
        file.write_text(original, "utf-8")
    if done.returncode not in (0, 1):
        raise SystemExit(f"the tests could not be run:\n{done.stdout.decode()[-2000:]}{done.stderr.decode()[-2000:]}")
    return done.returncode == 0


def main() -> int:
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        source = Path(shutil.copytree(ROOT / "src", Path(folder) / "src"))
        for shipped in ("constitutions", "examples"):
            (Path(folder) / shipped).symlink_to(ROOT / shipped)
        for mutation in MUTATIONS:
            survived = survives(mutation, source)
            survivors += survived
            print(f"{'SURVIVED' if survived else 'caught':8}  {mutation.what}  ({mutation.tests})", flush=True)
    print(f"{len(MUTATIONS) - survivors} of {len(MUTATIONS)} caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
