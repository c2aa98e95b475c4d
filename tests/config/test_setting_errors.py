"""Messages mention settings by their fields; the command line, pipeline files and Python each spell them their way."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers import ROOT, rows_of
from rlaif_cli import api
from rlaif_cli.cli import options
from rlaif_cli.config.base import StageConfig
from rlaif_cli.config.data import ConvertConfig
from rlaif_cli.config.engine import GenerateConfig
from rlaif_cli.config.evaluate import AlignmentConfig, BestOfNConfig, RewardConfig
from rlaif_cli.config.judge import LabelConfig
from rlaif_cli.config.naming import as_field, option, spelled
from rlaif_cli.config.train import RewardModelConfig
from rlaif_cli.errors import InputError, UsageError, spelling
from rlaif_cli.pipeline import file, runner
from rlaif_cli.pipeline.stage import run_stage
from rlaif_cli.registry import STAGES
from rlaif_cli.train.reward_model import train_reward_model
from rlaif_cli.ui.progress import no_progress

PACKAGE = ROOT / "src" / "rlaif_cli"
ABOVE = ("cli", "pipeline", "report", "worker.py")  # they know the command line


def configs(base: type[StageConfig] = StageConfig) -> Iterator[type[StageConfig]]:
    for kind in base.__subclasses__():
        yield kind
        yield from configs(kind)


ALL = list(dict.fromkeys(configs()))
FIELDS = {field for kind in ALL for field in kind.model_fields}


def mentions(tree: ast.AST) -> Iterator[str]:
    """The fields that a piece of source mentions by `option("…")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "option":
            yield from (each.value for each in node.args if isinstance(each, ast.Constant))


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text("utf-8"))


# ------------------------------------------------------------------------------------------------ sources


def test_every_setting_that_a_config_mentions_is_one_of_its_own() -> None:
    """In a class that others inherit, also one of theirs."""
    checked = 0
    for name, tree in trees():
        if not name.startswith("config"):
            continue
        for node in tree.body:
            kinds = [k for k in ALL if any(base.__name__ == getattr(node, "name", "") for base in k.__mro__)]
            for field in mentions(node):
                missing = [kind.__name__ for kind in kinds if field not in kind.model_fields]
                assert kinds and not missing, f"{name} mentions {field}, which {missing} lacks"
                checked += len(kinds)
    assert checked > 100


def test_every_setting_that_is_mentioned_exists() -> None:
    found = {(name, field) for name, tree in trees() for field in mentions(tree)}
    assert {(name, field) for name, field in found if field not in FIELDS} == set()
    assert len(found) > 60
    assert all(re.fullmatch("[a-z_]+", field) for field in FIELDS), "so that each can be mentioned"


def test_messages_do_not_spell_options_themselves() -> None:
    """Except in a command between backticks, and where only the command line is meant."""
    spelled_out = re.compile(r"(?<![\w-])--?([a-z][a-z-]*)")
    names = {field.replace("_", "-") for field in FIELDS} | {"o"}
    for name, tree in trees():
        if name.startswith(ABOVE):
            continue
        for call in ast.walk(tree):
            if not isinstance(call, ast.Call) or not getattr(call.func, "id", "").endswith("Error"):
                continue
            for text in (each.value for each in ast.walk(call) if isinstance(each, ast.Constant)):
                outside = re.sub(r"`[^`]*`", "", text) if isinstance(text, str) else ""
                assert not names & set(spelled_out.findall(outside)), f"{name}:{call.lineno}: {text!r}"


def test_the_command_line_spells_settings_as_its_help_does() -> None:
    assert [GenerateConfig.option_name(field) for field in ("max_tokens", "n", "output", "prompts")] == [
        "--max-tokens",
        "-n",
        "-o",
        "PROMPTS",
    ]
    assert (LabelConfig.option_name("pairs"), AlignmentConfig.option_name("pairs")) == ("--pairs", "PAIRS")
    assert ConvertConfig.option_name("from_format") == "--from"
    assert GenerateConfig.option_name("eval_judge") == "--eval-judge", "a setting of another command"


# ------------------------------------------------------------------------------------------------ surfaces

FAKE = {"model": "fake", "engine": "fake"}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("generate", {"prompts": "p", **FAKE, "base_url": "http://x/v1"}, "--base-url needs --engine openai or decisions"),
    ("generate", {"prompts": "p", **FAKE, "replicas": 2}, "--replicas needs --engine ray"),
    (
        "generate",
        {"prompts": "p", **FAKE, "temperature": 0},
        "--temperature 0 gives 4 identical responses: use -n 1 or a temperature above 0",
    ),
    ("generate", {"prompts": "p", **FAKE, "n": 0}, "-n: must be greater than or equal to 1"),
    ("generate", {"prompts": 3, **FAKE}, "PROMPTS: must be a valid string"),
    ("generate", {"prompts": "p", **FAKE, "top_p": "high"}, "--top-p: must be a number"),
    ("generate", {"prompts": "p", **FAKE, "stop": ["a", 1]}, "--stop[1]: must be a valid string"),
    (
        "generate",
        {"prompts": "p", "max_tokens": 0},
        "--model: Field required; --max-tokens: must be greater than or equal to 1",
    ),
    (
        "label",
        {"candidates": "c", "judge": "fake", "constitution": "helpfulness", "method": "score", "cot": True},
        "--cot needs --method pairwise",
    ),
    ("ppo", {"prompts": "p", **FAKE, "judge": "fake"}, "--judge needs --constitution"),
    (
        "ppo",
        {"prompts": "p", **FAKE},
        "a reward source is needed: --reward-model, --judge or --reward-function",
    ),
    (
        "ppo",
        {"prompts": "p", **FAKE, "reward_model": "rm", "eval_every": 5},
        "--eval-every needs --eval-function or --eval-judge",
    ),
    (
        "ppo",
        {"prompts": "p", **FAKE, "reward_model": "rm", "advantage": "rloo", "lam": 0.5},
        "--lam needs --advantage gae: rloo has no value model",
    ),
    (
        "ppo",
        {"prompts": "p", **FAKE, "reward_function": "f"},
        "--reward-function: 'f' does not name a function: FILE.py:NAME",
    ),
    (
        "ppo",
        {"prompts": "p", **FAKE, "reward_function": ["x/a.py:f", "y/a.py:f"]},
        "--reward-function: two functions would both be called a.f in the results; rename one of them or its file",
    ),
    (
        "sft",
        {"records": "r", "model": "fake", "patience": 3, "eval_fraction": 0},
        "--patience needs --eval-fraction above 0",
    ),
]
IDS = [message for _, _, message in REFUSED]


def as_python(message: str) -> str:
    """The message that the command line prints, as the others do."""
    message = message.replace("-n", "n").replace("PROMPTS", "prompts")
    return re.sub(r"--([a-z-]+)", lambda found: found[1].replace("-", "_"), message)


@pytest.mark.parametrize(("stage", "settings", "message"), REFUSED, ids=IDS)
def test_the_command_line_names_options(stage: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        options.parse(STAGES[stage].config_class, {"output": "out", **settings})
    assert str(raised.value) == message


@pytest.mark.parametrize(("stage", "settings", "message"), REFUSED, ids=IDS)
def test_a_pipeline_file_names_its_keys(stage: str, settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "stages": {"mine": {"run": stage, **settings}}}))
    with pytest.raises(InputError) as raised:
        file.load(str(path), tmp_path, STAGES)
    assert raised.value.errors == [f"{path} stage 'mine': {as_python(message)}"]


@pytest.mark.parametrize(("stage", "settings", "message"), REFUSED, ids=IDS)
def test_python_names_arguments(stage: str, settings: dict[str, Any], message: str) -> None:
    first = {"generate": "prompts", "label": "candidates", "ppo": "prompts", "sft": "records"}[stage]
    with pytest.raises(UsageError) as raised:
        getattr(api, stage)(**{first: settings[first], "output": "out", **settings})
    assert str(raised.value) == as_python(message)


def test_a_config_built_in_python_names_its_fields() -> None:
    with pytest.raises(ValueError, match="rationale_tokens needs cot") as raised:
        LabelConfig(candidates="c", judge=("fake",), constitution="helpfulness", rationale_tokens=3)
    assert "\x02" not in str(raised.value)


def test_an_unknown_setting_is_named_with_the_closest_one(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.yaml"
    stage = {"run": "generate", "prompts": "p", "max_token": 3, **FAKE}
    path.write_text(yaml.safe_dump({"name": "x", "stages": {"mine": stage}}))
    with pytest.raises(InputError) as raised:
        file.load(str(path), tmp_path, STAGES)
    said = "max_token: there is no such setting; did you mean max_tokens?"
    assert raised.value.errors == [f"{path} stage 'mine': {said}"]
    with pytest.raises(UsageError, match=re.escape(said)):
        api.generate("p", max_token=3, **FAKE)


@pytest.mark.parametrize("kind", [RewardConfig, BestOfNConfig])
def test_an_evaluation_mentions_no_setting_of_training(kind: type[StageConfig]) -> None:
    judge = {"judge": "fake", "constitution": "helpfulness"} if kind is BestOfNConfig else {}
    settings = {"candidates": "c", "reward_function": "a.py:f", "reward_weights": 0, **judge}
    with pytest.raises(UsageError, match=r"--reward-weights: the weight of f is 0; .*`rlaif ppo --eval-function`"):
        options.parse(kind, settings)


# ------------------------------------------------------------------------------------------------ at run time


def test_a_pipeline_says_how_to_set_what_an_error_mentions(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a?"}\n')
    config = GenerateConfig(prompts=str(tmp_path / "p.jsonl"), output=str(tmp_path / "out.jsonl"), **FAKE)
    api.generate(config)
    step = file.Step("mine", "generate", config.model_copy(update={"seed": 1}))
    with api.Engines() as engines, pytest.raises(UsageError) as raised:
        runner.run(
            file.PipelineFile(name="x", stages={"mine": {}}),
            [step],
            [step],
            tmp_path,
            partial(run_stage, engines=engines),
            lambda index, each: nullcontext(no_progress),
            lambda: 0.0,
        )
    error = raised.value
    assert str(error).startswith("stage 'mine': ") and "seed: 0 before, 1 now" in str(error)
    assert error.hint is not None
    assert error.hint.startswith("use the same settings to resume, or choose another output, or --overwrite to start")
    assert "set output by `--set mine.output=VALUE`, or in the file by `output: VALUE`" in error.hint
    assert "--from mine --overwrite restarts this stage and those after it" in error.hint


def long_pairs(write_jsonl: Any) -> str:
    rows = [{"prompt": "a?", "chosen": "yes", "rejected": "no", "p_chosen": 0.9}]
    return str(write_jsonl("p.jsonl", [*rows, rows[0] | {"prompt": "long " * 200}]))


def test_a_row_is_refused_in_the_words_of_the_surface(write_jsonl: Any, tmp_path: Path) -> None:
    path = long_pairs(write_jsonl)
    settings = {"model": "fake", "output": str(tmp_path / "rm"), "max_length": 200}
    with pytest.raises(InputError) as raised:
        api.train_rm(path, **settings)
    assert raised.value.errors[0].endswith("tokens; max_length is 200")
    assert raised.value.hint == "fix the lines, or skip them with skip_invalid"
    config = RewardModelConfig(preferences=path, **settings)
    with pytest.raises(InputError) as raised, spelling(config.option_name):
        train_reward_model(config)
    assert raised.value.errors[0].endswith("tokens; --max-length is 200")
    train_reward_model(config.model_copy(update={"skip_invalid": True, "dry_run": True}))
    (row,) = rows_of(tmp_path / "rm.rejected.jsonl")
    assert row["reason"].endswith("tokens; --max-length is 200"), "files are written in one way"


def test_an_error_reads_the_same_wherever_it_has_been() -> None:
    error = UsageError(f"{option('judge')} is odd", hint=f"use {option('eval_judge')}", errors=[option("n")])
    for each in (error, pickle.loads(pickle.dumps(error))):
        assert (str(each), each.hint, each.errors) == ("--judge is odd", "use --eval-judge", ["--n"])
        assert each.args == ("--judge is odd",) and each.mentions() == ["judge", "eval_judge", "n"]
        each.spell = as_field
        assert (str(each), each.hint, each.errors) == ("judge is odd", "use eval_judge", ["n"])
    assert spelled("no setting, {judge} or <judge>") == "no setting, {judge} or <judge>"
