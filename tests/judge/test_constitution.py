from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from helpers import rlaif
from rlaif_cli.data import shipped_files
from rlaif_cli.data.strict_yaml import MAX_BYTES
from rlaif_cli.errors import EXIT_FAILED, EXIT_USAGE, InputError, RlaifError, UsageError
from rlaif_cli.judge.constitution import Constitution, Principle
from rlaif_cli.judge.constitution_files import load_constitution, shipped_constitutions

SHIPPED = ["harmlessness", "helpfulness", "summarization", "tone"]


def minimal(**changes: Any) -> dict[str, Any]:
    """A correct constitution with two principles."""
    return {
        "name": "mine",
        "description": "A test.",
        "preamble": "A sample is a question and two answers.",
        "principles": [
            {"id": "kind", "text": "Which response is kinder?"},
            {"id": "cruel", "text": "Which response is crueller?", "choose": "worse", "weight": 3},
        ],
        **changes,
    }


def exemplar(**changes: Any) -> dict[str, Any]:
    return {
        "prompt": "p",
        "response_1": "a",
        "response_2": "b",
        "rationale": "because",
        "answer": 1,
        **changes,
    }


def write(folder: Path, content: str | bytes | dict[str, Any]) -> str:
    path = folder / "mine.yaml"
    if isinstance(content, dict):
        content = str(yaml.safe_dump(content, sort_keys=False))
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def error_of(folder: Path, content: str | bytes | dict[str, Any]) -> InputError:
    with pytest.raises(InputError) as caught:
        load_constitution(write(folder, content))
    assert "mine.yaml" in str(caught.value)
    return caught.value


# --- the shipped ones ---------------------------------------------------------------------------------------


def test_shipped_names() -> None:
    assert shipped_constitutions() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_constitution_is_complete(name: str) -> None:
    constitution = load_constitution(name)
    assert constitution.name == name
    assert 4 <= len(constitution.principles) <= 8
    assert constitution.warnings() == []  # balanced answers and lengths, contrast prompts of similar length
    for principle in constitution.principles:
        for_, against = principle.contrast_prompts()
        assert for_ != against
        assert for_.startswith("You ") and against.startswith("You ")
        assert for_.count(".") == against.count(".")  # parallel in form
        assert constitution.exemplars_for(principle), principle.id


def test_harmlessness_asks_once_for_the_worse_response() -> None:
    constitution = load_constitution("harmlessness")
    [worse] = [p for p in constitution.principles if p.choose == "worse"]
    assert "more harmful" in worse.text
    for_, against = worse.contrast_prompts()  # in the direction of the text, like its exemplars
    assert "harmful assistant" in for_ and "harmless assistant" in against
    assert sorted(e.answer for e in constitution.exemplars_for(worse)) == [1, 2]


def test_sha256_is_that_of_the_file() -> None:
    path = shipped_files.shipped_path("constitutions") / "helpfulness.yaml"
    assert load_constitution("helpfulness").sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_constitution(str(path)).sha256 == load_constitution("helpfulness").sha256
    assert load_constitution("helpfulness").path == path


def test_shipped_files_are_found_in_a_wheel_and_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "site-packages" / "rlaif_cli"
    checkout = tmp_path / "repo" / "src" / "rlaif_cli"
    for folder in (wheel / "examples", checkout, tmp_path / "repo" / "examples"):
        folder.mkdir(parents=True)
    monkeypatch.setattr(shipped_files, "PACKAGE", wheel)
    assert shipped_files.shipped_path("examples") == wheel / "examples"
    with pytest.raises(RlaifError, match="lacks its 'constitutions'"):
        shipped_files.shipped_path("constitutions")
    monkeypatch.setattr(shipped_files, "PACKAGE", checkout)
    assert shipped_files.shipped_path("examples") == tmp_path / "repo" / "examples"


# --- drawing and selecting ----------------------------------------------------------------------------------


def test_draw_depends_on_key_and_seed_alone() -> None:
    constitution = load_constitution("helpfulness")
    keys = [f"row-{i}" for i in range(200)]
    forwards = {key: constitution.draw(key, seed=7).id for key in keys}
    assert {key: constitution.draw(key, seed=7).id for key in reversed(keys)} == forwards
    reordered = constitution.model_copy(update={"principles": constitution.principles[::-1]})
    assert {key: reordered.draw(key, seed=7).id for key in keys} == forwards
    other_seed = [constitution.draw(key, seed=8).id == forwards[key] for key in keys]
    assert 0.02 < sum(other_seed) / len(keys) < 0.30  # one in seven by chance


def test_draw_is_the_same_in_every_process_and_release() -> None:
    code = (
        "from rlaif_cli.judge.constitution import Constitution\n"
        "weights = {'v': 1.0, 'w': 2.0, 'x': 3.0, 'y': 0.5, 'z': 0.5}\n"
        "principles = [{'id': id, 'text': 't', 'weight': w} for id, w in weights.items()]\n"
        "c = Constitution(name='n', description='d', preamble='p', principles=principles)\n"
        "print(*(c.draw(key, 0).id for key in ('', 'a', 'b', 'c', 'd', 'e', 'f', 'ö', '\\ud800')))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(shipped_files.PACKAGE.parent)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "1")
    }
    assert runs == {"x x x z w v x z x"}


def test_draw_respects_weights() -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 0.5, "d": 4.5}
    principles = [{"id": id, "text": "t", "weight": weight} for id, weight in weights.items()]
    constitution = Constitution.model_validate(minimal(principles=principles))
    n = 4000
    drawn = Counter(constitution.draw(str(i), seed=0).id for i in range(n))
    for id, weight in weights.items():
        share = weight / sum(weights.values())
        assert abs(drawn[id] / n - share) < 4 * math.sqrt(share * (1 - share) / n), (id, drawn)


def test_removing_a_principle_changes_only_its_own_draws() -> None:
    constitution = load_constitution("helpfulness")
    gone = constitution.principles[2].id
    fewer = constitution.select([p.id for p in constitution.principles if p.id != gone])
    for i in range(200):
        before = constitution.draw(str(i), seed=0).id
        assert before == gone or fewer.draw(str(i), seed=0).id == before


def test_select_keeps_the_files_order_and_hash_and_the_fitting_exemplars() -> None:
    constitution = load_constitution("harmlessness")
    chosen = constitution.select(["privacy", "least-harm"])
    assert [p.id for p in chosen.principles] == ["least-harm", "privacy"]
    assert [e.principle for e in chosen.exemplars] == ["privacy"]
    assert chosen.sha256 == constitution.sha256


@pytest.mark.parametrize(
    ("ids", "message"),
    [(["privcy"], "no principle 'privcy'"), ([], "no principle is selected"), (["care", "care"], "2 times")],
)
def test_select_refuses(ids: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_constitution("harmlessness").select(ids)


def test_an_unknown_principle_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        load_constitution("harmlessness").principle("privcy")
    assert "did you mean 'privacy'?" in str(caught.value.hint)


def test_exemplars_of_the_other_direction_are_never_shown() -> None:
    constitution = Constitution.model_validate(
        minimal(
            exemplars=[
                exemplar(prompt="any"),
                exemplar(prompt="kind", principle="kind"),
                exemplar(prompt="cruel", principle="cruel"),
            ]
        )
    )
    kind, cruel = constitution.principles
    assert [e.prompt for e in constitution.exemplars_for(kind)] == ["kind", "any"]
    assert [e.prompt for e in constitution.exemplars_for(cruel)] == ["cruel"]


# --- files that cannot be used ------------------------------------------------------------------------------


def test_a_minimal_file_loads_with_defaults(tmp_path: Path) -> None:
    constitution = load_constitution(write(tmp_path, minimal()))
    kind, cruel = constitution.principles
    assert (kind.choose, kind.weight, kind.for_, constitution.exemplars) == ("better", 1.0, None, ())
    assert (cruel.choose, cruel.weight) == ("worse", 3.0)
    with pytest.raises(InputError, match="'kind' has no 'for' and 'against'"):
        kind.contrast_prompts()
    with pytest.raises(ValidationError, match="frozen"):
        kind.weight = 2.0


def test_text_that_looks_like_something_else_stays_text(tmp_path: Path) -> None:
    text = "name: 2024-13-45\ndescription: 12:30 is =\npreamble: >-\n  one\n  two\n"
    text += "principles: [{id: '007', text: \"yes\"}]\n"
    constitution = load_constitution(write(tmp_path, b"\xef\xbb\xbf" + text.encode()))
    assert (constitution.name, constitution.preamble) == ("2024-13-45", "one two")
    assert constitution.principles == (Principle(id="007", text="yes"),)


def principles(*changed: dict[str, Any]) -> dict[str, Any]:
    return minimal(principles=[{"id": f"p-{i}", "text": "t", **change} for i, change in enumerate(changed)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (minimal(principels=[]), "principels: unknown key; did you mean 'principles'?"),
        (principles({"wieght": 2}), "principles[0].wieght: unknown key; did you mean 'weight'?"),
        (principles({"for_": "x"}), "principles[0].for_: unknown key; did you mean 'for'?"),
        (
            principles({}, {}, {"choose": "worst"}),
            "principles[2].choose: must be 'better' or 'worse', not 'worst'",
        ),
        (principles({"weight": 0}), "principles[0].weight: must be above 0"),
        (principles({"weight": float("inf")}), "principles[0].weight: must be above 0"),
        (principles({"weight": float("nan")}), "principles[0].weight: must be above 0"),
        (principles({"weight": "1"}), "principles[0].weight: must be a number, not the text '1'"),
        (principles({"weight": True}), "principles[0].weight: must be a number, not a true/false value"),
        (principles({"weight": 10**400}), "principles[0].weight: must be"),
        (principles({"text": " \n"}), "principles[0].text: must not be empty"),
        (principles({"text": True}), "principles[0].text: must be text, not a true/false value"),
        (principles({"text": None}), "principles[0].text: must be text, not nothing"),
        (principles({"id": "A b"}), "principles[0].id: must consist of a-z, 0-9 and '-', found 'A b'"),
        (principles({"id": "p-1"}, {}), "principles[1].id: 'p-1' is already the id of principles[0]"),
        (principles({"for": "x"}), "principles[0]: has 'for' but no 'against'"),
        (minimal(principles=[]), "principles: needs at least one principle"),
        (minimal(principles={"id": "a"}), "principles: must be a list, not a mapping"),
        (minimal(principles=["be nice"]), "principles[0]: must be a mapping with the keys id, text"),
        (minimal(preamble=""), "preamble: must not be empty"),
        (minimal(description="a\nb"), "description: must be a single line"),
        (minimal(exemplars=[exemplar(answer=3)]), "exemplars[0].answer: must be 1 or 2, not 3"),
        (minimal(exemplars=[exemplar(answer="1")]), "exemplars[0].answer: must be 1 or 2, not '1'"),
        (minimal(exemplars=[exemplar(answer=True)]), "exemplars[0].answer: must be 1 or 2, not a true/false"),
        (
            minimal(exemplars=[exemplar(principle="kidn")]),
            "exemplars[0].principle: there is no principle 'kidn'; did you mean 'kind'?",
        ),
        ({"name": "x", "description": "y", "preamble": "z"}, "principles: is missing"),
    ],
)
def test_a_fault_names_its_field(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    error = error_of(tmp_path, content)
    assert message in error.what
    assert error.errors == []  # the only fault is the message itself


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("name: a\nname: b\n", 2, "name: the key is already used in line 1"),
        (
            "name: a\nprinciples:\n  - id: x\n    text: t\n    id: y\n",
            5,
            "principles[0].id: the key is already",
        ),
        ("name: a\ndescription: b: c\n", 2, "not valid YAML"),
        ("name: [a\n", 2, "not valid YAML"),
        ("name: !!python/object/apply:os.system ['exit 1']\n", 1, "a tag ("),
        ("!!python/name:os.system name: x\n", 1, "a tag ("),
        ("a: &a x\nb: *a\n", 1, "an anchor ('&a')"),
        ("name: x\nb: *a\n", 2, "an alias ('*a')"),
        ("<<: *base\n", 1, "an alias ('*base')"),
        ("? [a, b]\n: c\n", 1, "a key must be plain text"),
        ("name: x\n---\nname: y\n", 2, "a second document"),
        ("name: a\0b\n", 1, "a character that YAML does not allow (U+0000)"),
        (b"name: x\ndescription: \xff\xfe\n", 2, "is not UTF-8 text"),
        (bytes(range(256)), 2, "is not UTF-8 text"),
        ("name: " + "1" * 5000 + "\n", 1, "name: is not a usable number"),
        ("name: 0b_\n", 1, "name: is not a usable number"),
    ],
)
def test_a_fault_names_its_line(tmp_path: Path, content: str | bytes, line: int, message: str) -> None:
    error = error_of(tmp_path, content)
    assert any(f"mine.yaml line {line}: {message}" in told for told in [str(error), *error.errors])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- a\n", "must have the keys name, description, preamble and principles, found a list"),
        ("just words\n", "found 'just words'"),
        (b"a" * (MAX_BYTES + 1), "is larger than 1024 KiB"),
    ],
)
def test_a_file_that_is_no_constitution(tmp_path: Path, content: str | bytes, message: str) -> None:
    assert message in error_of(tmp_path, content).what


def test_all_faults_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        "name: mine\n"  # line 1
        "preamble: x\n"
        "principles:\n"
        "  - id: a\n"
        "    text: ''\n"
        "  - id: a\n"
        "    text: t\n"
        "    choose: best\n"
        "exemplars:\n"
        "  - {prompt: p, response_1: a, response_2: b, rationale: r, answer: 1, principle: b}\n"
        "extra: 1\n"
    )
    error = error_of(tmp_path, text)
    places = [fault.split("mine.yaml")[1].split(": ")[:2] for fault in error.errors]
    assert places == [
        ["", "description"],
        [" line 5", "principles[0].text"],
        [" line 6", "principles[1].id"],
        [" line 8", "principles[1].choose"],
        [" line 10", "exemplars[0].principle"],
        [" line 11", "extra"],
    ]
    assert error.what == "6 errors"


@pytest.mark.parametrize(
    "content",
    [
        "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{c}: &{c} [{','.join(['*a'] * 9)}]\n" for c in "bcdefghi"),
        "a: &a {b: *a}\n",
        "[" * 500_000,
        "{a: " * 100_000,
        "- " * 500_000,
        "? " * 500_000,
        "- a\n" * 250_000,
        "k: 1\n" * 200_000,
    ],
    ids=["billion-laughs", "recursive", "brackets", "braces", "dashes", "keys", "long-list", "one-key"],
)
def test_hostile_files_are_refused_quickly(tmp_path: Path, content: str) -> None:
    started = time.process_time()
    error = error_of(tmp_path, content)
    assert time.process_time() - started < 10  # seconds of the processor; without limits some of these never end
    assert len(error.errors) < 20_010


def test_names_and_paths_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as usage:
        load_constitution("harmlesness")
    assert usage.value.what == "unknown constitution 'harmlesness'"
    assert str(usage.value.hint).startswith("did you mean 'harmlessness'? shipped: harmlessness, helpfulness")
    with pytest.raises(UsageError):
        load_constitution("")
    with pytest.raises(UsageError):
        load_constitution("x" * 5000)
    with pytest.raises(InputError, match="no such constitution file") as missing:
        load_constitution("helpfulness.yaml")
    assert missing.value.hint == "for the shipped constitution, write 'helpfulness'"
    with pytest.raises(InputError, match="no such constitution file"):
        load_constitution("folder/mine")
    with pytest.raises(InputError, match="is a folder"):
        load_constitution(str(tmp_path))
    with pytest.raises(InputError, match="cannot be read"):
        load_constitution("a\0/b")


def test_a_shipped_name_wins_over_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("helpfulness").write_text(yaml.safe_dump(minimal()))
    assert load_constitution("helpfulness").name == "helpfulness"
    assert load_constitution("./helpfulness").name == "mine"


def test_a_constitution_made_in_code_is_checked_too() -> None:
    with pytest.raises(ValidationError, match="already the id of"):
        Constitution.model_validate(minimal(principles=[{"id": "a", "text": "t"}] * 2))
    one, two = (Constitution.model_validate(minimal(preamble=text)) for text in "ab")
    assert one.sha256 != two.sha256 and len(one.sha256) == 64


# --- warnings -----------------------------------------------------------------------------------------------


def test_warnings_name_what_is_probably_not_meant() -> None:
    both = {"for": "You are kind.", "against": "You are a most unkind and terribly cruel machine."}
    constitution = Constitution.model_validate(
        minimal(
            principles=[
                {"id": "kind", "text": "t", **both},
                {"id": "cruel", "text": "t", "choose": "worse"},
            ],
            exemplars=[exemplar(response_1="longer"), exemplar(response_1="longer")],
        )
    )
    told = constitution.warnings()
    assert len(told) == 5
    assert "principles[0] (kind): 'for' and 'against' differ a lot in length" in told[0]
    assert "principles[1] (cruel): no 'for' and 'against'" in told[1]
    assert "2 answer 1 and 0 answer 2" in told[2]
    assert "the longer response is always the answer" in told[3]
    assert "none for the 'choose: worse' principles" in told[4]


# --- the commands -------------------------------------------------------------------------------------------


def run(*args: str) -> Any:
    return rlaif("constitution", *args)


def test_list() -> None:
    lines = run("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == SHIPPED
    assert lines[2].startswith("summarization  6 principles  Judges summaries")


def test_show_json_is_the_whole_file() -> None:
    result = run("show", "harmlessness", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    data = json.loads(result.stdout)
    constitution = load_constitution("harmlessness")
    assert data.pop("sha256") == constitution.sha256
    assert Constitution.model_validate(data).model_dump() == constitution.model_dump()
    assert data["principles"][1]["choose"] == "worse" and data["principles"][1]["for"]


def test_show_is_readable_and_complete() -> None:
    result = run("show", "harmlessness")
    assert (result.returncode, result.stderr) == (0, "")
    shown = " ".join(result.stdout.split())
    constitution = load_constitution("harmlessness")
    for principle in constitution.principles:
        assert " ".join(principle.text.split()) in shown
        assert all(" ".join(prompt.split()) in shown for prompt in principle.contrast_prompts())
    for example in constitution.exemplars:
        assert " ".join(example.rationale.split()) in shown
    assert shown.count("asks for the WORSE response") == 1


def test_check(tmp_path: Path) -> None:
    result = run("check", write(tmp_path, minimal()))
    assert (result.returncode, result.stdout) == (0, "")
    told = " ".join(result.stderr.split())
    assert "warning: " in told and "no 'for' and 'against'" in told
    assert "ok: " in told and "2 principles, 0 exemplars" in told


def test_check_names_every_fault_and_fails(tmp_path: Path) -> None:
    faulty = run("check", write(tmp_path, principles({"choose": "worst", "weight": -1})))
    assert faulty.returncode == EXIT_FAILED and faulty.stdout == ""
    assert faulty.stderr.startswith("error: ") and faulty.stderr.count("\n  ") == 2, faulty.stderr
    unknown = run("show", "helpfullness")
    assert unknown.returncode == EXIT_USAGE and unknown.stderr.startswith("error: ")


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, rlaif_cli.cli.constitution as c\n"
        "import rlaif_cli.judge.constitution\n"
        "assert not {'torch', 'transformers', 'vllm'} & set(sys.modules)"
    )
    env = {"PYTHONPATH": str(shipped_files.PACKAGE.parent)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
