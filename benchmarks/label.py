"""How fast is labelling? Against raw vLLM on the same token ids, and against a judge that writes its verdict.

    python benchmarks/label.py [--pairs 200] [--rounds 3] [--model smollm2-135m] [--pairs-file FILE]

All in one process, on one engine, in turn, `--rounds` times: on a shared machine only the ratios hold. The prefix
cache is emptied before each. Real pairs: examples/no-signal/human_pairs.jsonl, unless another file is given.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlaif_cli.data.records import HumanPair
from rlaif_cli.data.shipped_files import shipped_path
from rlaif_cli.engines.base import Request, Sampling
from rlaif_cli.engines.vllm import VllmEngine
from rlaif_cli.judge import Comparison, PairwiseJudge
from rlaif_cli.judge.constitution_files import load_constitution
from rlaif_cli.models.resolve import resolve_model

CONSTITUTION = load_constitution("helpfulness")


def read_pairs(path: Path, count: int) -> list[Comparison]:
    rows = [HumanPair.model_validate_json(line) for line in path.read_text("utf-8").splitlines()]
    chosen = (rows * (1 + count // len(rows)))[:count]
    return [
        Comparison(i, row.prompt, f"{row.response_a} {i}", f"{row.response_b} {i}", CONSTITUTION.principles[:1])
        for i, row in enumerate(chosen)
    ]


def ours(engine: VllmEngine, pairs: list[Comparison]) -> int:
    """`rlaif label`'s judge, rendering included."""
    judge = PairwiseJudge(engine, CONSTITUTION, min_mass=0.0)
    return sum(1 for _ in judge.compare(pairs))


def raw(engine: VllmEngine, pairs: list[Comparison]) -> Callable[[], int]:
    """`LLM.generate` on the same token ids with the same labels asked for; rendering is not in the time."""
    requests = [r for pair in pairs for r in PairwiseJudge(engine, CONSTITUTION, min_mass=0.0).requests(pair)]
    llm: Any = engine._llm
    prompts = [{"prompt_token_ids": list(request.prompt)} for request in requests]
    params = [engine._logprob_params(request) for request in requests]
    return lambda: len(llm.generate(prompts, params, use_tqdm=False)) // 2


def verdicts(engine: VllmEngine, pairs: list[Comparison], reasoned: bool) -> int:
    """A text of up to 64 tokens in both orders, parsed for a number afterwards.

    reasoned: as judges are usually asked, to explain first; else for the number alone, and then it is a short text.
    """
    judge = PairwiseJudge(engine, CONSTITUTION, min_mass=0.0, rationale_tokens=64 if reasoned else 0)
    asked = (Request(i, r.prompt) for i, r in enumerate(r for pair in pairs for r in judge.requests(pair)))
    texts = [found[0].text for _, found in engine.generate(asked, Sampling(temperature=0.0, max_tokens=64))]
    return len([("1" in text, "2" in text) for text in texts]) // 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--pairs-file", type=Path, default=shipped_path("examples") / "no-signal" / "human_pairs.jsonl")
    options = parser.parse_args()
    pairs = read_pairs(options.pairs_file, options.pairs)
    engine = VllmEngine(resolve_model(options.model), max_length=2048)
    ways: dict[str, Callable[[], int]] = {
        "ours": lambda: ours(engine, pairs),
        "raw": raw(engine, pairs),
        "verdict": lambda: verdicts(engine, pairs, reasoned=True),
        "short_verdict": lambda: verdicts(engine, pairs, reasoned=False),
    }
    for way in ways.values():  # warm up
        engine._llm.reset_prefix_cache()
        way()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(options.rounds):
        for name in sorted(ways, key=lambda name: (list(ways).index(name) + round_) % len(ways)):
            engine._llm.reset_prefix_cache()
            started = time.perf_counter()
            count = ways[name]()
            rates[name].append(count / (time.perf_counter() - started))
    engine.close()
    middle = {name: round(statistics.median(found), 3) for name, found in rates.items()}
    print(
        json.dumps(
            {
                "pairs": options.pairs,
                "model": options.model,
                "pairs_per_second": middle,
                "ours_to_raw": round(middle["ours"] / middle["raw"], 3),
                "ours_to_verdict": round(middle["ours"] / middle["verdict"], 3),
                "ours_to_short_verdict": round(middle["ours"] / middle["short_verdict"], 3),
                "all": {name: [round(rate, 3) for rate in found] for name, found in rates.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
