"""Engines that fail, checkpoints and states that are damaged, text that steers terminals: each ends in a message."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import rlaif, rows_of
from rlaif_cli.config.base import shown_address
from rlaif_cli.config.engine import GenerateConfig
from rlaif_cli.config.judge import LabelConfig
from rlaif_cli.config.train import RewardModelConfig
from rlaif_cli.data.atomic import read_json
from rlaif_cli.engines import EnginePool
from rlaif_cli.engines.base import Request, Sampling
from rlaif_cli.engines.fake import FakeEngine
from rlaif_cli.engines.transformers import TransformersEngine
from rlaif_cli.engines.vllm import VllmEngine
from rlaif_cli.errors import EngineError, InputError, ModelError
from rlaif_cli.models.resolve import resolve_model
from rlaif_cli.models.tokenizer import ChatTokenizer
from rlaif_cli.stages.generate import generate
from rlaif_cli.stages.label import label
from rlaif_cli.train.nn.heads import load_policy
from rlaif_cli.train.runtime.run_folder import run_in_folder
from rlaif_cli.ui.text import visible

# --- checkpoints --------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "copied"))


def change_weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def renamed_pickle(folder: Path) -> None:
    pickled(folder)
    (folder / "pytorch_model.bin").rename(folder / "model.safetensors")


def without_a_layer(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))


def of_another_shape(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.update({"model.norm.weight": torch.zeros(7)}))


def of_no_known_kind(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no-such", "architectures": ["NoSuch"]}))


def with_a_program(folder: Path) -> None:
    of_no_known_kind(folder)
    classes = {
        "AutoConfig": "mine.Config",
        "AutoModelForCausalLM": "mine.Model",
        "AutoTokenizer": [None, "mine.Tokens"],
    }
    for name in ("config.json", "tokenizer_config.json"):
        config = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(config | {"auto_map": classes}))
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (cut, "not a complete safetensors file"),
        (pickled, "pickled"),
        (renamed_pickle, "not a complete safetensors file"),
        (without_a_layer, r"lacks weights: model\.layers\.1\.mlp\.up_proj"),
        (of_another_shape, r"model\.norm\.weight"),
        (of_no_known_kind, "cannot be loaded"),
        (with_a_program, "needs code that comes with the model"),
    ],
)
def test_a_damaged_checkpoint_is_never_half_loaded(copied: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(copied)
    with pytest.raises(ModelError, match=said) as error:
        load_policy(resolve_model(str(copied)))
    assert str(copied) in str(error.value)
    assert not (copied / "ran").exists()


def test_nobody_is_asked_to_run_the_program_of_a_checkpoint(copied: Path, write_jsonl: Any) -> None:
    """transformers asks on the terminal where it is left open, and takes "y" from whatever is on stdin."""
    with_a_program(copied)
    prompts = write_jsonl("p.jsonl", [{"prompt": "Why?"}])
    for options in ((), ("--dry-run",)):
        command = ("generate", prompts, "--model", str(copied), "--engine", "transformers", *options)
        done = rlaif(*command, stdin="y\n" * 9)
        assert "[y/N]" not in done.stderr + done.stdout
        assert options or (done.returncode == 1 and "rlaif never runs" in done.stderr)
        assert not (copied / "ran").exists()


def test_a_tokenizer_of_another_model_is_refused(copied: Path) -> None:
    tokenizer = json.loads((copied / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"word{number}": len(vocabulary) + number for number in range(500)}
    (copied / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match=r"759 tokens \(including added ones\), but the model has embeddings for 259"):
        ChatTokenizer(copied)


@pytest.mark.parametrize("text", ["", "{", '{"model": 3}', "\x00\xff", "[" * 100_000])
def test_a_broken_tokenizer_is_an_error_with_its_place(copied: Path, text: str) -> None:
    (copied / "tokenizer.json").write_text(text)
    with pytest.raises(ModelError, match=r"the tokenizer cannot be loaded"):
        ChatTokenizer(copied)


# --- states -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"settings": []}', "[" * 100_000])
def test_a_broken_state_file_names_itself(text: str, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"state\.json"):
        read_json(path, settings=dict)


@pytest.mark.parametrize("file", ["position.json", "model.safetensors"])
def test_a_damaged_training_state_is_told_before_training(file: str, write_jsonl: Any, tmp_path: Path) -> None:
    turns = {"prompt": "q", "chosen": "yes", "rejected": "no", "p_chosen": 0.8}
    preferences = write_jsonl("prefs.jsonl", [turns | {"prompt": f"q{i}"} for i in range(40)])
    command = ("train-rm", preferences, "--model", "fake", "--save-every", "1", "--batch-size", "4", "-o", "rm")
    stopped = rlaif(*command, cwd=tmp_path)
    assert stopped.returncode == 0, stopped.stderr
    # As if it had been killed at its last step: what a complete run removes stands there again.
    state = tmp_path / "rm" / "state"
    assert not state.exists()
    state.mkdir()
    manifest = json.loads((tmp_path / "rm" / "manifest.json").read_text())
    (tmp_path / "rm" / "manifest.json").unlink()
    whole = {"settings": manifest["settings"], "optimizer": {}, "position": {}}
    (state / "position.json").write_text("{" if file == "position.json" else json.dumps(whole))
    (state / "model.safetensors").write_bytes(b"x" * 50)
    done = rlaif(*command, cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "a bug" not in done.stderr
    assert "rm/state" in done.stderr and "--overwrite" in done.stderr


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_training_without_memory_names_the_settings(error: Exception, tmp_path: Path) -> None:
    def train(_: dict[str, Any]) -> dict[str, Any]:
        raise error

    config = RewardModelConfig(preferences="p", output=str(tmp_path / "rm"), model="fake")
    with pytest.raises(EngineError, match="out of memory") as found:
        run_in_folder(config, "train-rm", resolve_model(config.model), train)
    assert "--tokens-per-batch" in str(found.value.hint) and "--lora-rank" in str(found.value.hint)


# --- engines ------------------------------------------------------------------------------------------------


class LossyEngine:
    """What VllmEngine drives, losing one request; `samples` a request."""

    def __init__(self, lost: str | None, samples: int) -> None:
        self.lost, self.samples, self.waiting = lost, samples, list[str]()

    def add_request(self, name: str, *_: Any) -> None:
        self.waiting += [] if name == self.lost else [name]

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def step(self) -> list[Any]:
        sample = SimpleNamespace(token_ids=[5], logprobs=[{5: SimpleNamespace(logprob=-1.0)}], stop_reason=None)
        sample.finish_reason = "stop"
        outputs = [sample] * self.samples
        return [SimpleNamespace(finished=True, request_id=self.waiting.pop(0), outputs=outputs)]

    def abort_request(self, _: list[str]) -> None:
        pass


def driven(tiny: Path, engine: LossyEngine) -> VllmEngine:
    found = VllmEngine.__new__(VllmEngine)
    found.tokenizer = ChatTokenizer(tiny)
    found._engine, found._ids, found._sampling_params = engine, iter(range(9)), lambda **_: None
    return found


@pytest.mark.parametrize(
    ("engine", "said"), [(LossyEngine("1", 2), "lost 1 requests"), (LossyEngine(None, 1), "1 of 2 samples")]
)
def test_vllm_that_returns_less_than_it_was_asked_for(tiny: Path, engine: LossyEngine, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        list(driven(tiny, engine).generate([Request(i, [4], seed=i) for i in range(3)], Sampling(n=2)))


def test_vllm_that_dies_in_the_middle(tiny: Path) -> None:
    engine = LossyEngine(None, 1)
    engine.step = lambda: 1 / 0  # type: ignore[assignment, method-assign, return-value]
    with pytest.raises(EngineError, match="ZeroDivisionError") as error:
        list(driven(tiny, engine).generate([Request(0, [4], seed=0)], Sampling(n=1)))
    assert "finished work is kept" in str(error.value.hint)


def test_where_memory_is_short_logprobs_come_from_smaller_batches(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TransformersEngine(tiny, dtype="float32")
    requests = [Request(i, list(range(4, 9 + i)), continuation=[7 + i]) for i in range(7)]
    expected = dict(engine.logprobs(requests))
    forward, sizes = engine._forward, list[int]()

    def short(rows: list[list[int]], keep: int) -> Any:
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(rows))
        return forward(rows, keep)

    monkeypatch.setattr(engine, "_forward", short)
    found = dict(engine.logprobs(requests))
    assert sum(sizes) == 7 and max(sizes) == 2
    for key, logprobs in expected.items():
        assert found[key] == pytest.approx(logprobs, abs=1e-5)


def test_one_request_too_large_for_the_memory_is_an_error(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TransformersEngine(tiny, dtype="float32")

    def short(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "_forward", short)
    monkeypatch.setattr(engine._model, "generate", short)
    requests = [Request(0, [4, 5], seed=0, continuation=[6])]
    for ask in (engine.logprobs, lambda all_of_them: engine.generate(all_of_them, Sampling(n=1))):
        with pytest.raises(EngineError, match="out of memory") as error:
            list(ask(requests))
        assert "--batch-size" in str(error.value.hint)


# --- the order of rows --------------------------------------------------------------------------------------


@pytest.fixture
def out_of_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake engine that answers by the dozen in any order, as servers and vLLM do."""

    def mixed(answer: Any) -> Any:
        def answered(self: Any, requests: Any, *options: Any) -> Any:
            found = list(answer(self, requests, *options))
            random.Random(0).shuffle(found)
            yield from found

        return answered

    monkeypatch.setattr(FakeEngine, "generate", mixed(FakeEngine.generate))
    monkeypatch.setattr(FakeEngine, "logprobs", mixed(FakeEngine.logprobs))


@pytest.mark.usefixtures("out_of_order")
@pytest.mark.parametrize("ordered", [True, False])
def test_rows_in_the_order_of_the_input_where_it_is_wanted(ordered: bool, write_jsonl: Any, tmp_path: Path) -> None:
    prompts = write_jsonl("prompts.jsonl", [{"id": f"q{i}", "prompt": f"Why {i}?"} for i in range(20)])
    candidates, preferences = tmp_path / "candidates.jsonl", tmp_path / "prefs.jsonl"
    made = GenerateConfig(prompts=prompts, model="fake", n=2, output=str(candidates), ordered=ordered)
    generate(made, EnginePool())
    config = LabelConfig(
        candidates=str(candidates),
        judge="fake",
        constitution="helpfulness",
        output=str(preferences),
        ordered=ordered,
    )
    label(config, EnginePool())
    asked = [f"q{i}" for i in range(20)]
    for file in (candidates, preferences):
        found = [row["id"] for row in rows_of(file)]
        assert sorted(found) == sorted(asked)
        assert (found == asked) == ordered


# --- the terminal -------------------------------------------------------------------------------------------


def test_data_cannot_steer_the_terminal(write_jsonl: Any, tmp_path: Path) -> None:
    assert visible("\x1b[2J\x07\x9b1m\u202ea\tb\n") == "\\x1b[2J\\x07\\x9b1m\\u202ea\tb\n"
    hostile = "\x1b]0;owned\x07\x1b[2J\u202e"
    rows = [{"id": hostile, "prompt": "q", "responses": ["a", "b"]}] * 2
    file = write_jsonl("rows.jsonl", [*rows, {"prompt": "q", "responses": ["a", "b"], hostile: 1}])
    for command in (
        ("data", "validate", file),
        ("data", "stats", file),
        ("label", file, "--judge", "fake", "--constitution", "helpfulness"),
        ("label", str(tmp_path / hostile), "--judge", "fake", "--constitution", "helpfulness"),
    ):
        done = rlaif(*command)
        assert "\x1b" not in done.stderr + done.stdout and "\u202e" not in done.stderr + done.stdout, command
        assert "\\x1b" in done.stderr + done.stdout, command


WATCHED = """
import json, sys
def watch(event, arguments):
    if event in ("open", "socket.getaddrinfo", "os.listdir", "subprocess.Popen") and "tripwire" in str(arguments):
        print("TOUCHED", event, arguments, file=sys.stderr)
sys.addaudithook(watch)
from rlaif_cli.cli.app import main
for command in json.loads(sys.argv[1]):
    print(command, file=sys.stderr)
    assert main(command) == 0
"""


def test_no_field_of_a_record_is_opened(write_jsonl: Any, tmp_path: Path) -> None:
    tripwire = tmp_path / "tripwire.jsonl"
    tripwire.write_text("{}\n")
    texts = [
        str(tripwire),
        tripwire.as_uri(),
        "hf:tripwire/data",
        "http://tripwire.invalid/",
        f"![x]({tripwire})",
        f"@{tripwire}",
    ]
    rows = [
        {"id": text, "prompt": text, "responses": [text, {"text": f"{text} "}], "model": text, "meta": {"source": text}}
        for text in texts
    ]
    candidates, preferences = write_jsonl("rows.jsonl", rows), str(tmp_path / "prefs.jsonl")
    judged = ("--judge", "fake", "--constitution", "helpfulness")
    commands = (
        ("label", candidates, *judged, "-o", preferences),
        ("revise", preferences, "--model", "fake", "--constitution", "helpfulness", "-o", str(tmp_path / "r.jsonl")),
        ("audit", preferences),
        ("data", "stats", preferences),
        ("train-rm", preferences, "--model", "fake", "-o", str(tmp_path / "rm")),
        ("lineage", preferences),
    )
    watched = [sys.executable, "-c", WATCHED, json.dumps(commands)]  # a hook cannot be removed from a process
    done = subprocess.run(watched, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "TOUCHED" not in done.stderr, done.stderr


def test_a_name_or_password_in_an_address_is_not_shown() -> None:
    assert shown_address("http://user:pw@host:9/v1?api_key=x") == "http://host:9/v1"


def test_ctrl_c_inside_of_a_library_is_an_interruption(write_jsonl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(*_: Any) -> Any:
        raise ValueError("Error calling function 'x': KeyboardInterrupt: ")
        yield

    monkeypatch.setattr(FakeEngine, "generate", generate)
    done = rlaif("generate", write_jsonl("p.jsonl", [{"prompt": "Why?"}]), "--model", "fake")
    assert done.returncode == 130 and "rerun the same command" in done.stderr and "bug" not in done.stderr


def test_an_input_that_is_not_whole_or_was_changed_is_used_with_a_warning(write_jsonl: Any, tmp_path: Path) -> None:
    prompts = write_jsonl("prompts.jsonl", [{"prompt": f"Why {i}?"} for i in range(5)])
    output = tmp_path / "candidates.jsonl"
    assert rlaif("generate", prompts, "--model", "fake", "-o", str(output)).returncode == 0
    stats = ("data", "stats", str(output))
    assert "warning" not in rlaif(*stats).stderr
    whole = output.read_text()
    output.write_text(whole.splitlines()[0] + "\n")
    assert "not what its manifest says" in rlaif(*stats).stderr
    Path(f"{output}.manifest.json").rename(f"{output}.run.json")
    done = rlaif(*stats)
    assert done.returncode == 0 and "is not finished" in done.stderr
