"""Rows are read for what they say, not for their form alone.

A prompt waits for a reply, `chosen` and `rejected` are two replies to it, an id is no proof of a prompt, null is
absent, and a file that is no JSONL is named for what it is.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_data import CANDIDATES, DEMONSTRATION, PREFERENCE, WILD

from helpers import ROOT, rlaif, rows_of
from rlaif_cli.config.data import ConvertConfig, ShardConfig, ValidateConfig
from rlaif_cli.config.evaluate import RewardConfig, WinRateConfig
from rlaif_cli.config.judge import AnnotateConfig, AuditConfig
from rlaif_cli.config.train import SftConfig
from rlaif_cli.data.formats import FORMATS
from rlaif_cli.data.json_lines import describe
from rlaif_cli.data.messages import as_messages, shared_prompt
from rlaif_cli.data.paths import rejected_path
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import Candidates, Demonstration, HumanPair, PairsOnly, Preference, PromptRecord, Record
from rlaif_cli.data.tools import convert as convert_module
from rlaif_cli.data.tools import kinds, validate
from rlaif_cli.data.tools.repair import repair
from rlaif_cli.data.tools.shard import shard
from rlaif_cli.engines import EnginePool
from rlaif_cli.errors import InputError, RlaifError
from rlaif_cli.evaluation.win_rate import win_rate
from rlaif_cli.report.samples import _sample
from rlaif_cli.stages.annotate import Session
from rlaif_cli.stages.audit import audit

Write = Callable[..., str]
Row = dict[str, Any]


def system(text: str) -> Row:
    return {"role": "system", "content": text}


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: str) -> Row:
    return {"role": "assistant", "content": text}


def tool(text: str) -> Row:
    return {"role": "tool", "content": text}


def why_not(kind: type[Record], row: Row) -> str:
    """What a person is told about a row that cannot be used."""
    with pytest.raises(ValueError) as caught:
        kind.model_validate(row)
    return describe(caught.value)


def pair(chosen: Any, rejected: Any, prompt: Any = "Why?", **more: Any) -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "p_chosen": 0.9, **more}


def texts(turns: Any) -> list[str]:
    return [turn.content for turn in as_messages(turns)]


def convert(path: str, name: Any, out: Path, **how: Any) -> list[Row]:
    convert_module.convert(ConvertConfig(records=path, from_format=name, output=str(out), **how))
    return rows_of(out)


# ------------------------------------------------------------------------------------------------ prompt and replies

SIDE = [assistant("first"), user("and?")]


@pytest.mark.parametrize("kind", [Preference, HumanPair])
@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            pair([assistant("kind"), user("x"), assistant("a")], [assistant("rude"), user("x"), assistant("b")]),
            "differ",
        ),
        (pair([*SIDE, assistant("a")], [assistant("b")]), "differ before their last turn"),
        (pair([assistant("a")], [*SIDE, assistant("b")]), "differ before their last turn"),
        (pair([user("a")], [user("b")]), "'chosen' must end with an assistant turn, not with one of role user"),
        (pair([assistant("a")], [*SIDE]), "'rejected' must end with an assistant turn"),
        (pair([tool("a")], [assistant("b")]), "not with one of role tool"),
        (pair([user("Why?"), assistant("a")], [user("Why?"), assistant("b")]), "'chosen' begins with a user turn"),
        (pair([user("Why?"), assistant("a")], [assistant("b")]), "'chosen' begins with a user turn"),
        (pair([assistant("a")], [system("s"), assistant("b")]), "'rejected' begins with a system turn"),
        (
            pair("Why is it so? a", "Why is it so? b", "Why is it so?"),
            "'chosen' and 'rejected' must not repeat the prompt",
        ),
        (pair("\n\nHuman: Hi\n\nAssistant: a", "\n\nHuman: Hi\n\nAssistant: b"), "'chosen' is a whole transcript"),
        (pair("a", "b", [user("Why?"), user("")]), "'prompt': ends with an empty turn"),
        (pair("a", "b", [user("Why?"), assistant("Because.")]), "'prompt' must end with a user (or tool) turn"),
        (pair("a", "b", [user("Why?"), system("Be short.")]), "'prompt' must end with a user (or tool) turn"),
    ],
)
def test_sides_that_are_no_two_replies_to_one_prompt(kind: type[Record], row: Row, said: str) -> None:
    assert said in why_not(kind, row)


WHOLE = {"chosen": [user("Why?"), assistant("a")], "rejected": [user("Why?"), assistant("b")]}
NO_P = "'p_chosen' is missing; `rlaif data convert --from trl-preference` reads rows with hard labels"


@pytest.mark.parametrize("kind", [Preference, HumanPair])
def test_whole_conversations_say_their_prompt_but_not_how_sure_their_label_is(kind: type[Record]) -> None:
    """TRL's rows with an implicit prompt: what is missing is `p_chosen`, and nothing else."""
    assert why_not(kind, WHOLE) == NO_P
    assert why_not(kind, {"prompt": "Why?", "chosen": "a", "rejected": "b"}) == NO_P
    read = kind.model_validate(WHOLE | {"p_chosen": 0.9})
    assert as_messages(read.prompt) == as_messages("Why?")  # type: ignore[attr-defined]


PEOPLE = {"prompt": "Why?", "response_a": "a", "response_b": "b"}


@pytest.mark.parametrize("kind", [Preference, HumanPair])
@pytest.mark.parametrize(
    ("label", "said"),
    [
        ({}, "the human label is missing: 'human_fraction_a' or 'human_preference'"),
        ({"human_fraction_a": False}, "must be a number"),
        ({"human_fraction_a": "1"}, "must be a number"),
        ({"human_preference": "first"}, "'human_preference' must be a, b or tie"),
    ],
)
def test_a_human_pair_says_what_people_preferred(kind: type[Record], label: Row, said: str) -> None:
    assert said in why_not(kind, PEOPLE | label)


@pytest.mark.parametrize("label", [{}, {"human_preference": "a"}])
def test_human_pairs_are_never_taken_for_candidates(label: Row, write_jsonl: Write) -> None:
    config = ValidateConfig(records=write_jsonl("p.jsonl", [PEOPLE | label, PEOPLE | {"human_fraction_a": 0.2}]))
    assert kinds.kind_of(config) == "pairs"
    good, faults = validate.invalid_lines(config, "pairs")
    assert good == (2 if label else 1) and len(faults) == (0 if label else 1)


def test_the_documented_human_pair_is_one() -> None:
    rows = [line for line in (ROOT / "docs" / "inputs.md").read_text().splitlines() if line.startswith("{")]
    found = [HumanPair.model_validate_json(row) for row in rows]
    assert [(row.human_fraction_a, row.source, row.meta) for row in found] == [(0.8, "hh", {"n_annotators": 5})]


@pytest.mark.parametrize("value", [True, "1", "0.9"])
def test_a_probability_is_a_number(value: Any) -> None:
    assert why_not(Preference, pair("a", "b") | {"p_chosen": value}) == "'p_chosen' must be a number"


@pytest.mark.parametrize("value", [["a"], True, 1.5, {}])
def test_an_id_is_a_text_or_a_whole_number(value: Any) -> None:
    assert why_not(PromptRecord, {"prompt": "q", "id": value}) == "'id' must be a string or an integer"
    assert PromptRecord.model_validate({"prompt": "q", "id": 7}).id == "7"


def test_a_list_of_the_wrong_length_is_told_in_plain_words() -> None:
    two = [assistant("x"), assistant("y")]
    row = {"prompt": "", "chosen": two, "rejected": two, "p_chosen": 1.0}
    assert "should" not in why_not(Preference, row)
    assert why_not(Preference, pair([], "b")) == "'chosen' needs at least 1 item, found 0"
    assert why_not(PairsOnly, {"prompt": "q", "responses": ["a"]}) == "'responses' needs at least 2 items, found 1"


def test_turns_that_both_sides_begin_with_belong_to_the_prompt() -> None:
    row = pair([*SIDE, assistant("a")], [*SIDE, assistant("b")], [user("Why?")])
    preference, people = Preference.model_validate(row), HumanPair.model_validate(row)
    assert texts(preference.prompt) == texts(people.prompt) == ["Why?", "first", "and?"]
    assert (preference.chosen_text, preference.rejected_text) == (people.response_a, people.response_b) == ("a", "b")
    after_a_tool = pair([assistant("a")], [assistant("b")], [user("Why?"), assistant("calls"), tool("5")])
    assert len(Preference.model_validate(after_a_tool).prompt) == 3


def test_a_reply_may_begin_with_the_words_of_a_short_prompt() -> None:
    greeting = Preference.model_validate(pair("Good morning! So early?", "Good morning to you", "Good morning"))
    assert greeting.chosen_text == "Good morning! So early?"
    echo = pair([assistant("Why is it so? a")], [assistant("Why is it so? b")], "Why is it so?")
    assert Preference.model_validate(echo).chosen_text == "Why is it so? a", "what a model wrote is never cut"


def test_a_transcript_as_prompt_is_read_in_every_kind_of_row() -> None:
    """Else a reward model is trained on another prompt than the policy answers."""
    prompt = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant:"
    sides = {"response_a": "a", "response_b": "b", "human_fraction_a": 1}
    for kind, row in (
        (PromptRecord, {"prompt": prompt}),
        (Preference, pair("a", "b", prompt)),
        (HumanPair, {"prompt": prompt, **sides}),
        (Demonstration, {"prompt": prompt, "completion": "a"}),
    ):
        assert texts(kind.model_validate(row).prompt) == ["Hi", "Yes?", "Why?"], kind


def test_both_shapes_of_a_pair_in_one_row_end_in_one_record() -> None:
    row = pair("a", "b", response_a="a", response_b="b", human_fraction_a=0.25)
    assert Preference.model_validate(row).p_chosen == 0.9 and HumanPair.model_validate(row).human_fraction_a == 0.25
    row = {"prompt": "q", "response_a": "a", "response_b": "b", "human_preference": "A"}
    assert "'human_preference' must be" in why_not(HumanPair, row)
    for kind in (HumanPair, Preference):
        assert "contradict" in why_not(kind, row | {"human_preference": "a", "human_fraction_a": 0.25})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [user("Why?"), assistant("So.")]}, "a conversation that ends with its reply is a demonstration"),
        ({"messages": [user("Why?"), system("Be short.")]}, "not with one of role system"),
        ({"prompt": "\n\nHuman: Hi\n\nAssistant: Hello."}, "not with one of role assistant"),
    ],
)
@pytest.mark.parametrize("kind", [PromptRecord, Candidates, PairsOnly])
def test_a_prompt_waits_for_a_reply(kind: type[Record], row: Row, said: str) -> None:
    assert said in why_not(kind, row | {"responses": ["a", "b"]})


@pytest.mark.parametrize(
    ("row", "prompt", "response"),
    [
        ({"messages": [user("q"), assistant("r")]}, ["q"], "r"),
        ({"prompt": "q", "completion": assistant("r")}, ["q"], "r"),
        ({"prompt": "q", "completion": [assistant("calls"), tool("5"), assistant("r")]}, ["q", "calls", "5"], "r"),
        ({"prompt": "q", "chosen": [assistant("r")], "rejected": [assistant("s")]}, ["q"], "r"),
        ({"prompt": "q", "responses": [{"text": "r"}], "completion": None}, ["q"], "r"),
    ],
)
def test_demonstrations(row: Row, prompt: list[str], response: str) -> None:
    found = Demonstration.model_validate(row)
    assert (texts(found.prompt), found.response) == (prompt, response)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [user("q"), assistant("r"), user("s")]}, "'messages' must end with the assistant's reply"),
        ({"prompt": "q", "completion": user("r")}, "'completion' must end with an assistant turn"),
        ({"prompt": "q", "chosen": [user("q"), assistant("r")]}, "'chosen' begins with a user turn"),
        ({"prompt": "Why is it so?", "completion": "Why is it so? r"}, "'completion' must not repeat the prompt"),
    ],
)
def test_what_is_no_demonstration(row: Row, said: str) -> None:
    assert said in why_not(Demonstration, row)


def test_rounds_that_are_none_are_that_lines_fault(write_jsonl: Write, tiny: Path, tmp_path: Path) -> None:
    from rlaif_cli.train.sft import train_sft

    rows = [{"prompt": "q", "response": "r", "rounds": rounds} for rounds in ([{"revision": "r"}], None, 3, [{"x": 1}])]
    config: Row = {"records": write_jsonl("r.jsonl", rows), "model": str(tiny), "output": str(tmp_path / "out")}
    with pytest.raises(InputError) as caught:
        train_sft(SftConfig(**config, all_rounds=True, dry_run=True))
    assert [fault.partition(": ")[0][-6:] for fault in caught.value.errors] == ["line 3", "line 4"]
    assert train_sft(SftConfig(**config, dry_run=True)), "rounds are read where they are asked for"


# ------------------------------------------------------------------------------------------------ convert, fix, audit


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("trl-preference", pair([user("Why?"), assistant("a")], [user("Why?"), assistant("b")])),
        (
            "trl-preference",
            pair([user("Why?"), assistant("a")], [user("Why?"), assistant("b")], [system("s"), user("Why?")]),
        ),
        ("trl-preference", pair("Q: Why?\nA: a", "Q: Why?\nA:  b", "Q: Why?\nA:")),
        ("openrlhf", pair([user("Why?"), assistant("a")], [user("Why?"), assistant("b")])),
        (
            "ultrafeedback-binarized",
            pair([user("Why?"), assistant("a")], [user("Why?"), assistant("b")], prompt_id="x"),
        ),
        (
            "argilla",
            {"instruction": "Why is it?", "chosen_response": "Why is it? a", "rejected_response": "Why is it? b"},
        ),
    ],
)
def test_convert_takes_a_repeated_prompt_off(name: str, row: Row, write_jsonl: Write, tmp_path: Path) -> None:
    (found,) = convert(write_jsonl("in.jsonl", [row]), name, tmp_path / "out.jsonl")
    assert "".join(turn["content"] for turn in found["prompt"]).count("Why") == 1
    assert found["chosen"] == [assistant("a")] and found["rejected"] == [assistant("b")]


def test_convert_takes_a_repeated_prompt_off_a_completion(write_jsonl: Write, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Why is it so?", "completion": "Why is it so? Because."},
        {"prompt": [user("q")], "completion": [user("q"), assistant("Because.")]},
    ]
    found = convert(write_jsonl("in.jsonl", rows), "trl-prompt-completion", tmp_path / "out.jsonl")
    assert [row["response"] for row in found] == ["Because."] * 2


def test_convert_refuses_rows_that_are_no_pairs(write_jsonl: Write, tmp_path: Path) -> None:
    begin, out = "\n\nHuman: Hi\n\nAssistant: ", tmp_path / "out.jsonl"
    rows = [
        {
            "chosen": f"{begin}Yes?\n\nHuman: Why?\n\nAssistant: a",
            "rejected": f"{begin}No!\n\nHuman: Why?\n\nAssistant: b",
        },
        {"chosen": f"{begin}Hello\n\nHuman: Bye", "rejected": f"{begin}Hello\n\nHuman: Bye now"},
        {"chosen": f"{begin}a", "rejected": f"{begin}b"},
    ]
    path = write_jsonl("in.jsonl", rows)
    with pytest.raises(InputError) as caught:
        convert(path, "hh-rlhf", out)
    assert "line 1: 'chosen' and 'rejected' differ before" in caught.value.errors[0]
    assert "line 2: 'chosen' must end with an assistant turn" in caught.value.errors[1] and not out.exists()
    (kept,) = convert(path, "hh-rlhf", out, skip_invalid=True)
    assert kept["chosen"] == [assistant("a")]
    aside = rows_of(tmp_path / "out.rejected.jsonl")
    assert [row["line"] for row in aside] == [1, 2] and "differ" in aside[0]["reason"]


def test_convert_reads_no_prompt_that_the_conversations_do_not_begin_with(write_jsonl: Write, tmp_path: Path) -> None:
    row = pair([user("Why?"), assistant("a")], [user("Why?"), assistant("b")], "How?")
    with pytest.raises(InputError, match="1 of 1 lines") as caught:
        convert(write_jsonl("in.jsonl", [row]), "openrlhf", tmp_path / "out.jsonl")
    assert "the conversations in 'chosen' and 'rejected' do not begin with 'prompt'" in caught.value.errors[0]


@pytest.mark.parametrize(
    "change",
    [{"metadata": None}, {"responses": None}, {"metadata": {"p_a": 0.3, "rlaif": '{"meta": null, "judge": null}'}}],
)
def test_null_fields_of_an_argilla_record(change: Row, write_jsonl: Write, tmp_path: Path) -> None:
    answers = {"preference": [{"value": "b", "status": "submitted"}, {"value": "b", "status": None}]}
    row = {
        "fields": {"prompt": "q", "response_a": "x", "response_b": "y"},
        "metadata": {"p_a": 0.3},
        "responses": answers,
    }
    (found,) = convert(write_jsonl("in.jsonl", [row | change]), "argilla-records", tmp_path / "out.jsonl")
    assert found["chosen"] == [assistant("y")]


def test_fix_takes_a_repeated_prompt_off(write_jsonl: Write, tmp_path: Path) -> None:
    rows = [
        pair([user("Why?"), assistant("a")], [user("Why?"), assistant("b")], note="kept"),
        pair("Why is it so? a", "Why is it so? b", "Why is it so?"),
        {"human_harmless": "false", "meta": {"prompt_is_unsafe": "True"}} | pair("a", "b"),
    ]
    path, out = write_jsonl("p.jsonl", rows), tmp_path / "fixed.jsonl"
    good, faults = validate.invalid_lines(ValidateConfig(records=path), "preferences")
    assert good == 0 and len(faults) == 3 and "--fix" in faults[0] and "--fix" in faults[1]
    found = repair(ValidateConfig(records=path, fix=str(out)), Preference)
    assert found["rows"] == 3 and found["fixed"]["a prompt repeated in its replies"] == 2
    first, second, third = map(Preference.model_validate, rows_of(out))
    assert [(row.chosen_text, row.rejected_text) for row in (first, second)] == [("a", "b")] * 2
    assert first.meta == {"note": "kept"}
    assert third.meta == {"human_harmless": False, "prompt_is_unsafe": True}


def test_fix_counts_what_it_fixed_in_rows_that_it_keeps(write_jsonl: Write, tmp_path: Path) -> None:
    half = {"note": "\ud800"}
    rows = [
        pair("a", "b", id="1") | {"p_chosen": "much"} | half,  # refused, so the next row is the first of its id
        pair("a", "b", id=1) | {"p_chosen": "0.8"},
        pair("a", "b", id="1") | half,
        *(pair("a", "b", id=name) | half for name in (["a"], True, 1.5)),
        pair("a", "b") | {"p_chosen": True},
    ]
    lines, out = [json.dumps(row) for row in rows], tmp_path / "fixed.jsonl"
    found = repair(ValidateConfig(records=write_jsonl("p.jsonl", lines), fix=str(out)), Preference)
    assert [row["id"] for row in rows_of(out)] == ["1", "1-2"]
    assert (found["rows"], found["rejected"]) == (2, 5)
    fixed = {what: count for what, count in found["fixed"].items() if count}
    assert fixed == {"'p_chosen' was a text": 1, "half a character": 1, "a repeated id": 1}
    reasons = [row["reason"] for row in rows_of(rejected_path(str(out), "validate"))]
    assert reasons == ["'p_chosen' must be a number", *["'id' must be a string or an integer"] * 3, reasons[0]]


@pytest.mark.parametrize("encoding", ["utf-32", "utf-32-be"])
@pytest.mark.parametrize("fix", [None, "new.jsonl"])
def test_utf_32_is_not_taken_for_utf_16(encoding: str, fix: str | None, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    mark = "" if encoding == "utf-32" else "\ufeff"
    path.write_bytes((mark + "".join(json.dumps(row) + "\n" for row in ROWS)).encode(encoding))
    with pytest.raises(InputError, match="this is UTF-32 text, not JSONL") as caught:
        kinds.kind_of(ValidateConfig(records=str(path), kind="prompts", fix=fix and str(tmp_path / fix)))
    assert "iconv -f UTF-32 -t UTF-8" in (caught.value.hint or "")


def test_audit_counts_replies_that_begin_with_their_prompt(write_jsonl: Write) -> None:
    rows = [
        pair([assistant(f"Why is it so? {i}")], [assistant(f"Why is it so? {i}!")], "Why is it so?") for i in range(4)
    ]
    rows += [pair(f"a {i}", f"b {i}", p_chosen=0.8) for i in range(4)]
    findings = {each.check: each for each in audit(AuditConfig(preferences=write_jsonl("p.jsonl", rows)))}
    responses = findings["responses"]
    assert responses.numbers["rows_that_repeat_the_prompt"] == 4 and responses.verdict == "look"
    assert "in 4 rows both responses begin with the prompt" in responses.says


# ------------------------------------------------------------------------------------------------ joins by id

JUDGE: Row = {"judge": "fake", "constitution": "helpfulness"}


def candidates(write_jsonl: Write, name: str, *rows: tuple[str, Any, list[str]]) -> str:
    return write_jsonl(name, [{"id": key, "prompt": prompt, "responses": found} for key, prompt, found in rows])


def run_win_rate(a: str, b: str, out: Path) -> Row:
    with EnginePool() as engines:
        return win_rate(WinRateConfig(a=a, b=b, output=str(out), **JUDGE), engines)


def run_reward(a: str, b: str, out: Path) -> Row:
    from rlaif_cli.evaluation.reward import reward

    with EnginePool() as engines:
        return reward(RewardConfig(candidates=a, baseline=b, output=str(out), **JUDGE), engines)


@pytest.mark.parametrize("run", [run_win_rate, run_reward])
def test_one_id_on_two_prompts_is_no_comparison(run: Any, write_jsonl: Write, tmp_path: Path) -> None:
    a = candidates(write_jsonl, "a.jsonl", ("1", "Capital of France?", ["Paris"]), ("2", "Name a bird.", ["A robin"]))
    b = candidates(
        write_jsonl, "b.jsonl", ("1", "How is bread made?", ["Flour"]), ("2", [user("Name a bird.")], ["A wren"])
    )
    with pytest.raises(InputError, match="1 of 2 ids have different prompts") as caught:
        run(a, b, tmp_path / "out.json")
    assert caught.value.errors == ["""id '1': "Capital of France?" | "How is bread made?\""""]
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("run", [run_win_rate, run_reward])
def test_what_has_no_counterpart_is_counted(run: Any, write_jsonl: Write, tmp_path: Path) -> None:
    a = candidates(write_jsonl, "a.jsonl", ("1", "q", ["long answer", "two", "three"]), ("2", "r", ["x"]))
    b = candidates(write_jsonl, "b.jsonl", ("1", "q", ["short"]), ("3", "s", ["y"]), ("4", "t", ["z"]))
    result = run(a, b, tmp_path / "out.json")
    assert (result["n"], result["prompts_of_one_side"]) == (1, 3)
    if run is run_win_rate:
        assert result["samples_of_one_side"] == 2


def test_the_command_says_what_has_no_counterpart(write_jsonl: Write, tmp_path: Path) -> None:
    a = candidates(write_jsonl, "a.jsonl", ("1", "q", ["long answer", "two", "three"]))
    b = candidates(write_jsonl, "b.jsonl", ("1", "q", ["short"]), ("2", "r", ["x"]), ("3", "s", ["y"]))
    done = rlaif(
        "eval", "win-rate", a, b, "--judge", "fake", "--constitution", "helpfulness", "-o", "w.json", cwd=tmp_path
    )
    assert done.returncode == 0 and "2 responses have no counterpart in the other file" in done.stderr, done.stderr
    assert "2 prompts are in only one of the two files and are not counted" in done.stderr


def test_another_system_turn_asks_the_same() -> None:
    plain, be_nice = [user("q")], [system("Be nice."), user("q")]
    a, b, c = (PromptRecord.model_validate({"prompt": turns}).prompt for turns in (plain, be_nice, [user("r")]))
    assert shared_prompt(b, b) == b and shared_prompt("q", a) == a
    assert shared_prompt(a, b) == shared_prompt(b, "q") == a, "neither side's system turn is shown to the judge"
    assert shared_prompt(b, c) is None


def test_answers_of_people_stay_with_their_texts(write_jsonl: Write, tmp_path: Path) -> None:
    def session(*rows: tuple[str, Any, list[str]]) -> Session:
        path = candidates(write_jsonl, "c.jsonl", *rows)
        return Session(AnnotateConfig(candidates=path, output=str(tmp_path / "human.jsonl"), annotator="ann"))

    first, second = ("1", "q", ["a", "b"]), ("2", "r", ["c", "d"])
    session(first).answer("1", "1")
    assert session(first, second).state()["answered"] == 1
    for other in (("1", "another prompt", ["a", "b"]), ("1", "q", ["a", "another response"])):
        with pytest.raises(InputError) as caught:
            session(other, second)
        assert "line 1: '1' is now the id of a different prompt" in caught.value.errors[0]
    (tmp_path / "human.jsonl").write_text('{"some": "other file"}\n')
    with pytest.raises(InputError, match="rows that are not answers to these pairs"):
        session(first)


def test_the_report_shows_the_texts_that_were_compared() -> None:
    a, b, other = (
        {"1": Candidates.model_validate({"id": "1", "prompt": prompt, "responses": [text]})}
        for prompt, text in (("q", "yes"), ("q", "no"), ("r", "no"))
    )
    item = {"id": "1", "sample": 0, "p_a": 0.75, "length_a": 3, "length_b": 2}
    assert _sample(item, a, b) is not None
    assert _sample(item, a, other) is None, "another prompt"
    assert _sample(item | {"length_b": 5}, a, b) is None, "another response"


# ------------------------------------------------------------------------------------------------ null, parts, booleans


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (PromptRecord, {"messages": [user("Hi")]}),
        (PromptRecord, {"instruction": "Add.", "input": "1 2"}),
        (Candidates, {"question": "q", "response_a": "a", "response_b": "b"}),
        (Candidates, {"prompt": "q", "responses": [{"text": "a"}]}),
        (Preference, pair([assistant("a")], [assistant("b")])),
        (HumanPair, {"prompt": "q", "response_a": "a", "response_b": "b", "human_preference": "tie"}),
        (HumanPair, pair("a", "b")),
        (Demonstration, {"messages": [user("q"), assistant("r")]}),
    ],
)
def test_every_column_of_every_row_as_datasets_writes_them(kind: type[Record], row: Row) -> None:
    """A column that some row has is null in all others; so is a key of some message."""
    columns = {*PromptRecord.model_fields, *Candidates.model_fields, *Preference.model_fields, *HumanPair.model_fields}
    columns |= {"messages", "instruction", "input", "question", "response", "completion", "human_preference", "x"}

    def padded(value: Any) -> Any:
        if isinstance(value, dict) and "role" in value:
            return {"role": value["role"], "content": value["content"], "name": None, "tool_calls": None}
        return list(map(padded, value)) if isinstance(value, list) else value

    full = dict.fromkeys(columns) | {name: padded(value) for name, value in row.items()}
    assert kind.model_validate(full) == kind.model_validate(row)


def test_content_in_parts_is_its_text() -> None:
    parts = [{"type": "text", "text": "Hi ", "image_url": None}, {"type": "text", "text": "there"}]
    turn = {"role": "user", "content": parts}
    assert texts(PromptRecord.model_validate({"messages": [turn]}).prompt) == ["Hi there"]
    reply = {"role": "assistant", "content": [{"type": "text", "text": "a"}]}
    found = Preference.model_validate(pair([reply], "b", [turn]))
    assert (texts(found.prompt), found.chosen_text) == (["Hi there"], "a")
    repeated = pair([turn, reply], [turn, assistant("b")], "Hi there")
    assert "begins with a user turn" in why_not(Preference, repeated)
    picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    assert "'messages': 'content' has a part of type 'image_url'" in why_not(PromptRecord, {"messages": [picture]})


@pytest.mark.parametrize("kind", [PromptRecord, Candidates])
@pytest.mark.parametrize("name", ["human_harmless", "prompt_is_unsafe"])
def test_what_people_said_is_true_or_false(kind: type[Record], name: str) -> None:
    row = {"prompt": "q", "responses": ["a"]}
    for value, meant in ((True, True), (False, False), (1, True), (0, False), (1.0, True)):
        for given in (row | {name: value}, row | {"meta": {name: value}}):
            assert kind.model_validate(given).meta[name] is meant
    assert kind.model_validate(row | {name: None, "meta": {name: None}}).meta.get(name) is None
    for value in ("false", "true", "", 2, 0.5, [], {}):
        assert f"'{name}' must be true or false" in why_not(kind, row | {name: value})
    assert "with different values" in why_not(kind, row | {name: True, "meta": {name: False}})


VALUES: list[Any] = [
    *(None, "", "x", 0, 2.5, True, [], {}, [None], [1], ["x"], [{}], {"role": "user"}, {"a": None}),
    [user("q"), assistant("r")],
    [{"role": "assistant", "content": None}],
    [{"role": "user", "content": [None]}],
]
FIELDS = [
    *("id", "prompt", "messages", "chosen", "rejected", "response", "responses", "completion", "completions", "meta"),
    *("judge", "p_chosen", "human_preference", "human_fraction_a", "response_a", "instruction", "human_harmless"),
]


def mutated(row: Row, chance: random.Random) -> Row:
    """The row with one to three values removed, replaced or moved to another field, at any depth."""
    row = copy.deepcopy(row)
    for _ in range(chance.randint(1, 3)):
        inside: Any = row
        while isinstance(inside, dict | list) and inside:
            place: Any = chance.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
            if not isinstance(inside[place], dict | list) or chance.random() < 0.4:
                if chance.random() < 0.25:
                    del inside[place]
                else:
                    inside[place] = copy.deepcopy(chance.choice(VALUES))
                break
            inside = inside[place]
        if chance.random() < 0.3:
            row[chance.choice(FIELDS)] = copy.deepcopy(chance.choice([*VALUES, *row.values()]))
    return row


def test_whatever_a_row_holds_is_read_or_refused_in_one_line() -> None:
    chance, refused = random.Random(0), 0
    seeds = [PREFERENCE, CANDIDATES, DEMONSTRATION, *(wild for wild, _ in WILD.values())]
    readers = [*kinds.KINDS.values(), *(each.reader() for each in FORMATS.values())]
    for _ in range(1500):
        row = mutated(chance.choice(seeds), chance)
        for kind in readers:
            try:
                record = kind.model_validate(copy.deepcopy(row))
            except ValueError as error:
                refused += 1
                assert "\n" not in describe(error) and " should " not in describe(error)
                continue
            for each in FORMATS.values():
                if isinstance(record, each.record):
                    with contextlib.suppress(ValueError):
                        each.write(record)
    assert refused > 1000


def test_a_wrong_type_is_told_in_plain_words() -> None:
    assert why_not(PromptRecord, {"prompt": 3}) == "'prompt' must be a text; 'prompt' must be a list"
    assert why_not(Candidates, {"prompt": "q", "responses": "a"}) == "'responses' must be a list"
    assert why_not(Preference, pair("a", "b") | {"p_chosen": "much"}) == "'p_chosen' must be a number"
    assert "'prompt.0' must be an object" in why_not(PromptRecord, {"prompt": ["q"]})
    named = {"prompt": [user("q") | {"name": "Ann"}]}
    assert why_not(PromptRecord, named) == "'prompt.0.name' is not a known field"


# ------------------------------------------------------------------------------------------------ what is no JSONL

ROWS = [{"prompt": "a\nb", "id": "1"}, {"prompt": "ü", "id": "2"}]


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr("rows.jsonl", json.dumps(ROWS[0]))
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tarred:
        tarred.addfile(tarfile.TarInfo("rows.jsonl"))
    return file.getvalue()


LATIN_1 = '{"prompt": "Grüße"}\n'.encode("latin-1")
FIXABLE: dict[str, tuple[bytes, str]] = {
    "array": (json.dumps(ROWS).encode(), "a JSON array"),
    "array over lines": (json.dumps(ROWS, indent=2).encode(), "a JSON array"),
    "array with a row a line": (("[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n").encode(), "a JSON array"),
    "array that begins on its first row's line": (
        ("[" + ",\n".join(map(json.dumps, ROWS)) + "]").encode(),
        "a JSON array",
    ),
    "rows over lines": ("\n".join(json.dumps(row, indent=4) for row in ROWS).encode(), "rows over several lines"),
    "utf-16 rows": ("".join(json.dumps(row) + "\n" for row in ROWS).encode("utf-16"), "UTF-16 text"),
    "utf-16 array": (json.dumps(ROWS, ensure_ascii=False).encode("utf-16"), "UTF-16 text"),
    "compressed array": (gzip.compress(json.dumps(ROWS).encode()), "a JSON array"),
}
OTHERS: dict[str, tuple[bytes, str, str]] = {
    "splits": (json.dumps({"train": ROWS}).encode(), "with lists of rows (such as 'train')", '["train"]'),
    "splits over lines": (json.dumps({"test": ROWS}, indent=1).encode(), "(such as 'test')", '["test"]'),
    "csv": (b"prompt,chosen\nHi,Hello\n", "CSV", "csv.DictReader"),
    "tsv": (b"prompt\tchosen\nHi\tHello\n", "tab-separated values", 'delimiter="\\t"'),
    "latin-1": (LATIN_1, "Latin-1", "iconv"),
    "parquet": (b"PAR1\x15\x04" + bytes(range(256)), "Parquet", "read_parquet"),
    "zip": (archive(), "a zip archive", "unzip"),
    "tar": (tar(), "a tar archive", "tar -xf"),
    "tar.gz without its name": (gzip.compress(tar()), "a tar archive", "tar -xf"),
    "page": (b"<!DOCTYPE html><html>404</html>", "HTML", "download"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS", "git lfs pull"),
    "binary": (bytes(range(256)) * 3, "a binary file", "one object per line"),
}


@pytest.mark.parametrize("name", [*FIXABLE, *OTHERS])
@pytest.mark.parametrize("skip_invalid", [False, True])
def test_a_file_that_is_no_jsonl_is_named(name: str, skip_invalid: bool, tmp_path: Path) -> None:
    content, what, *how = (FIXABLE | OTHERS)[name]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        Source(str(path), PromptRecord, skip_invalid=skip_invalid)
    error = caught.value
    assert error.what.startswith("this is ") and what in error.what and not error.errors, "one line"
    assert (how[0] if how else "--fix") in str(error.hint) and "rows.jsonl" in str(error.hint) + str(error.where)
    with pytest.raises(InputError, match="this is "):
        kinds.kind_of(ValidateConfig(records=str(path))) and validate.invalid_lines(
            ValidateConfig(records=str(path)), "prompts"
        )


@pytest.mark.parametrize("name", FIXABLE)
def test_what_is_offered_to_be_fixed_is_fixed(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(FIXABLE[name][0])
    config = ValidateConfig(records=str(tmp_path / "in"), fix=str(tmp_path / "out.jsonl"))
    assert kinds.kind_of(config) == "prompts"
    found = repair(config, PromptRecord)
    assert (found["rows"], found["rejected"]) == (2, 0) and any(found["fixed"].values())
    assert rows_of(tmp_path / "out.jsonl") == ROWS
    assert len(Source(str(tmp_path / "out.jsonl"), PromptRecord)) == 2


@pytest.mark.parametrize("name", OTHERS)
def test_what_cannot_be_fixed_is_not_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(OTHERS[name][0])
    config = ValidateConfig(records=str(tmp_path / "in"), kind="prompts", fix=str(tmp_path / "out.jsonl"))
    with pytest.raises(InputError, match="this is "):
        kinds.kind_of(config)
        repair(config, PromptRecord)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_long_array_is_read_in_blocks(tmp_path: Path) -> None:
    rows = [{"id": str(i), "prompt": "x" * (i % 3000) + "[]{},"} for i in range(3000)]
    for name, text in (("one", json.dumps(rows)), ("many", json.dumps(rows, indent=1))):
        (tmp_path / name).write_text(text)
        found = repair(ValidateConfig(records=str(tmp_path / name), fix=str(tmp_path / f"{name}.jsonl")), PromptRecord)
        assert found["rows"] == 3000 and rows_of(tmp_path / f"{name}.jsonl") == rows


@pytest.mark.parametrize(
    "text", ['[{"prompt": "a"}, {"prompt": "b"', '[{"prompt": "a"}, {"prompt" "b"}, {"prompt": "c"}]']
)
def test_an_array_that_breaks_off_is_not_half_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(text)
    with pytest.raises(InputError, match="not JSON from line 1 on"):
        repair(ValidateConfig(records=str(tmp_path / "in.json"), fix=str(tmp_path / "out.jsonl")), PromptRecord)
    assert not (tmp_path / "out.jsonl").exists()


def test_rows_that_are_jsonl_are_not_taken_for_another_file(write_jsonl: Write) -> None:
    for row in ({"conversations": [{"from": "human"}]}, {"prompt": [{"content": "x"}]}, {"no": 1}, {"a": "b,c"}):
        with pytest.raises(InputError, match="1 of 1 lines are invalid"):
            Source(write_jsonl("in.jsonl", [row]), PromptRecord)
    mixed = write_jsonl("mixed.jsonl", [{"prompt": "a"}, "prompt,chosen"])
    with pytest.raises(InputError, match="1 of 2 lines are invalid"):
        Source(mixed, PromptRecord)


def test_one_line_in_another_encoding_says_which_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"prompt": "a"}\n' + LATIN_1)
    with pytest.raises(InputError) as caught:
        Source(str(tmp_path / "in.jsonl"), PromptRecord)
    assert (
        "line 2: not UTF-8 at byte 14 (Latin-1?); `iconv" in caught.value.errors[0]
        and "--fix" not in caught.value.errors[0]
    )


def test_what_is_no_jsonl_is_not_cut_into_shards(tmp_path: Path) -> None:
    for name in ("array over lines", "parquet"):
        (tmp_path / "in").write_bytes((FIXABLE | OTHERS)[name][0])
        with pytest.raises(RlaifError, match="this is "):
            shard(ShardConfig(records=str(tmp_path / "in"), output=str(tmp_path / "out"), rows=1))
