"""A run on one live screen: what the terminal shows, by a pseudo-terminal and by rendering."""

from __future__ import annotations

import io
import json
import math
import os
import re
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from rlaif_cli.ui.live import Screen, sparkline

STAGES = [("labels", "label"), ("rm", "train-rm"), ("policy", "ppo")]


def test_a_sparkline_is_the_curve_in_few_characters() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([3.0, 3.0]) == "▁▁" and sparkline([]) == ""
    assert sparkline([0.0, math.nan, 7.0]) == "▁█", "what is not finite is left out"
    assert sparkline([float(i) for i in range(400)], width=8) == "▁▂▃▄▅▆▇█"


def terminal(width: int = 100, height: int = 12) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system=None)


def text_of(screen: Screen) -> str:
    page = io.StringIO()
    Console(file=page, width=100).print(screen._render())
    return page.getvalue()


def test_every_stage_and_how_far_it_is() -> None:
    with Screen(terminal(), "mine", STAGES, ["labels", "rm"]) as run:
        with run.stage("labels") as progress:
            progress(3, 8, "\x1b[2Jnote")
            text = text_of(run)
            assert "mine: 0 of 3 stages" in text and "3/8" in text and "\\x1b[2Jnote" in text
            assert re.search(r"· rm +train-rm", text) and re.search(r"– policy +ppo", text)
        with pytest.raises(ZeroDivisionError), run.stage("rm") as progress:
            for step in range(1, 9):
                progress(step, 8, f"loss {1 / step:.2f}", 1 / step)
            assert "█" in text_of(run) and "loss 0.12" in text_of(run)
            raise ZeroDivisionError
        text = text_of(run)
        assert re.search(r"✓ labels", text) and re.search(r"✗ rm", text) and "1 of 3 stages" in text


def test_of_many_stages_those_around_the_one_that_runs() -> None:
    names = [(f"rm.seed={i}", "train-rm") for i in range(40)]
    with Screen(terminal(), "matrix", names, [name for name, _ in names]) as run, run.stage("rm.seed=20") as progress:
        progress(1, 2)
        text = text_of(run)
        assert "rm.seed=20" in text and "rm.seed=0 " not in text and len(text.splitlines()) <= 12


def test_a_long_name_hides_nothing_else() -> None:
    name = "a stage whose name goes on and on " * 4
    with Screen(terminal(), "long", [(name, "train-rm")], [name]) as run, run.stage(name) as progress:
        progress(1, 4, "loss 0.5", 0.5)
        text = text_of(run)
        assert "train-rm" in text and "1/4" in text and "loss 0.5" in text and "…" in text


DEMO = (
    *(("alignment", "eval alignment"), ("candidates", "generate"), ("preferences", "label"), ("before", "generate")),
    *(("rm", "train-rm"), ("rm_people", "eval reward-model"), ("policy", "ppo"), ("after", "generate")),
    *(("win_rate", "eval win-rate"), ("gold", "eval reward"), ("harmless_before", "eval harmless-rate")),
    *(("harmless_after", "eval harmless-rate"), ("report", "report")),
)


@pytest.mark.parametrize("width", [80, 99, 100, 120])
def test_marks_times_and_rewards_fit_every_terminal_and_nothing_jumps(width: int) -> None:
    def lines_of(screen: Screen) -> list[str]:
        page = io.StringIO()
        Console(file=page, width=width).print(screen._render())
        return page.getvalue().splitlines()

    with Screen(terminal(width, 40), "demo", DEMO, [name for name, _ in DEMO]) as run:
        before = lines_of(run)
        with run.stage("rm") as progress:
            progress(34, 34, "loss 0.6320 (floor 0.5672)", 0.6)
        with run.stage("policy") as progress:
            for step in range(1, 1201):
                progress(step, 100_000, f"reward {step / 1000:.3f}, KL 2.50", step / 1000)
            lines = lines_of(run)
    assert len(before) == len(lines) == 14 and max(map(len, lines)) <= width
    assert [line[:17] for line in before[8:]] == [line[:17] for line in lines[8:]], "no column moves"
    assert re.match(r"✓ rm +(train-rm +)?0 s +▁ loss 0\.6320", lines[5])
    assert re.match(r". policy .*1\.2 % .*▁.*█ .*reward", lines[7])
    assert all(re.match(r"· \w+ ", line) for line in lines[8:])
    assert ("eval harmless-rate" in lines[11]) is (width >= 100)


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_run_on_a_terminal_is_one_screen(tmp_path: Path) -> None:
    import pty

    rows = [{"id": str(i), "prompt": f"q{i}", "responses": ["yes", "no indeed"]} for i in range(24)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trains = {"run": "train-rm", "preferences": "${labels}", "model": "fake", "batch_size": 2, "eval_fraction": 0}
    stages = {
        "labels": {"run": "label", "candidates": "c.jsonl", "judge": "fake", "constitution": "helpfulness"},
        "rm": trains,
    }
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"name": "mine", "stages": stages}, sort_keys=False))
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.environ |= {"TERM": "xterm", "COLUMNS": "120", "LINES": "30"}
        os.execv(sys.executable, [sys.executable, "-m", "rlaif_cli", "run", "p.yaml"])
    said = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        said += part
    _, status = os.waitpid(pid, 0)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())
    assert os.waitstatus_to_exitcode(status) == 0, text
    assert "[1/2]" not in text, "no plain lines beside the screen"
    last = text[text.rindex("mine: 2 of 2 stages") :]
    assert re.search(r"✓ labels +label", last) and re.search(r"✓ rm +train-rm", last)
    assert any(bar in last for bar in "▂▃▄▅▆▇█") and "loss" in last, "the curve of what was trained stays"
