"""Reward functions that users write: what they are called with and may return, and that only the user names them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import PPO_DEFAULTS, Interrupted, assert_same_run, interrupt_after, log_of, mean

from helpers import rlaif, rows_of
from rlaif_cli.config.evaluate import BestOfNConfig, RewardConfig
from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.config.reward import RewardSourceConfig
from rlaif_cli.data.messages import Message
from rlaif_cli.data.overlap import check_outputs
from rlaif_cli.engines import EnginePool
from rlaif_cli.errors import EngineError, InputError, RlaifError, UsageError
from rlaif_cli.evaluation.best_of_n import best_of_n
from rlaif_cli.evaluation.reward import reward
from rlaif_cli.pipeline import preflight
from rlaif_cli.pipeline.file import load as load_pipeline
from rlaif_cli.registry import STAGES
from rlaif_cli.train import scoring
from rlaif_cli.train.ppo import train_ppo
from rlaif_cli.train.reward_function import PromptRow, RewardFunction, load
from rlaif_cli.train.reward_source import (
    WeightedSum,
    check_reward_source,
    reward_source,
    scores_and_parts,
    why_unscored,
)

pytestmark = pytest.mark.usefixtures("one_thread")

LOWERCASE = """
def lowercase(responses):
    return [sum("a" <= c <= "z" for c in text) / max(1, len(text)) for text in responses]
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """A Python file in tmp_path; returns FILE.py:NAME."""

    def file(code: str, name: str = "f", file: str = "own.py") -> str:
        (tmp_path / file).write_text(code)
        return f"{tmp_path / file}:{name}"

    return file


def row(name: str = "a", reference: str | None = None, **meta: Any) -> PromptRow:
    return PromptRow(name, [Message(role="user", content=f"Question {name}?")], reference, meta)


# ------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize(
    ("code", "said", "hint"),
    [
        ("def f(responses:\n", "it is not valid Python", None),
        ("g = 1\n\ndef h(responses): ...\n", "there is no 'f' in the file", "functions there: h"),
        ("f = 3\n", "'f' is not a function but 3 (int)", "the file defines no function"),
        ("import no_such_package\n", "ModuleNotFoundError: No module named 'no_such_package'", "install the package"),
        ("\nraise KeyError('gold')\n", "KeyError: 'gold'", "line 2 of own.py: raise KeyError('gold')"),
        ("import sys\nsys.exit(3)\n", "it raised SystemExit: 3", "line 2 of own.py"),
        ("def f(completions, **more): ...\n", "it requires 'completions'", "prompts, responses, reference and meta"),
        ("def f(responses, /): ...\n", "it requires 'responses'", "keywords"),
        ("def f(prompts): ...\n", "it does not accept 'responses'", "keywords"),
        ("async def f(responses): ...\n", "it is async", None),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_with_the_reason(
    write: Any, code: str, said: str, hint: str | None
) -> None:
    spec = write(code)
    with pytest.raises(InputError) as error:
        load(spec)
    assert said in str(error.value) and "own.py" in str(error.value)
    assert hint is None or hint in str(error.value.hint)
    with pytest.raises(InputError):  # and before compute is spent
        check_reward_source(RewardSourceConfig(reward_function=(spec,)))


def test_a_file_that_is_not_there_or_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    for name, said in (("none.py", "No such file"), ("folder.py", "Is a directory"), ("a\0.py", "null byte")):
        with pytest.raises(InputError, match=f"the file cannot be read: .*{said}"):
            load(f"{tmp_path}/{name}:f")


def test_the_line_of_a_syntax_error_is_named(write: Any) -> None:
    with pytest.raises(InputError) as error:
        load(write("x = 1\ny = = 2\n"))
    assert str(error.value.where).endswith("own.py line 2")


def test_files_beside_it_can_be_imported_also_while_it_is_called(write: Any, tmp_path: Path) -> None:
    (tmp_path / "beside_one.py").write_text("BONUS = 2\n")
    (tmp_path / "beside_two.py").write_text("MALUS = 0.5\n")
    code = "from beside_one import BONUS\ndef f(responses):\n    import beside_two\n"
    function = load(write(code + "    return [BONUS - beside_two.MALUS] * len(responses)\n"))
    assert function.score([row()], [["x"]]).tolist() == [[1.5]]
    assert str(tmp_path) not in sys.path


def test_what_runs_is_what_was_hashed(write: Any) -> None:
    """Not a compiled file of the same second and size, which Python's own loader would take."""
    found = []
    for value in (1, 2):
        spec = write(f"def f(responses): return [{value}.0] * len(responses)\n")
        os.utime(spec.rpartition(":")[0], (0, 0))
        function = load(spec)
        found.append((function.score([row()], [["x"]]).item(), function.sha256))
    assert [score for score, _ in found] == [1.0, 2.0] and found[0][1] != found[1][1]


def test_dataclasses_and_classes_that_can_be_called_work(write: Any) -> None:
    code = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Size:\n"
    code += "    per: float\n    def __call__(self, responses): return [len(r) / self.per for r in responses]\n"
    code += "f = Size(2)\n"
    assert load(write(code)).score([row()], [["four"]]).tolist() == [[2.0]]


# ------------------------------------------------------------------------------------------- calls


SEEN = "seen = []\ndef f({takes}):\n    seen.append(dict({kept}))\n    return [0.0] * len({first})\n"


def seen(function: RewardFunction) -> list[dict[str, Any]]:
    return list(function._function.function.__globals__["seen"])


def test_a_batch_is_one_call_with_flat_lists_of_the_rows_own_fields(write: Any) -> None:
    function = load(write(SEEN.format(takes="**given", kept="given", first="given['responses']")))
    rows = [row("a", "1", tags=["x"]), row("b"), row("a", "1", tags=["x"])]
    assert function.score(rows, [["r", "s"], ["t", "u"], ["v", "w"]]).shape == (3, 2)
    (given,) = seen(function)
    assert given["responses"] == ["r", "s", "t", "u", "v", "w"]
    assert given["reference"] == ["1", "1", None, None, "1", "1"]
    assert given["meta"] == [{"tags": ["x"]}] * 2 + [{}] * 2 + [{"tags": ["x"]}] * 2
    assert given["prompts"][2] == [{"role": "user", "content": "Question b?"}]


def test_only_what_it_takes_is_passed(write: Any) -> None:
    function = load(write(SEEN.format(takes="meta, *, responses, scale=1", kept="meta=meta", first="responses")))
    function.score([row(size=3)], [["r"]])
    assert seen(function) == [{"meta": [{"size": 3}]}]


def test_nothing_to_score_is_no_call(write: Any) -> None:
    function = load(write(SEEN.format(takes="responses", kept="responses=responses", first="responses")))
    assert function.score([], []).numel() == 0 and seen(function) == []


def test_what_it_changes_is_a_copy(write: Any) -> None:
    function = load(
        write("def f(responses, meta):\n    meta[0]['tags'].append('y')\n    return [len(meta[1]['tags'])] * 2\n")
    )
    asked = row(tags=[])
    for _ in range(2):
        assert function.score([asked], [["r", "s"]]).tolist() == [[0, 0]]
    assert asked.meta == {"tags": []}


@pytest.mark.parametrize(
    "returned",
    [
        "[1, 0.5]",
        "(True, 0.5)",
        "np.array([1, 0.5])",
        "[np.float32(1), np.float64(0.5)]",
        "torch.tensor([1, 0.5])",
        "[torch.tensor(1), torch.tensor([0.5])]",
    ],
)
def test_any_kind_of_number_is_a_score(write: Any, returned: str) -> None:
    function = load(write(f"import numpy as np, torch\ndef f(responses): return {returned}\n"))
    assert function.score([row()], [["r", "s"]]).tolist() == [[1, 0.5]]


def test_none_and_nan_are_no_score_and_the_reason_says_which(write: Any) -> None:
    function = load(write("def f(responses): return [None, float('nan'), 1]\n"))
    asked = row()
    assert function.score([asked], [["r", "s", "t"]]).isnan().tolist() == [[True, True, False]]
    assert why_unscored(function, asked, "r") == "f returned None"
    assert why_unscored(function, asked, "s") == "f returned NaN"


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("[0.0, float('inf')]", "row 'a', response 2: it returned inf (float)"),
        ("[0, 10 ** 400]", "row 'a', response 2: it returned 1000"),
        ("['good', 0]", "row 'a', response 1: it returned 'good' (str); a score must be a number or None"),
        ("[[0, 1], [2, 3]]", "row 'a', response 1: it returned [0, 1] (list)"),
        ("[1.0]", "it returned 1 scores for 2 responses"),
        ("1.0", "it returned 1.0 (float); it must return a list with a number or None for each response"),
        ("{'r': 1, 's': 2}", "it returned {'r': 1, 's': 2} (dict)"),
        ("'12'", "it returned '12' (str)"),
        ("None", "it returned None (NoneType)"),
        ("(len(r) for r in responses)", "(generator)"),
    ],
)
def test_what_is_no_score_is_an_error_with_the_row_where_one_is_known(write: Any, returned: str, said: str) -> None:
    function = load(write(f"def f(responses): return {returned}\n"))
    with pytest.raises(InputError) as error:
        function.score([row()], [["r", "s"]])
    assert said in str(error.value) and str(error.value.where).endswith("own.py:f")


def test_an_exception_names_the_first_row_that_fails_the_type_and_the_line(write: Any) -> None:
    code = "def f(responses, reference):\n    def one(text, want):\n        return float(text == want.strip())\n"
    function = load(write(code + "    return [one(*each) for each in zip(responses, reference)]\n"))
    with pytest.raises(InputError) as error:
        function.score([row("a", "1"), row("b"), row("c")], [["r", "1"], ["t", "u"], ["v", "w"]])
    said = "row 'b', response 1: it raised AttributeError: 'NoneType' object has no attribute 'strip'"
    assert said in str(error.value)
    assert "line 3 of own.py: return float(text == want.strip())" in str(error.value.hint)
    assert isinstance(error.value.__cause__, AttributeError)


def test_an_exception_of_the_whole_batch_alone_is_told_as_one(write: Any) -> None:
    function = load(write("def f(responses):\n    assert len(responses) == 1, 'one at a time'\n    return [0]\n"))
    with pytest.raises(InputError, match="AssertionError: one at a time for 2 responses together, but for none"):
        function.score([row()], [["r", "s"]])


# ------------------------------------------------------------------------------------------- several sources


def test_several_sources_are_added_with_their_weights_and_one_without_a_score_is_enough(write: Any) -> None:
    spec = write(
        "def size(responses): return [len(r) for r in responses]\ndef gap(responses): return [1, None]\n", "size"
    )
    functions = (spec, spec.replace(":size", ":gap"))
    config = RewardConfig(candidates="-", reward_function=functions, reward_weights=(0.5, -2))
    source = reward_source(config, EnginePool())
    assert isinstance(source, WeightedSum)
    asked = row()
    assert source.score([asked], [["four", "seven77"]])[0].tolist() == pytest.approx(
        [0.5 * 4 - 2, torch.nan], nan_ok=True
    )
    assert source.of_each([asked], [["four", "seven77"]])["size"].tolist() == [[4, 7]]
    assert why_unscored(source, asked, "seven77") == "gap returned None"


def test_a_process_without_a_prompt_has_empty_scores_of_a_judge_and_a_function(write: Any) -> None:
    spec = write("def size(responses): return [len(r) for r in responses]\n", "size")
    config = RewardConfig(candidates="-", judge="fake", constitution="helpfulness", reward_function=(spec,))
    with EnginePool() as engines:
        scores, parts = scores_and_parts(reward_source(config, engines), [], [])
    assert scores.tolist() == [] and {name: each.tolist() for name, each in parts.items()} == {"judge": [], "size": []}


def test_a_function_is_named_with_its_file_where_names_are_alike() -> None:
    config = RewardSourceConfig(judge="fake", constitution="helpfulness", reward_function=("a/x.py:f", "y.py:f"))
    assert config.sources == ("judge", "x.f", "y.f") and config.weights == (1, 1, 1)
    assert RewardSourceConfig(reward_model="rm", reward_function=("x.py:model",)).sources == ("model", "x.model")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reward_function": "own:f"}, "'own:f' does not name a function: FILE.py:NAME"),
        ({"reward_function": "own.py"}, "does not name a function"),
        ({"reward_function": "own.py:f()"}, "does not name a function"),
        ({"reward_function": ["a.py:f", "a.py:f"]}, "'a.py:f' is given twice"),
        ({"reward_function": ["a/x.py:f", "b/x.py:f"]}, "both be called x.f"),
        ({"reward_function": "a.py:f", "reward_weights": [1, 2]}, "2 weights for 1 sources (in order: f)"),
        (
            {"reward_model": "rm", "reward_function": "a.py:f", "reward_weights": 2},
            "1 weights for 2 sources (in order: model, f)",
        ),
        ({"reward_function": ["a.py:f", "a.py:g"], "reward_weights": [1, 0]}, "the weight of g is 0"),
        (
            {"reward_model": "rm", "judge": "fake", "constitution": "helpfulness"},
            "reward_model and judge cannot be combined",
        ),
        ({"reward_function": "a.py:f", "method": "score"}, "method needs judge"),
        ({}, "a reward source is needed"),
    ],
)
def test_what_cannot_be_weighed_or_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:
        RewardSourceConfig(**options)
    assert said in str(error.value)


def test_an_output_folder_never_replaces_the_file(write: Any, tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    spec = write(LOWERCASE, "lowercase", "policy/own.py")
    with pytest.raises(ValueError, match="the output would replace an input"):
        check_outputs(PPOConfig(prompts="-", model="fake", reward_function=spec, output=str(tmp_path / "policy")))


# ------------------------------------------------------------------------------------------- PPO


@pytest.fixture
def ppo(tiny: Path, tmp_path: Path, write_jsonl: Callable[..., str]) -> Callable[..., Path]:
    """PPO with functions into tmp_path/<name>; of ten prompts, whose `reference` is in their text."""

    def run(name: str, *functions: str, stop: int | None = None, **options: Any) -> Path:
        rows = [{"id": f"p{i}", "prompt": f"Say {i}", "reference": str(i), "size": i} for i in range(10)]
        own = {"judge": None, "constitution": None, "reward_function": functions, "advantage": "rloo"}
        shared = {"prompts": write_jsonl("prompts.jsonl", rows), "output": str(tmp_path / name), "model": str(tiny)}
        config = PPOConfig(**(PPO_DEFAULTS | own | {"steps": 4, "n": 4} | shared | options))
        progress = {} if stop is None else {"progress": interrupt_after(stop)}
        with EnginePool() as engines:
            train_ppo(config, lambda load_adapter: reward_source(config, engines, load_adapter), **progress)
        return tmp_path / name

    return run


@pytest.mark.parametrize("advantage", ["rloo", pytest.param("gae", marks=pytest.mark.slow)])
def test_ppo_climbs_a_function(ppo: Any, write: Any, advantage: str) -> None:
    settings = {"steps": 30, "prompts_per_step": 8, "lr": 2e-3, "kl_coef": 0.0, "advantage": advantage}
    folder = ppo("policy", write(LOWERCASE, "lowercase"), **settings)
    rows = log_of(folder)
    assert mean(rows[-3:], "reward") > mean(rows[:3], "reward") + 0.3
    results = json.loads((folder / "manifest.json").read_text())["results"]
    assert results["reward_last"] > results["reward_first"] + 0.2
    assert not any(name.startswith("reward_") for name in rows[0]), "one source is the reward itself"


def test_every_response_comes_with_the_fields_of_its_own_prompt(ppo: Any, write: Any) -> None:
    """Of prompts that stand in a step twice, too: twelve of ten."""
    code = """
def f(prompts, responses, reference, meta):
    assert len(prompts) == 48
    for prompt, want, own in zip(prompts, reference, meta):
        assert prompt == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Say " + want}]
        assert own == {"size": int(want)}
    return [own["size"] for own in meta]
"""
    rows = log_of(ppo("policy", write(code), prompts_per_step=12, steps=2, system="Be kind."))
    assert all(0 < row["reward"] < 9 for row in rows)


def test_the_log_has_the_mean_of_each_source_and_the_weights_count(ppo: Any, write: Any) -> None:
    code = LOWERCASE + "def size(responses): return [len(r) for r in responses]\n"
    functions = [write(code, name) for name in ("lowercase", "size")]
    judged = {"judge": "fake", "constitution": "helpfulness"}
    first = {}
    for weights in ((1, 1, 1), (2, 1, -0.5)):
        row = log_of(ppo(f"policy{weights[0]}", *functions, reward_weights=weights, steps=1, **judged))[0]
        parts = [row["reward_judge"], row["reward_lowercase"], row["reward_size"]]
        assert row["reward"] == pytest.approx(sum(w * part for w, part in zip(weights, parts, strict=True)), abs=1e-4)
        first[weights] = row
    one, other = first.values()
    assert one["reward_size"] == other["reward_size"] and one["grad_norm"] != other["grad_norm"]


def test_a_response_without_a_score_is_counted_and_not_trained_on(ppo: Any, write: Any) -> None:
    code = "def f(responses, meta):\n"
    code += "    return [None if own['size'] == 3 else len(r) for r, own in zip(responses, meta)]\n"
    folder = ppo("policy", write(code), prompts_per_step=10, steps=2)
    assert [row["unscored"] for row in log_of(folder)] == [4, 4]
    left_out = rows_of(folder / "unscored.jsonl")
    assert {(row["reason"], row["prompt"][0]["content"]) for row in left_out} == {("f returned None", "Say 3")}
    with pytest.raises(EngineError, match=r"4 of the 40 responses of step 1 got no score .*f returned None \(4 of 4\)"):
        ppo("other", write(code), prompts_per_step=10, steps=2, max_unscored=0.05)


def test_an_exception_on_the_way_names_the_row(ppo: Any, write: Any) -> None:
    code = "def f(responses, meta):\n    return [1 / (own['size'] - 7) for own in meta]\n"
    with pytest.raises(InputError, match="row 'p7', response 1: it raised ZeroDivisionError"):
        ppo("policy", write(code), prompts_per_step=10)


def test_a_run_is_resumed_with_the_same_function_alone(ppo: Any, write: Any) -> None:
    spec = write(LOWERCASE, "lowercase")
    whole = ppo("whole", spec, save_every=1)
    with pytest.raises(Interrupted):
        ppo("cut", spec, save_every=1, stop=2)
    write(LOWERCASE + "# another\n", "lowercase")
    for name in ("cut", "whole"):  # resumed, and complete
        with pytest.raises(UsageError) as error:
            ppo(name, spec, save_every=1)
        assert f"the reward function {spec} has changed: its sha256 was " in str(error.value)
    write(LOWERCASE, "lowercase")
    assert_same_run(whole, ppo("cut", spec, save_every=1))


# ------------------------------------------------------------------------------------------- evaluations


def responses(*texts: str, **fields: Any) -> dict[str, Any]:
    return {"prompt": f"Say {fields.get('id', 'it')}", "responses": list(texts), **fields}


def test_eval_reward_by_functions(write: Any, write_jsonl: Callable[..., str], tmp_path: Path) -> None:
    code = "def size(responses): return [len(r) for r in responses]\n"
    code += "def match(responses, reference, meta):\n    assert 'reference' not in meta[0]\n"
    code += "    return [None if want is None else r == want for r, want in zip(responses, reference)]\n"
    functions = tuple(write(code, name) for name in ("size", "match"))
    after = [
        responses("aa", "b", id="x", reference="b"),
        responses("c", "d", id="y", meta={"reference": "d"}),
        responses("e", "f", id="z"),
    ]
    before = [
        responses("b", "b", id="x", reference="b"),
        responses("aaa", "aaa", id="y", reference="d"),
        responses("e", "f", id="z", reference="e"),
    ]
    output = str(tmp_path / "reward.json")
    config = RewardConfig(
        candidates=write_jsonl("after.jsonl", after),
        baseline=write_jsonl("before.jsonl", before),
        reward_function=functions,
        reward_weights=(1, 10),
        output=output,
    )
    found = reward(config, EnginePool())
    assert (found["n"], found["unscored"]) == (2, 2), "z's responses have no reference on one side"
    assert found["sources"]["size"]["difference"]["value"] == pytest.approx(((1.5 - 1) + (1 - 3)) / 2)
    assert (
        found["sources"]["match"]["reward"]["value"] == 0.5 and found["sources"]["match"]["reward"]["low"] is not None
    )
    assert found["reward"]["value"] == pytest.approx(found["sources"]["size"]["reward"]["value"] + 10 * 0.5)
    items = {item["id"]: item for item in rows_of(tmp_path / "reward.items.jsonl")}
    assert items["z"]["reward"] is None and items["z"]["reason"] == "match returned None"
    assert items["x"]["sources"]["match"] == {"reward": 0.5, "baseline": 1.0}


def test_best_of_n_by_a_function(write: Any, write_jsonl: Callable[..., str], tmp_path: Path) -> None:
    spec = write("def f(responses): return [None if r == 'no' else len(r) for r in responses]\n")
    rows = [responses("a", "bbb", "cc", id="x"), responses("a", "no", id="y"), responses("dd", "d", id="z")]
    config = BestOfNConfig(
        candidates=write_jsonl("n.jsonl", rows),
        reward_function=(spec,),
        judge="fake",
        constitution="helpfulness",
        output=str(tmp_path / "best.json"),
    )
    found = best_of_n(config, lambda asked: [1.0] * len(list(asked)))
    assert (found["n"], found["rows_without_scores"], found["reward_function"]) == (2, 1, [spec])
    assert found["win_rate_over_first"]["value"] == 0.75 and found["chose_the_first"]["value"] == 0.5
    items = {item["id"]: item for item in rows_of(tmp_path / "best.items.jsonl")}
    assert items["x"]["best"] == 1 and items["x"]["rewards"] == [1, 3, 2]
    assert items["y"] == items["y"] | {"best": None, "rewards": [1, None], "reason": "f returned None"}
    with pytest.raises(ValueError, match="a reward source is needed"):
        BestOfNConfig(candidates="-", judge="fake", constitution="helpfulness")


# ------------------------------------------------------------------------------------------- pipelines


PIPELINE = """
name: mine
stages:
  policy: {{run: ppo, prompts: prompts.jsonl, model: fake, engine: fake, steps: 1, n: 2, prompts_per_step: 2,
           max_tokens: 4, advantage: rloo, reward_function: "{spec}"}}
  reward: {{run: eval reward, candidates: candidates.jsonl, reward_function: "{spec}"}}
"""


def faults(path: Path) -> list[str]:
    _, steps = load_pipeline(str(path), path.parent / "run", STAGES)
    with pytest.raises(RlaifError) as error:
        preflight.check(str(path), steps, steps)
    return error.value.errors


def test_a_pipeline_tells_of_functions_before_it_starts(
    write: Any, write_jsonl: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl("prompts.jsonl", [{"prompt": "q"}])
    write_jsonl("candidates.jsonl", [responses("a")])
    file = tmp_path / "mine.yaml"
    file.write_text(PIPELINE.format(spec="${examples}/demo/none.py:tone"))
    (told,) = faults(file)
    assert told.startswith("policy, reward: ") and "demo/none.py:tone: the file cannot be read" in told
    write("def other(responses): ...\n")
    file.write_text(PIPELINE.format(spec="own.py:tone"))
    (told,) = faults(file)
    assert told.startswith("policy, reward: own.py: there is no 'tone' in the file")


# ------------------------------------------------------------------------------------------- who may name code


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of PIPELINE, whose function is in the run's folder, where nothing made it."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "runs" / "mine").mkdir(parents=True)
    (folder / "runs" / "mine" / "own.py").write_text("def f(responses, **more): return [len(r) for r in responses]\n")
    (folder / "mine.yaml").write_text(PIPELINE.format(spec="${run}/own.py:f"))
    rows = {"prompts": [{"prompt": "q"}, {"prompt": "r"}], "candidates": [responses("a", "bb"), responses("c", id="2")]}
    for name, each in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
    done = rlaif("run", "mine.yaml", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_manifests_name_the_code_and_lineage_checks_it(made: Path) -> None:
    spec, file = "runs/mine/own.py:f", made / "runs/mine/own.py"
    for output in ("policy", "reward.json"):
        tree = json.loads(rlaif("lineage", f"runs/mine/{output}", "--json", cwd=made).stdout)
        (node,) = [each for each in tree["inputs"] if each["role"] == "reward_function"]
        assert (node["name"], node["state"]) == (spec, "as recorded") and len(node["sha256"]) == 64
    before = file.read_text()
    try:
        file.write_text("raise SystemExit\n")
        assert "changed" in rlaif("lineage", "runs/mine/policy", cwd=made).stdout
    finally:
        file.write_text(before)


def test_a_recorded_stage_runs_code_with_the_users_consent_alone_and_only_the_recorded_code(made: Path) -> None:
    file = made / "runs/mine/own.py"
    before = file.read_text()
    for number, source in enumerate(("runs/mine/policy", "runs/mine")):
        again = ("run", "--from-manifest", source, "-o", f"again{number}")
        refused = rlaif(*again, cwd=made)
        assert refused.returncode == 2 and "it executes Python code: runs/mine/own.py:f" in refused.stderr
        assert "--run-code" in refused.stderr
        try:
            file.write_text(before + "open('ran', 'w')\n")
            changed = rlaif(*again, "--run-code", cwd=made)
        finally:
            file.write_text(before)
        assert changed.returncode == 1 and "own.py:f" in changed.stderr and not (made / "ran").exists()
        assert not (made / f"again{number}").exists()
        done = rlaif(*again, "--run-code", cwd=made)
        assert done.returncode == 0, done.stderr
    assert (made / "again1" / "reward.json").read_text() == (made / "runs/mine/reward.json").read_text()
    alone = rlaif("run", "mine.yaml", "--run-code", cwd=made)
    assert alone.returncode == 2 and "--run-code needs --from-manifest" in alone.stderr


def test_a_file_in_the_working_folder_and_the_environment_name_no_code(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text("open('ran', 'w')\ndef f(responses): return [0] * len(responses)\n")
    command = ("eval", "reward", str(made / "candidates.jsonl"))
    (tmp_path / "rlaif.toml").write_text('[eval.reward]\nreward_function = "own.py:f"\n')
    done = rlaif(*command, cwd=tmp_path)
    assert done.returncode == 1 and "'reward_function' may only come from the command line or a pipeline" in done.stderr
    (tmp_path / "rlaif.toml").unlink()
    monkeypatch.setenv("RLAIF_EVAL_REWARD_REWARD_FUNCTION", "own.py:f")
    done = rlaif(*command, cwd=tmp_path)
    assert done.returncode == 2 and "may not come from the environment" in done.stderr
    monkeypatch.setenv("RLAIF_RUN_RUN_CODE", "1")
    done = rlaif("run", "--from-manifest", str(made / "runs/mine/policy"), "-o", "again", cwd=tmp_path)
    assert done.returncode == 2 and "not from the environment" in done.stderr
    assert not (tmp_path / "ran").exists()
    done = rlaif(*command, "--reward-function", "own.py:f", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "ran").exists(), "the command line may"
    assert json.loads(done.stdout)["reward"]["value"] == 0


def test_a_dry_run_finds_a_broken_file_and_debug_shows_the_traceback(made: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def f(responses):\n    return [1 / 0]\n")
    command = ("eval", "reward", str(made / "candidates.jsonl"), "--reward-function")
    done = rlaif(*command, "own.py:g", "--dry-run", cwd=tmp_path)
    assert done.returncode == 1 and "there is no 'g' in the file" in done.stderr
    done = rlaif(*command, "own.py:f", cwd=tmp_path)
    assert done.returncode == 1 and "error: own.py:f: row '" in done.stderr and "Traceback" not in done.stderr
    assert "hint: line 2 of own.py: return [1 / 0]" in done.stderr
    done = rlaif(*command, "own.py:f", "--debug", cwd=tmp_path)
    assert "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr


def test_scores_of_several_sources_are_told_by_the_step(write: Any) -> None:
    values = torch.tensor([3.0, torch.nan, 1.0])
    found = scoring.Scores(values, [None, "none", None], {"size": torch.tensor([2.0, 100.0, 0.0])})
    assert found.means() == {"reward_size": 1.0}
