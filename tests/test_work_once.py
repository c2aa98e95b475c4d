"""Work that is done once: prompts are tokenized, inputs are read, and names are resolved as often as it takes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers import rows_of
from rlaif_cli.config.engine import GenerateConfig
from rlaif_cli.config.judge import LabelConfig
from rlaif_cli.config.train import RewardModelConfig, SftConfig
from rlaif_cli.data import compression, filetypes
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import PromptRecord
from rlaif_cli.engines import EnginePool
from rlaif_cli.judge import session
from rlaif_cli.models.resolve import resolve_model
from rlaif_cli.models.tokenizer import ChatTokenizer
from rlaif_cli.stages import prompt_tokens
from rlaif_cli.stages.generate import generate
from rlaif_cli.stages.label import label
from rlaif_cli.train.reward_model import train_reward_model
from rlaif_cli.train.sft import train_sft

pytestmark = pytest.mark.usefixtures("one_thread")
Write = Callable[..., str]
COUNT = 6


class Work:
    """What was done: `resolved` names, `tokenized` prompts, `judges` built, files `read` for their lines.

    `looked`: files opened for their first bytes, to detect their type.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.resolved, self.tokenized, self.read, self.looked = (Counter[str]() for _ in range(4))
        self.judges = 0
        chat, make_judge, blocks = ChatTokenizer.chat, session.make_judge, compression.blocks  # type: ignore[attr-defined]

        def counted_resolve(name: str, **options: Any) -> Path:
            self.resolved[name] += 1
            return resolve_model(name, **options)

        def counted_chat(tokenizer: ChatTokenizer, messages: Any, **options: Any) -> list[int]:
            self.tokenized[" | ".join(message.content for message in messages)] += 1
            return chat(tokenizer, messages, **options)

        def counted_judge(*arguments: Any) -> Any:
            self.judges += 1
            return make_judge(*arguments)

        def counting(counter: Counter[str]) -> Callable[..., Iterator[bytes]]:
            def counted(path: Path, name: str | None = None) -> Iterator[bytes]:
                counter[path.name] += 1
                return blocks(path, name)

            return counted

        for module in [each for name, each in sys.modules.items() if name.startswith("rlaif_cli.")]:
            if getattr(module, "resolve_model", None) is resolve_model:
                patch.setattr(module, "resolve_model", counted_resolve)
        patch.setattr(ChatTokenizer, "chat", counted_chat)
        patch.setattr(session, "make_judge", counted_judge)
        patch.setattr(compression, "blocks", counting(self.read))
        patch.setattr(filetypes, "blocks", counting(self.looked))


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(monkeypatch)


def generated(prompts: str, tiny: Path, output: Path, **settings: Any) -> Any:
    config = GenerateConfig(
        prompts=prompts, model=str(tiny), engine="transformers", output=str(output), n=1, max_tokens=4, **settings
    )
    with EnginePool() as engines:
        return generate(config, engines)


def test_generate(work: Work, tiny: Path, write_jsonl: Write, tmp_path: Path) -> None:
    prompts = write_jsonl("prompts.jsonl", [{"prompt": f"question {i}"} for i in range(COUNT)])
    summary = generated(prompts, tiny, tmp_path / "out.jsonl")
    assert summary.rows == COUNT
    assert {f"question {i}": 1 for i in range(COUNT)}.items() <= work.tokenized.items()
    assert work.resolved == {str(tiny): 1}, "for its tokenizer, its engine and its hash in the manifest"
    assert work.read["prompts.jsonl"] == 2, "to check all rows and hash them, before a model loads; and to sample"
    assert work.looked["prompts.jsonl"] == 1, "its first bytes: is it JSONL at all?"
    assert work.read["out.jsonl"] == 1, "its hash in the manifest"


def test_label(work: Work, tiny: Path, write_jsonl: Write, tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}", "responses": ["yes", f"no {i}"]} for i in range(COUNT)]
    config = LabelConfig(
        candidates=write_jsonl("candidates.jsonl", rows),
        judge=(str(tiny),),
        constitution="helpfulness",
        engine="transformers",
        min_mass=0,
        output=str(tmp_path / "preferences.jsonl"),
    )
    with EnginePool() as engines:
        assert label(config, engines).pairs == COUNT
    assert work.resolved == {str(tiny): 1}
    assert work.judges == 1, "the judge that measures the questions also asks them"
    assert work.read["candidates.jsonl"] == 2, "to check that all pairs fit the judge, and to judge them"


def test_train_rm(work: Work, write_jsonl: Write, tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}", "chosen": "yes", "rejected": f"no {i}", "p_chosen": 0.9} for i in range(COUNT)]
    paths = write_jsonl("preferences.jsonl", rows), write_jsonl("human.jsonl", rows[:2])
    config = RewardModelConfig(
        preferences=paths[0], human=paths[1], model="fake", output=str(tmp_path / "rm"), batch_size=4
    )
    train_reward_model(config)
    once = {f"question {i}": 1 for i in range(2, COUNT)}
    assert once.items() <= work.tokenized.items()
    assert work.tokenized["question 0"] == 2, "it is in both files"
    assert work.resolved == {"fake": 1}
    assert work.read["preferences.jsonl"] == work.read["human.jsonl"] == 1, "the tokens of the check are trained on"


def test_sft(work: Work, write_jsonl: Write, tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}", "response": "yes"} for i in range(COUNT)]
    train_sft(SftConfig(records=write_jsonl("rows.jsonl", rows), model="fake", output=str(tmp_path / "sft")))
    assert {f"question {i}": 1 for i in range(COUNT)}.items() <= work.tokenized.items()
    assert (work.resolved, work.read["rows.jsonl"]) == ({"fake": 1}, 1)


def test_where_ids_repeat_the_input_is_checked_again(
    work: Work, tiny: Path, write_jsonl: Write, tmp_path: Path
) -> None:
    """Only then: which of its lines repeat an id is known at the end. Everything else is as without these lines."""
    ids = ("a", "b", "a", "c", "c", "d")
    rows = [{"id": name, "prompt": f"question {i}"} for i, name in enumerate(ids)]
    repeats = write_jsonl("repeats.jsonl", [*rows[:1], "{", *rows[1:]])
    kept = write_jsonl("kept.jsonl", [rows[i] for i in (0, 1, 3, 5)])
    first = generated(repeats, tiny, tmp_path / "first.jsonl", skip_invalid=True)
    second = generated(kept, tiny, tmp_path / "second.jsonl")
    assert (work.read["repeats.jsonl"], work.read["kept.jsonl"]) == (4, 2), "once more to check, once for the rejected"
    assert rows_of(tmp_path / "first.jsonl") == rows_of(tmp_path / "second.jsonl")
    assert (first.rejected, first.tokens_in) == (3, second.tokens_in)
    reasons = [row["reason"] for row in rows_of(tmp_path / "first.rejected.jsonl")]
    assert reasons[1:] == ["the id 'a' is already used in line 1", "the id 'c' is already used in line 5"]


def test_tokens_of_many_prompts_go_to_a_temporary_file(
    tiny: Path, write_jsonl: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = write_jsonl("prompts.jsonl", [{"prompt": f"question {i}"} for i in range(COUNT)])
    generated(prompts, tiny, tmp_path / "memory.jsonl")
    monkeypatch.setattr(prompt_tokens, "_IN_MEMORY", 16)
    generated(prompts, tiny, tmp_path / "disk.jsonl")
    assert rows_of(tmp_path / "memory.jsonl") == rows_of(tmp_path / "disk.jsonl")


def test_prompt_tokens_are_read_in_their_order() -> None:
    tokens = prompt_tokens.PromptTokens()
    tokens.add([9, 9])
    tokens.clear()
    added = [[1, 2, 70_000], [], [3]]
    for ids in added:
        tokens.add(ids)
    assert list(tokens) == list(tokens) == added
    tokens.close()


def test_the_hash_of_the_check_is_that_of_the_content(write_jsonl: Write, tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for number in (1, 2):
        write_jsonl(f"parts/{number}.jsonl", [{"prompt": f"question {number}"}])
    files = sorted((tmp_path / "parts").iterdir())
    files[0].write_bytes(files[0].read_bytes().rstrip(b"\n"))  # the last line of a file may lack its newline

    def apart(function: Callable[[Any], Any], parts: Iterable[Any], *more: Iterable[Any]) -> Iterator[Any]:
        return map(function, parts, *more)  # as a pool of processes, whose check takes no hash

    one, several = (Source(str(tmp_path / "parts"), PromptRecord, each=each) for each in (map, apart))
    assert one.sha256 == several.sha256 == compression.content_sha256(*files)
