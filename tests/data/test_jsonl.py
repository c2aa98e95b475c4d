"""Files: checked whole, streamed, appended, resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import Candidates, HumanPair, PairsOnly, Preference, PromptRecord
from rlaif_cli.data.resumable_output import Output
from rlaif_cli.data.torn_lines import drop_torn_line
from rlaif_cli.errors import InputError, UsageError


def faults(write_jsonl, rows, kind=PromptRecord):
    with pytest.raises(InputError) as caught:
        Source(write_jsonl("in.jsonl", rows), kind)
    return caught.value


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{not json", "not JSON"),
        ('{"text": "no prompt"}', "'prompt' is missing"),
        ('{"prompt": ""}', "'prompt'"),
        ('{"prompt": NaN}', "NaN is not JSON"),
        ('{"prompt": "a", "prompt": "b"}', "appears twice"),
        ("[1]", "expected an object"),
        ('"text"', "expected an object"),
        ('{"id": "same", "prompt": "x"}', "already used in line 1"),
        ('{"prompt": [{"role": "robot", "content": "x"}]}', "role"),
        ("[" * 100_000, "nested more than 100 deep"),
        ('{"prompt": "a", "x": ' + "[" * 150 + "]" * 150 + "}", "nested more than 100 deep"),
        ('{"prompt": "a", "x": 1e999}', "1e999 is too large a number"),
        ('{"prompt": "' + "[{" * 90 + '", "x": [}', "not JSON"),
    ],
)
def test_a_fault_names_its_line_and_reason(write_jsonl, bad, said):
    error = faults(write_jsonl, ['{"id": "same", "prompt": "x"}', bad])
    assert len(error.errors) == 1
    assert " line 2: " in error.errors[0]
    assert said in error.errors[0]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"prompt": ""}, "'prompt' is empty"),
        ({"prompt": [{"content": "x"}]}, "'prompt.0.role' is missing"),
        ({"prompt": []}, "'prompt' needs at least 1 item, found 0"),
    ],
)
def test_a_prompt_is_told_what_is_wrong_with_the_kind_that_it_is(write_jsonl, bad, reason):
    assert faults(write_jsonl, [bad]).errors[0].endswith(f": {reason}")


def test_every_fault_is_found_in_one_pass(write_jsonl):
    error = faults(write_jsonl, [{"prompt": "fine"}, *[{"no": i} for i in range(30)]])
    assert len(error.errors) == 30
    assert "30 of 31 lines" in error.what


def test_not_utf8(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    with pytest.raises(InputError) as caught:
        Source(str(path), PromptRecord)
    assert "line 2: not UTF-8" in caught.value.errors[0]


@pytest.mark.parametrize("content", ["", "\n\n  \n"])
def test_an_empty_file_is_refused(tmp_path, content):
    (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(InputError, match="no records"):
        Source(str(tmp_path / "in.jsonl"), PromptRecord)


def test_bom_crlf_and_blank_lines_are_no_faults(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n')
    assert [row.prompt for row in Source(str(tmp_path / "in.jsonl"), PromptRecord)] == ["a", "b"]


def test_skip_invalid_keeps_bad_lines_untouched(write_jsonl, tmp_path):
    path = write_jsonl("in.jsonl", [{"prompt": "a"}, "{torn", {"prompt": "b"}])
    source = Source(path, PromptRecord, skip_invalid=True, rejected_path=tmp_path / "bad.jsonl")
    assert [row.prompt for row in source] == ["a", "b"]
    (rejected,) = (json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines())
    assert rejected["text"] == "{torn\n"
    assert rejected["line"] == 2


def test_ids_are_the_callers_or_made_from_content(write_jsonl):
    rows = [{"prompt": "a"}, {"prompt": "a"}, {"id": 7, "prompt": "a"}, {"prompt": "b"}]
    ids = [row.id for row in Source(write_jsonl("in.jsonl", rows), PromptRecord)]
    assert len(set(ids)) == 4
    assert ids[1] == ids[0] + "-2"
    assert ids[2] == "7"


def test_unknown_fields_are_carried_in_meta(write_jsonl):
    (row,) = Source(write_jsonl("in.jsonl", [{"prompt": "a", "topic": "x", "meta": {"k": 1}}]), PromptRecord)
    assert row.meta == {"k": 1, "topic": "x"}


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "Add", "input": "1 2"}, "Add\n\n1 2"),
        ({"instruction": "Add", "input": ""}, "Add"),
        ({"question": "Why?"}, "Why?"),
        ({"messages": [{"role": "user", "content": "hi"}]}, [("user", "hi")]),
        (
            {"prompt": "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: more\n\nAssistant: "},
            [("user", "hi"), ("assistant", "hello"), ("user", "more")],
        ),
    ],
)
def test_prompts_of_other_tools(row, prompt):
    found = PromptRecord.model_validate(row).prompt
    assert (found if isinstance(found, str) else [(m.role, m.content) for m in found]) == prompt


def test_pairs_need_two_responses():
    Candidates.model_validate({"prompt": "a", "responses": ["x"]})
    with pytest.raises(ValueError, match="2 items"):
        PairsOnly.model_validate({"prompt": "a", "responses": ["x"]})
    pair = PairsOnly.model_validate({"prompt": "a", "response_a": "x", "response_b": "y"})
    assert [r.text for r in pair.responses] == ["x", "y"]


def test_human_pairs_from_a_verdict():
    row = {"prompt": "a", "response_a": "x", "response_b": "y", "human_preference": "b"}
    assert HumanPair.model_validate(row).human_fraction_a == 0.0


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), float("inf"), None])
def test_p_chosen_is_a_probability(p):
    with pytest.raises(ValueError):
        Preference.model_validate({"prompt": "a", "chosen": "x", "rejected": "y", "p_chosen": p})


def test_meta_stands_last_in_a_written_row():
    row = PromptRecord.model_validate({"prompt": "a", "extra": 1})
    assert list(json.loads(row.model_dump_json())) == ["id", "prompt", "reference", "meta"]


# ------------------------------------------------------------------------------------------------ resume


def record(name: str) -> PromptRecord:
    return PromptRecord(id=name, prompt="p")


def test_a_killed_run_goes_on(tmp_path: Path):
    path = tmp_path / "out.jsonl"
    first = Output(path, {"n": 1})
    first.write(record("a"))
    first.write(record("b"))
    first.close()
    with open(path, "a") as file:
        file.write('{"id": "c", "pro')  # killed in the middle of a line
    second = Output(path, {"n": 1})
    assert "a" in second.done and "b" in second.done and len(second.done) == 2
    second.write(record("c"))
    second.finish({})
    second.close()
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["a", "b", "c"]
    third = Output(path, {"n": 1})
    assert third.complete
    third.close()


def test_other_settings_are_refused_with_a_diff(tmp_path: Path):
    path = tmp_path / "out.jsonl"
    first = Output(path, {"n": 1, "model": "m"})
    first.write(record("a"))
    first.close()
    with pytest.raises(UsageError, match="n: 1 before, 2 now"):
        Output(path, {"n": 2, "model": "m"})
    anew = Output(path, {"n": 2, "model": "m"}, overwrite=True)
    assert not len(anew.done)
    anew.close()


def test_a_foreign_file_is_never_appended_to(tmp_path: Path):
    path = tmp_path / "precious.jsonl"
    path.write_text('{"id": "a"}\n')
    with pytest.raises(UsageError, match="no record of the run"):
        Output(path, {})
    assert path.read_text() == '{"id": "a"}\n'


def test_the_manifest_is_written_last(tmp_path: Path):
    path = tmp_path / "out.jsonl"
    output = Output(path, {})
    assert (tmp_path / "out.jsonl.run.json").exists()
    output.write(record("a"))
    assert not output.manifest_path.exists()
    output.finish({"counts": 1})
    assert json.loads(output.manifest_path.read_text())["counts"] == 1
    assert not (tmp_path / "out.jsonl.run.json").exists()
    output.close()


def test_torn_line_in_the_middle_is_cut_with_all_after_it(tmp_path: Path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"id": "a"}\n{"id": "b\n{"id": "c"}\n')
    assert "a" in (kept := drop_torn_line(path)) and len(kept) == 1
    assert path.read_bytes() == b'{"id": "a"}\n'
