"""Who a server says that it is, judges at addresses of their own, and whether a judge has drifted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chat_server import Server, first_response, message, oracle
from helpers import rlaif, rows_of
from rlaif_cli.config.base import name_and_address
from rlaif_cli.config.judge import LabelConfig
from rlaif_cli.stats.drift import drift, upper_tail


def contrary(body: dict[str, Any], text: str) -> dict[str, Any]:
    good, bad = ("2", "1") if "gold" in first_response(text) else ("1", "2")
    return message(good, {good: 0.6, bad: 0.4})


def test_each_judge_of_a_panel_at_its_own_address(write_jsonl: Any, serve: Any, tmp_path: Path) -> None:
    one, other = serve(oracle), serve(contrary)
    rows = [{"id": str(i), "prompt": f"q{i}", "responses": ["gold", "lead"]} for i in range(10)]
    path, output = write_jsonl("c.jsonl", rows), tmp_path / "prefs.jsonl"
    secret = other.url.replace("http://", "http://user:hunter2@")
    panel = ("--judge", f"judge@{one.url}", "--judge", f"other@{secret}", "--engine", "openai")
    done = rlaif("label", path, "-o", str(output), *panel, "--constitution", "helpfulness")
    assert done.returncode == 0, done.stderr
    assert len(one.requests) == len(other.requests) == 20 and {body["model"] for body in other.requests} == {"other"}
    assert [row["p_chosen"] for row in rows_of(output)] == pytest.approx([(0.9 / 0.95 + 0.4) / 2] * 10)
    manifest = json.loads((tmp_path / "prefs.jsonl.manifest.json").read_text())
    assert manifest["settings"]["judge"] == ["judge", "other"], "as if at one address"
    assert manifest["engine"] == {"judge": "openai", "other": "openai"}
    assert manifest["servers"] == {"judge": {"model": {"judge": 20}}, "other": {"model": {"judge": 20}}}
    same = ("--judge", f"judge@{one.url}", "--judge", f"judge@{secret}", "--engine", "openai", "--overwrite")
    done = rlaif("label", path, "-o", str(output), *same, "--constitution", "helpfulness")
    assert done.returncode == 0, done.stderr
    names = [f"judge@{one.url}", f"judge@{other.url}"]
    assert [vote["model"] for vote in rows_of(output)[0]["judge"]["panel"]] == names
    written = "".join(file.read_text() for file in tmp_path.iterdir())
    assert "hunter2" not in written + done.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": "openai", "base_url": ("http://b/v1",)}, "cannot be combined"),
        ({"engine": "vllm"}, "needs engine openai or decisions"),
        ({"engine": "openai", "judge": ("a@http://u:1@h/v1", "a@http://u:2@h/v1")}, "given twice"),
        ({"engine": "openai", "judge": ("a@http://h:x/v1",)}, "is not a server address"),
    ],
)
def test_addresses_that_do_not_fit_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LabelConfig(**{"candidates": "c", "constitution": "helpfulness", "judge": ("a@http://a/v1",)} | settings)


def test_a_name_may_contain_an_at_sign() -> None:
    assert name_and_address("claude@2026") == ("claude@2026", None)
    assert name_and_address("claude@2026@https://u:p@h/v1") == ("claude@2026", "https://u:p@h/v1")


def test_a_file_of_defaults_cannot_send_the_key_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "rlaif.toml").write_text('[label]\njudge = "gpt@http://elsewhere/v1"\n')
    done = rlaif("label", "c.jsonl", "--constitution", "helpfulness", cwd=tmp_path)
    assert done.returncode == 1 and "'judge' with an address may only come from the command line" in done.stderr


# ------------------------------------------------------------------------------------------------------------- drift


def test_a_judge_that_stays_the_same_has_not_drifted(serve: Any, label: Any) -> None:
    done, output = label(serve(oracle))
    before = output.read_bytes()
    server = serve(oracle)
    done, _ = label(server, "--recheck", "20")
    assert done.returncode == 0 and "no sign of drift" in done.stderr, done.stderr
    found = json.loads(output.with_name("prefs.jsonl.recheck.json").read_text())
    assert found["rows"] == 20 and len(server.requests) == 80 and output.read_bytes() == before
    assert found["changed_winners"]["value"] == found["mean_change"]["value"] == 0


def test_a_judge_that_has_drifted_is_told(serve: Any, label: Any) -> None:
    done, output = label(serve(oracle))
    done, _ = label(serve(contrary), "--recheck", "20")
    assert done.returncode == 3 and "the judge has drifted" in done.stderr, done.stderr
    found = json.loads(output.with_name("prefs.jsonl.recheck.json").read_text())
    assert found["changed_winners"]["value"] == 1 and found["earlier_stands_apart"] == 20


def test_a_recheck_needs_the_same_settings_and_a_finished_output(serve: Any, label: Any) -> None:
    done, _ = label(serve(oracle), "--recheck", "5")
    assert done.returncode == 2 and "needs a finished output" in done.stderr
    label(serve(oracle), count=3)
    done, _ = label(serve(oracle), "--recheck", "5", "--principles", "all", count=3)
    assert done.returncode == 2 and "other settings" in done.stderr


def passes(drawn: np.random.Generator, confidence: float, samples: int = 4, pairs: int = 200) -> np.ndarray:
    """[pairs] the shares of wins of a judge that samples its answers."""
    truth = np.where(np.arange(pairs) % 2, confidence, 1 - confidence)
    return drawn.binomial(samples, truth) / samples


def test_scatter_is_no_drift_and_less_certainty_is() -> None:
    told = [0, 0]
    for seed in range(200):
        drawn = np.random.default_rng(seed)
        same = [passes(drawn, 0.7) for _ in range(3)]
        told[0] += drift(*same, range(200))["drifted"]  # type: ignore[call-arg]
        told[1] += drift(passes(drawn, 0.9), passes(drawn, 0.7), passes(drawn, 0.7), range(200))["drifted"]
    assert told[0] <= 18, "about 1 in 20"
    assert told[1] == 200


def test_flips_of_the_earlier_judgement_alone_are_drift() -> None:
    p = [0.9] * 20
    flipped = [0.1] * 3 + [0.9] * 17
    found = drift(flipped, p, p, range(20))
    assert found["earlier_stands_apart"] == 3 and found["p_value"] == pytest.approx(1 / 27, abs=1e-6)
    assert drift(p, p, flipped, range(20))["p_value"] == 1
    assert upper_tail(2, 3, 1 / 3) == pytest.approx(7 / 27)


def test_what_a_server_says_survives_an_interruption(serve: Any, label: Any) -> None:
    def dated(body: dict[str, Any], text: str) -> dict[str, Any]:
        return oracle(body, text)

    server: Server = serve(dated, lambda n: 500 if n % 3 == 0 and n < 60 else 200)
    done, output = label(server, "--retries", "0")
    assert done.returncode == 1
    done, _ = label(serve(dated))
    assert done.returncode == 0, done.stderr
    manifest = json.loads((output.parent / "prefs.jsonl.manifest.json").read_text())
    assert manifest["servers"]["judge"]["model"]["judge"] * 100 == manifest["usage"]["tokens_in"]
