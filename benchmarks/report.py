"""How long a report of many samples takes to write, to show and to search in Chromium; the limit: 2 s to first paint.

    python benchmarks/report.py [--samples 10000] [--words 60]

Needs Chromium and the `playwright` package. The texts are made up; `--words` is the length of a response.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from pathlib import Path

from rlaif_cli.report import write_report

LIMIT_SECONDS = 2.0


def made_up_run(folder: Path, samples: int, words: int) -> None:
    """As much of a run's folder as its samples need."""
    draw = random.Random(0)
    vocabulary = [f"word{i}" for i in range(5000)]
    for name in ("before", "after"):
        with open(folder / f"{name}.jsonl", "w") as file:
            for i in range(samples):
                responses = [{"text": " ".join(draw.choices(vocabulary, k=words))}]
                file.write(json.dumps({"id": str(i), "prompt": f"prompt {i}", "responses": responses}) + "\n")
    with open(folder / "win_rate.items.jsonl", "w") as file:
        for i in range(samples):
            file.write(json.dumps({"id": str(i), "sample": 0, "p_a": draw.random()}) + "\n")
    settings = {"a": "after.jsonl", "b": "before.jsonl", "output": "win_rate.json", "judge": ["made up"]}
    stage = {"run": "eval win-rate", "settings": settings, "seconds": 0.0, "results": {}}
    (folder / "summary.json").write_text(json.dumps({"name": "made up", "stages": {"win_rate": stage}}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--words", type=int, default=60)
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        made_up_run(folder, options.samples, options.words)
        started = time.monotonic()
        report = write_report(folder, folder / "report.html")
        written = time.monotonic() - started
        page = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"]).new_page()
        page.goto(report.as_uri())
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
        ready = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd") / 1000
        started = time.monotonic()
        page.locator(".search").fill("prompt 77")
        page.locator("article.sample", has_text="prompt 77").first.wait_for()
        searched = time.monotonic() - started
        print(f"{options.samples:,} samples, a page of {report.stat().st_size / 1e6:.1f} MB")
        print(f"written in {written:.2f} s; first paint {paint:.2f} s (limit {LIMIT_SECONDS:g} s), ready {ready:.2f} s")
        print(f"first search {searched:.2f} s")


if __name__ == "__main__":
    main()
