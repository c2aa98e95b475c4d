"""A person's answers: blind, saved at once, resumable, undoable; and the page, in a real Chromium."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import rlaif, rows_of
from rlaif_cli.config.judge import AnnotateConfig
from rlaif_cli.errors import UsageError
from rlaif_cli.stages.annotate import Session
from rlaif_cli.stages.annotate_server import make_server

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture
def session(write_jsonl: Callable[..., str], tmp_path: Path) -> Callable[..., Session]:
    rows = [{"id": f"p{i}", "prompt": f"Question {i}?", "responses": [f"good {i}", f"{HOSTILE} {i}"]} for i in range(8)]
    path = write_jsonl("candidates.jsonl", rows)

    def start(annotator: str = "ann", **options: Any) -> Session:
        return Session(
            AnnotateConfig(candidates=path, output=str(tmp_path / "human.jsonl"), annotator=annotator, **options)
        )

    return start


def place_of_good(state: dict[str, Any]) -> str:
    return "1" if state["pair"]["responses"][0].startswith("good") else "2"


def answer_all(session: Session, choose: Callable[[dict[str, Any]], str] = place_of_good) -> dict[str, Any]:
    while (state := session.state())["pair"]:
        assert "agreement" not in state, "the judge is not shown before the end"
        session.answer(state["pair"]["id"], choose(state))
    return state


def test_answers_are_human_pairs(session: Any, tmp_path: Path) -> None:
    answer_all(session())
    rows = rows_of(tmp_path / "human.jsonl")
    assert len(rows) == 8 and {row["human_fraction_a"] for row in rows} == {1.0}
    assert {row["meta"]["shown_first"] for row in rows} == {"a", "b"}, "the sides are drawn"
    done = rlaif(
        *("eval", "alignment", str(tmp_path / "human.jsonl"), "--judge", "fake"), "--constitution", "helpfulness"
    )
    assert done.returncode == 0 and json.loads(done.stdout)["n"] == 8


def test_another_session_goes_on_and_another_annotator_begins_anew(session: Any) -> None:
    first = session()
    shown = []
    for _ in range(3):
        state = first.state()
        shown.append(state["pair"]["id"])
        first.answer(state["pair"]["id"], "tie")
    again = session().state()
    assert again["answered"] == 3 and again["pair"]["id"] not in shown
    assert session("bob").state()["answered"] == 0
    orders = {name: answer_order(session(name)) for name in ("bob", "eve")}
    assert orders["bob"] != orders["eve"] and sorted(orders["bob"]) == sorted(orders["eve"])


def answer_order(session: Session) -> list[str]:
    order = []
    answer_all(session, lambda state: order.append(state["pair"]["id"]) or "1")  # type: ignore[func-returns-value]
    return order


def test_undo_takes_back_answers_and_skips(session: Any, tmp_path: Path) -> None:
    mine = session()
    first = mine.state()["pair"]["id"]
    mine.answer(first, "1")
    second = mine.state()["pair"]["id"]
    mine.answer(second, "skip")
    assert mine.state()["skipped"] == 1 and mine.state()["pair"]["id"] not in (first, second)
    mine.undo()
    assert mine.state()["pair"]["id"] == second
    mine.undo()
    assert mine.state()["pair"]["id"] == first and rows_of(tmp_path / "human.jsonl") == []
    mine.undo()  # nothing left
    mine.answer(first, "2")
    assert len(rows_of(tmp_path / "human.jsonl")) == 1


@pytest.mark.parametrize(("name", "answer"), [("nobody", "1"), ("p0", "3"), ("p0", "None")])
def test_an_answer_that_cannot_be_is_refused(session: Any, name: str, answer: str) -> None:
    with pytest.raises(UsageError):
        session().answer(name, answer)


def test_a_pair_is_answered_once(session: Any) -> None:
    mine = session()
    mine.answer("p0", "1")
    with pytest.raises(UsageError):
        mine.answer("p0", "2")


def test_a_page_that_is_open_twice_doubles_nothing(session: Any, tmp_path: Path) -> None:
    mine, again = session(), session()
    mine.answer("p0", "1")
    with pytest.raises(UsageError, match="open twice"):
        again.answer("p0", "2")
    assert len(rows_of(tmp_path / "human.jsonl")) == 1 and again.state()["answered"] == 1
    again.undo()
    assert len(rows_of(tmp_path / "human.jsonl")) == 1, "what another page answered is not this one's to take back"


def test_agreement_with_the_judge_and_among_annotators(session: Any, write_jsonl: Callable[..., str]) -> None:
    labels = [
        {
            "id": f"p{i}",
            "prompt": f"Question {i}?",
            "chosen": f"good {i}" if i < 6 else f"{HOSTILE} {i}",
            "rejected": f"{HOSTILE} {i}" if i < 6 else f"good {i}",
            "p_chosen": 0.8,
        }
        for i in range(8)
    ]
    answer_all(session("bob"), lambda state: "tie" if state["pair"]["id"] == "p1" else place_of_good(state))
    end = answer_all(session(labels=write_jsonl("labels.jsonl", labels)))
    assert end["agreement"]["judge"]["same"]["value"] == 0.75 and end["agreement"]["judge"]["pairs"] == 8
    assert end["agreement"]["annotator bob"]["same"]["value"] == (7 + 0.5) / 8


# --- the server ---------------------------------------------------------------------------------------------


@pytest.fixture
def page(session: Any) -> Iterator[str]:
    server, address = make_server(session(), 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield address
    server.shutdown()
    server.server_close()


def get(address: str, **headers: str) -> Any:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=10) as reply:
        return json.load(reply)


def test_only_this_machines_own_page_is_answered(page: str) -> None:
    assert get(page + "state")["total"] == 8
    root = page.rsplit("/", 2)[0]
    for address, headers, status in [
        (page + "state", {"Host": "evil.example"}, 403),
        (page + "state", {"Origin": "http://evil.example"}, 403),
        (root + "/state", {}, 404),
        (root + "/", {}, 404),
    ]:
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(address, **headers)
        assert refused.value.code == status


def test_the_page_in_chromium(page: str, tmp_path: Path, browser: Any) -> None:
    expect = pytest.importorskip("playwright.sync_api").expect
    view = browser.new_page()
    faults: list[str] = []
    view.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    view.on("pageerror", lambda error: faults.append(str(error)))
    view.goto(page)

    def answered(count: int) -> None:
        expect(view.locator("#progress")).to_contain_text(f"{count} of 8 answered by ann")

    answered(0)
    for count, key in enumerate(["1", "2", "t"], start=1):
        view.keyboard.press(key)
        answered(count)
    view.keyboard.press("s")
    expect(view.locator("#progress")).to_contain_text("1 skipped")
    view.keyboard.press("u")
    view.keyboard.press("u")
    answered(2)
    assert view.title() == "rlaif annotate", "hostile text stays text"
    assert HOSTILE in view.locator("#pair").inner_text()
    while view.locator("#question").is_visible():
        before = view.locator("#progress").inner_text()
        view.get_by_role("button", name="1 is better").click()
        expect(view.locator("#progress")).not_to_have_text(before)
    expect(view.locator("#end")).to_contain_text("All pairs are done")
    view.screenshot(path=str(tmp_path / "end.png"))
    assert faults == []
    assert len(rows_of(tmp_path / "human.jsonl")) == 8
