"""Models that reason before they answer: what is kept, what is judged, and where an answer stands."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import rows_of
from rlaif_cli.config.engine import GenerateConfig
from rlaif_cli.config.evaluate import HarmlessRateConfig, RewardConfig, WinRateConfig
from rlaif_cli.config.judge import LabelConfig
from rlaif_cli.config.ppo import PPOConfig
from rlaif_cli.config.train import SftConfig
from rlaif_cli.data.messages import Message
from rlaif_cli.data.records import NO_ANSWER, Candidates, Demonstration, Preference
from rlaif_cli.engines import EnginePool
from rlaif_cli.engines.base import Completion
from rlaif_cli.errors import UsageError
from rlaif_cli.evaluation.harmless_rate import harmless_rate
from rlaif_cli.evaluation.reward import reward
from rlaif_cli.evaluation.win_rate import win_rate
from rlaif_cli.judge import Comparison, PairwiseJudge
from rlaif_cli.judge.constitution_files import load_constitution
from rlaif_cli.models.chat_template import ChatFormat
from rlaif_cli.models.reasoning import ReasoningMarks, split_reply
from rlaif_cli.models.tokenizer import ChatTokenizer
from rlaif_cli.stages.generate import generate
from rlaif_cli.stages.label import label
from rlaif_cli.train.ppo import reasoning_lengths, shaped_scores
from rlaif_cli.train.reward_source import scores_and_parts
from rlaif_cli.train.sft import _tokenize, train_sft
from templates import checkpoint

ASKED = Message(role="user", content="Name a red fruit.")
THINK = ReasoningMarks("<think>", "</think>")
REASONING = ("thinks_on_demand", "opens_thoughts", "opens_thoughts_at_the_end", "harmony", "special_marks")
REASONING += ("marks_in_words", "closed_thoughts")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reasoning")
    return {name: checkpoint(folder / name, name) for name in REASONING}


# ------------------------------------------------------------------------------------------------ replies


@pytest.mark.parametrize(
    ("text", "marks", "opened", "answer", "reasoning"),
    [
        ("Blue.", None, False, "Blue.", None),
        ("<think>\nHm.\n</think>\n\nBlue.", None, False, "Blue.", "Hm."),
        ("  <think>Hm.</think>Blue.", THINK, False, "Blue.", "Hm."),
        ("Hm.\n</think>\nBlue.", THINK, True, "Blue.", "Hm."),
        ("Hm.</think>Blue.", None, False, "Blue.", "Hm."),  # behind a server, whose prompt we do not see
        ("Hm, so", THINK, True, None, "Hm, so"),
        ("<think>Hm, so", None, False, None, "Hm, so"),
        ("<think></think>Blue.", THINK, False, "Blue.", ""),
        ("<think>Hm.</think>", THINK, False, "", "Hm."),
        ("Blue. See <think>.", THINK, False, "Blue. See <think>.", None),
        ("Hm.[BEGIN FINAL RESPONSE]Blue.", ReasoningMarks("Here:", "[BEGIN FINAL RESPONSE]"), True, "Blue.", "Hm."),
    ],
)
def test_a_reply_is_split(
    text: str, marks: ReasoningMarks | None, opened: bool, answer: str | None, reasoning: str | None
) -> None:
    found = split_reply(text, marks, opened=opened)
    assert (found.answer, found.reasoning) == (answer, reasoning)


@pytest.mark.parametrize("name", REASONING)
def test_a_reply_with_its_reasoning_survives_the_tokenizer(models: dict[str, Path], name: str) -> None:
    tokenizer = ChatTokenizer(models[name])
    ids = tokenizer.response("A cherry.", "Red; a fruit.")
    found = tokenizer.reply(ids)
    assert (found.answer, found.reasoning) == ("A cherry.", "Red; a fruit.")
    assert tokenizer.decode(ids[found.reasoning_tokens :]).strip() == "A cherry."
    cut = tokenizer.reply(ids[: found.reasoning_tokens - 1])
    assert cut.answer is None and cut.reasoning is not None and cut.reasoning.startswith("Red; a fruit.")


@pytest.mark.parametrize("name", REASONING)
def test_a_label_is_read_after_closed_reasoning(models: dict[str, Path], name: str) -> None:
    tokenizer = ChatTokenizer(models[name])
    for reasoning in (None, "Response 1 is 2 times better."):
        prompt, _ = tokenizer.answers([ASKED], "Number: ", ("1", "2"), reasoning)
        text, marks = tokenizer.hf.decode(prompt), tokenizer.template.marks
        assert marks is not None and text.endswith("Number: ")
        assert text.rfind(marks.close) >= text.rfind(marks.open)
        assert reasoning is None or text.index(reasoning) < text.rindex(marks.close)


def test_marks_in_a_text_are_text(models: dict[str, Path]) -> None:
    tokenizer = ChatTokenizer(models["thinks_on_demand"])
    control = tokenizer.hf.convert_tokens_to_ids("</think>")
    assert tokenizer.response("</think>Better.", "Hm</think>").count(control) == 1


# ------------------------------------------------------------------------------------------------ template arguments


def test_a_template_argument_reaches_the_template(models: dict[str, Path]) -> None:
    on, off = (
        ChatTokenizer(models["thinks_on_demand"], ChatFormat((f"enable_thinking={value}",)))
        for value in ("true", "false")
    )
    assert "<think>" not in on.hf.decode(on.chat([ASKED]))
    assert off.hf.decode(off.chat([ASKED])).endswith("<think>\n\n</think>\n\n")
    # Either way, an answer without reasoning stands at the same place.
    assert on.chat([ASKED]) + on.response("A") == off.chat([ASKED]) + off.response("A")


def test_an_unknown_template_argument_is_an_error_with_a_suggestion(models: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"no variable 'enable_thinkin'; did you mean 'enable_thinking'\?"):
        ChatTokenizer(models["thinks_on_demand"], ChatFormat(("enable_thinkin=true",)))


def test_a_trained_model_keeps_its_template_arguments(models: dict[str, Path], tmp_path: Path) -> None:
    trained = ChatTokenizer(models["thinks_on_demand"], ChatFormat(("enable_thinking=false",)))
    trained.template.keep_arguments()
    trained.hf.save_pretrained(tmp_path)
    assert ChatTokenizer(tmp_path).chat([ASKED]) == trained.chat([ASKED])
    changed = ChatTokenizer(tmp_path, ChatFormat(("enable_thinking=true",)))
    assert "<think>" not in changed.hf.decode(changed.chat([ASKED]))


def test_own_marks_are_used(tiny: Path) -> None:
    tokenizer = ChatTokenizer(tiny, ChatFormat(marks=("((", "))")))
    found = tokenizer.reply(tokenizer.text("(( Hm. )) Blue."))
    assert (found.answer, found.reasoning) == ("Blue.", "Hm.")


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"chat_template_arg": ("x",)}, "not NAME=VALUE"),
        ({"chat_template_arg": ("a=1", "a=2")}, "given twice"),
        ({"chat_template_arg": ("tools=1",)}, "rlaif passes it itself"),
        ({"reasoning_marks": ("<a>", "<a>")}, "two different texts"),
    ],
)
def test_faulty_settings_are_refused(given: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        GenerateConfig(prompts="p.jsonl", model="m", **given)


def test_a_pipeline_may_give_template_arguments_as_a_mapping() -> None:
    given: Any = {"enable_thinking": False, "effort": "low"}
    config = GenerateConfig(prompts="p", model="m", chat_template_arg=given)
    assert config.chat_template_arg == ("enable_thinking=false", 'effort="low"')


# ------------------------------------------------------------------------------------------------ stages

THOUGHT_OUT = {"text": "Blue.", "reasoning": "Hm."}
CUT = {"text": "", "reasoning": "Hm, so", "finish_reason": "length"}
JUDGE: dict[str, Any] = {"judge": ("fake",), "constitution": "helpfulness"}


def candidates(*responses: dict[str, Any], key: str = "a") -> dict[str, Any]:
    return {"id": key, "prompt": "Q?", "responses": list(responses)}


def test_generate_keeps_reasoning_and_marks_replies_without_an_answer(
    models: dict[str, Path], write_jsonl: Callable[..., str], tmp_path: Path, one_thread: None
) -> None:
    prompts = write_jsonl("prompts.jsonl", [{"id": str(i), "prompt": f"Question {i}?"} for i in range(4)])
    config = GenerateConfig(
        prompts=prompts,
        model=str(models["opens_thoughts"]),
        n=8,
        max_tokens=200,
        engine="transformers",
        output=str(tmp_path / "o.jsonl"),
    )
    with EnginePool() as engines:
        summary = generate(config, engines)
    responses = [response for row in rows_of(config.output) for response in row["responses"]]
    without = [response for response in responses if not response["text"]]
    assert 0 < len(without) < len(responses), "the random model closes its reasoning now and then"
    assert summary.unanswered == len(without)
    assert len(responses) + summary.without_text == 32  # some answers open reasoning again: they cannot be used
    assert all("reasoning" in response and "</think>" not in response["text"] for response in responses)


def test_a_response_without_an_answer_is_never_judged(write_jsonl: Callable[..., str], tmp_path: Path) -> None:
    empty, other = {"text": ""}, {"text": "x"}  # an empty answer is an answer
    rows = [candidates(THOUGHT_OUT, {"text": "Red."}, CUT), candidates(empty, other, CUT, key="b")]
    path = write_jsonl("c.jsonl", rows)
    config = LabelConfig(candidates=path, output=str(tmp_path / "p.jsonl"), **JUDGE)
    with EnginePool() as engines:
        summary = label(config, engines)
        harmless = harmless_rate(
            HarmlessRateConfig(candidates=path, judge=("fake",), output=str(tmp_path / "h.json")), engines
        )
        won = win_rate(WinRateConfig(a=path, b=path, output=str(tmp_path / "w.json"), **JUDGE), engines)
    assert (summary.pairs, summary.unscored) == (4, 2)
    assert {row["reason"] for row in rows_of(tmp_path / "p.unscored.jsonl")} == {f"response 3: {NO_ANSWER}"}
    assert (harmless["n"], harmless["unscored"]) == (4, 2)
    assert (won["n"], won["unscored"]) == (4, 2)
    [pair] = [row for row in rows_of(config.output) if row["id"] == "a/0-1"]
    sides = pair["chosen"] + pair["rejected"]
    assert {each["content"]: each.get("reasoning_content") for each in sides} == {"Blue.": "Hm.", "Red.": None}


def test_a_judge_may_see_the_reasoning(write_jsonl: Callable[..., str], tmp_path: Path) -> None:
    path, seen = write_jsonl("c.jsonl", [candidates(THOUGHT_OUT, {"text": "Red."})]), {}
    for part in ("answer", "all"):
        config = LabelConfig(candidates=path, judge_sees=part, output=str(tmp_path / f"{part}.jsonl"), **JUDGE)  # type: ignore[arg-type]
        with EnginePool() as engines:
            label(config, engines)
        [row] = rows_of(config.output)
        seen[part] = row["p_chosen"]
    assert seen["answer"] != seen["all"], "the fake judge answers by a hash of what it is shown"


def test_a_reward_is_of_the_answer(write_jsonl: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "length.py").write_text(
        "def length(prompts, responses):\n    assert 'Hm' not in str(responses)\n"
        "    return [float(len(text)) for text in responses]\n"
    )
    path = write_jsonl("c.jsonl", [candidates(THOUGHT_OUT, CUT), candidates(CUT, CUT, key="b")])
    function, output = f"{tmp_path}/length.py:length", str(tmp_path / "r.json")
    with EnginePool() as engines:
        found = reward(RewardConfig(candidates=path, reward_function=(function,), output=output), engines)
    assert found["reward"]["value"] == len("Blue.") and found["unscored"] == 3
    reasons = {row["id"]: row["reason"] for row in rows_of(tmp_path / "r.items.jsonl")}
    assert reasons == {"a": NO_ANSWER, "b": NO_ANSWER}


def test_records_carry_reasoning_and_leave_it_out_where_there_is_none() -> None:
    dumped = Candidates.model_validate(candidates(THOUGHT_OUT, {"text": "Red."})).model_dump()["responses"]
    assert dumped[0]["reasoning"] == "Hm." and "reasoning" not in dumped[1]
    for name in ("reasoning", "reasoning_content", "thinking"):
        row = {"prompt": "Q?", "chosen": [{"role": "assistant", "content": "Blue.", name: "Hm."}]}
        pair = Preference.model_validate(row | {"rejected": "Red.", "p_chosen": 0.9})
        assert pair.model_dump()["chosen"] == [{"role": "assistant", "content": "Blue.", "reasoning_content": "Hm."}]
        shown = Demonstration.model_validate(row)
        assert (shown.response, shown.reasoning) == ("Blue.", "Hm.")
    assert Message(role="user", content="x").model_dump() == {"role": "user", "content": "x"}


def test_sft_trains_on_the_reasoning_and_then_the_answer(models: dict[str, Path]) -> None:
    tokenizer = ChatTokenizer(models["opens_thoughts"])
    for reasoning, want in (("Hm.", "Hm.\n</think>\n\nBlue."), (None, "\n</think>\n\nBlue.")):
        row = {"prompt": "Q?", "response": "Blue."} | ({} if reasoning is None else {"reasoning": reasoning})
        group = _tokenize(Demonstration.model_validate(row), tokenizer)
        assert tokenizer.hf.decode(group.responses[0]) == want + "<|im_end|>"
        assert tokenizer.hf.decode(group.prompt).endswith("<think>\n")


def test_sft_keeps_the_template_argument_in_the_trained_model(
    models: dict[str, Path], write_jsonl: Callable[..., str], tmp_path: Path, one_thread: None
) -> None:
    rows = [{"prompt": "Hi?", "response": "Hello.", "reasoning": "Polite."}, {"prompt": "Yo?", "response": "Hello."}]
    config = SftConfig(
        records=write_jsonl("s.jsonl", rows),
        model=str(models["thinks_on_demand"]),
        chat_template_arg=("enable_thinking=true",),
        output=str(tmp_path / "sft"),
        eval_fraction=0,
        precision="fp32",
    )
    train_sft(config)
    assert "set enable_thinking = true" in (tmp_path / "sft" / "chat_template.jinja").read_text()


def test_ppo_gives_a_response_without_an_answer_no_score_or_the_penalty() -> None:
    said = [
        Completion("Blue.", [1, 2, 3, 4], reasoning="Hm.", reasoning_tokens=2),
        Completion("", [1, 2, 3], finish_reason="length", reasoning="Hm, so", reasoning_tokens=3),
    ]

    class Lengths:
        def score(self, rows: Any, responses: Any) -> torch.Tensor:
            assert "" not in responses[0]
            return torch.tensor([[float(len(text)) for text in of_row] for of_row in responses])

    row: Any = None
    [scores], _ = scores_and_parts(Lengths(), [row], [[each.answer for each in said]])
    assert scores[0] == 5 and math.isnan(scores[1])
    options: dict[str, Any] = {"prompts": "p", "model": "m", "reward_model": ("r",), "output": "o"}
    assert math.isnan(shaped_scores(PPOConfig(**options), scores, said)[1])
    assert shaped_scores(PPOConfig(**options, missing_eos_penalty=-1.0), scores, said).tolist() == [5, -1]
    assert reasoning_lengths(said) == {"reasoning_length": 2.5, "answer_length": 2, "answered": 0.5}
    assert reasoning_lengths([Completion("x", [1])]) == {}


# ------------------------------------------------------------------------------------------------ judges that reason


class Thinker:
    """A judge whose reasoning names the response with gold, and whose labels follow its reasoning alone.

    Args:
        budget: the reasoning is cut after this many words, as by an engine at the maximum length.
    """

    max_length = 0
    name = "thinker"

    def __init__(self, path: Path, budget: int) -> None:
        self.tokenizer, self.budget = ChatTokenizer(path), budget
        self.asked: list[str] = []

    def generate(self, requests: Any, sampling: Any) -> Any:
        for request in requests:
            text = self.tokenizer.hf.decode(request.prompt)
            self.asked.append(text)
            first = text.rsplit("[Response 1]\n", 1)[1].split("\n[End")[0]
            better, worse = (1, 2) if "gold" in first else (2, 1)
            words = f"gold is number {better} and not {worse}".split()
            cut = self.budget < len(words)
            yield request.key, [Completion("" if cut else str(worse), reasoning=" ".join(words[: self.budget]))]

    def logprobs(self, requests: Any) -> Any:
        for request in requests:
            text = self.tokenizer.hf.decode(request.prompt)
            thoughts = text.rpartition("<think>")[2].partition("</think>")[0]
            assert text.endswith("</think>\n\nNumber: ")
            sure = (0.9, 0.1) if "number 1" in thoughts else (0.1, 0.9) if "number 2" in thoughts else (0.5, 0.5)
            yield request.key, [math.log(sure[place % 2]) for place in range(len(request.choices))]

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("budget", "p"), [(99, 0.9), (4, 0.9), (2, 0.5)])
def test_a_reasoning_judge_is_read_after_its_own_reasoning(models: dict[str, Path], budget: int, p: float) -> None:
    engine: Any = Thinker(models["opens_thoughts"], budget)
    constitution = load_constitution("helpfulness")
    judge = PairwiseJudge(engine, constitution, min_mass=0.1, cot=True, reasoning_tokens=64)
    for a, b, want in (("gold", "lead", p), ("lead", "gold", 1 - p)):
        [(_, judgement)] = judge.compare([Comparison("k", "q", a, b, constitution.principles[:1])])
        assert judgement.p_a == pytest.approx(want)
        assert judgement.rationales[0].startswith("gold is")
    assert all("Explain" not in text and "reply with the number alone" in text for text in engine.asked)
