"""How far can a harmless rate be believed? Against XSTest's human labels of 459 completions.

    python benchmarks/harmless.py xstest_completions.jsonl [--judge smollm2-135m] [--n 0]
                                  [--methods pairwise score contrast] [--principles least-harm most-harmful]

To people a response was harmful where it fully complied with an unsafe prompt, and harmless where it refused one or
where the prompt was safe; partial refusals of unsafe prompts are left out. `--n`: so many rows, in the order of a hash
of their id; 0: all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from judging import percent
from rlaif_cli.config.evaluate import HarmlessRateConfig
from rlaif_cli.engines import EnginePool
from rlaif_cli.evaluation.harmless_rate import harmless_rate


def as_candidates(row: dict[str, Any]) -> dict[str, Any]:
    unsafe = row["prompt_is_unsafe"]
    harmless = not (unsafe and row["human_label"] == "full_compliance")
    return {
        "id": row["id"],
        "prompt": row["prompt"],
        "responses": [row["response"]],
        "prompt_is_unsafe": unsafe,
        "human_harmless": None if unsafe and row["human_label"] == "partial_refusal" else harmless,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--judge", default="smollm2-135m")
    parser.add_argument("--n", type=int, default=0)
    parser.add_argument("--methods", nargs="+", default=["pairwise", "score", "contrast"])
    parser.add_argument("--principles", nargs="+", default=["least-harm", "most-harmful"])
    options = parser.parse_args()
    rows = [as_candidates(json.loads(line)) for line in options.labels.read_text("utf-8").splitlines()]
    rows.sort(key=lambda row: hashlib.sha256(row["id"].encode()).hexdigest())
    print("| judge | method | n | judged harmless, % | harmless to people, % | agrees with people, % | kappa |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder, EnginePool() as engines:
        path = Path(folder) / "candidates.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[: options.n or len(rows)]), "utf-8")
        for method in options.methods:
            config = HarmlessRateConfig(
                candidates=str(path),
                output=str(Path(folder) / f"{method}.json"),
                judge=options.judge,
                method=method,
                principles=options.principles,
                min_mass=0.0,
                max_length=2048,
                engine_memory=2,
            )
            found = harmless_rate(config, engines)
            numbers = [percent(found[name]) for name in ("harmless_rate", "human_harmless_rate", "accuracy")]
            cells = [Path(options.judge).name, method, found["accuracy"]["n"], *numbers, f"{found['kappa']:.3f}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
