"""The wire formats of decision endpoints: how a question is sent, and where the probabilities are in the answer.

- `decisions`, POST /decisions: OpenAI's Decisions API (https://developers.openai.com/api/reference/resources/decisions,
  https://docs.litellm.ai/docs/decisions), also served by vLLM
  (https://docs.vllm.ai/en/latest/serving/online_serving/decisions/). A list of questions with `choices` or `levels`; a
  list of answers, each with a list of probabilities, or of type `refusal`.
- `sglang`, POST /decisions: SGLang's own fields at the same path
  (https://docs.sglang.io/docs/supported-models/decision_models). Answers by question id, each with its `label_mass`.
- `systemone`, POST /systemone: TypeSafe's System One (https://docs.typesafe.ai/api), also served by vLLM
  (https://docs.vllm.ai/en/latest/serving/online_serving/structured_decisions/), which reports the label mass in
  `diagnostics`, and SGLang, which reports it as `x_label_mass`.

A score has at most ten levels in all of them; its probabilities go by the level's place, from 0. What comes back is
untrusted: an answer that cannot be read completely is `Unusable`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlaif_cli.engines.server_answers import Unusable, field

_ID = "judge"  # the name of the one question in a request
_TOLERANCE = 0.02  # how far from 1 the probabilities may add up to: servers round them

Json = dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """One question with a closed set of options.

    Attributes:
        material: what it is about.
        question: what is asked.
        options: the texts of the options; distinct.
        scale: they are levels, the lowest first.
    """

    material: str
    question: str
    options: tuple[str, ...]
    scale: bool = False

    @property
    def kind(self) -> str:
        return "score" if self.scale else "choice"


@dataclass(frozen=True)
class Format:
    """A wire format.

    Attributes:
        path: of the endpoint, below the base URL.
        body: the request's JSON, without the model.
        answer: the answer to the question. Raises: Unusable: there is none.
        label_mass: the places that may hold the label mass, in the response or in the answer.
    """

    name: str
    path: str
    body: Callable[[Decision], Json]
    answer: Callable[[Json], Json]
    label_mass: Callable[[Json, Json], Any] = lambda response, answer: None

    def read(self, response: Json, decision: Decision) -> tuple[list[float], float | None]:
        """The probability of each option, adding up to 1, and the label mass if it is reported.

        Raises:
            Unusable: the question is refused, or the probabilities are incomplete or invalid.
        """
        answer = self.answer(response)
        if answer.get("type") != decision.kind:
            if answer.get("type") == "refusal":
                raise Unusable("the judge refused to answer", retryable=False)
            raise Unusable(f"the answer is of type {answer.get('type')!r}, not '{decision.kind}'", retryable=False)
        mass = self.label_mass(response, answer)
        if mass is not None and not _is_probability(mass):
            raise Unusable(f"the label mass is {mass!r}, not a probability", retryable=False)
        return _shares(_listed(answer.get("probabilities")), decision), mass


def _listed(probabilities: Any) -> Json:
    """Probabilities by option name, or by level ("0", "1", …); `null` entries and repeated options are errors."""
    if isinstance(probabilities, dict):
        return probabilities
    if not isinstance(probabilities, list):
        raise Unusable("the answer has no probabilities", retryable=False)
    names = [str(field(entry, "value")) for entry in probabilities]
    if len(set(names)) < len(names):
        raise Unusable("the answer lists an option twice", retryable=False)
    return {name: field(entry, "probability") for name, entry in zip(names, probabilities, strict=True)}


def _shares(listed: Json, decision: Decision) -> list[float]:
    found = []
    for place, option in enumerate(decision.options):
        p = listed.get(str(place) if decision.scale else option)
        if p is None:
            raise Unusable(f"the answer has no probability for the option '{option}'", retryable=False)
        if not _is_probability(p):
            raise Unusable(f"the probability of the option '{option}' is {p!r}", retryable=False)
        found.append(float(p))
    total = sum(found)
    if abs(total - 1) > _TOLERANCE:
        raise Unusable(f"the probabilities of the options add up to {total:.3g}, not to 1", retryable=False)
    return [p / total for p in found]


def _is_probability(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and 0 <= value <= 1 + _TOLERANCE


def _first_answer(response: Json) -> Json:
    """Of a list of answers in the order of the questions."""
    found = response.get("answers")
    return _present(found[0] if isinstance(found, list) and found else None)


def _named_answer(response: Json) -> Json:
    return _present(field(response, "answers", _ID))


def _present(answer: Any) -> Json:
    if not isinstance(answer, dict):
        raise Unusable("the answer has no 'answers' to the question", retryable=True)
    return answer


def _openai_body(decision: Decision) -> Json:
    options = (
        {"levels": [{"label": option} for option in decision.options]}
        if decision.scale
        else {"choices": [{"value": option} for option in decision.options]}
    )
    question = {"type": decision.kind, "name": _ID, "instructions": decision.question, **options}
    return {"input": decision.material, "questions": [question]}


def _sglang_body(decision: Decision) -> Json:
    options: Json = (
        {"levels": list(decision.options)}
        if decision.scale
        else {"options": [{"name": option} for option in decision.options]}
    )
    question = {"id": _ID, "type": decision.kind, "question": decision.question, **options}
    return {"input": decision.material, "questions": [question]}


def _systemone_body(decision: Decision) -> Json:
    criteria = list(decision.options) if decision.scale else dict.fromkeys(decision.options)
    question = {"type": decision.kind, "instructions": decision.question, "criteria": criteria}
    return {"state": decision.material, "questions": {_ID: question}}


def _systemone_mass(response: Json, answer: Json) -> Any:
    return answer.get("x_label_mass", field(response, "diagnostics", _ID, "label_mass"))


# In the order in which they are tried.
FORMATS = {
    form.name: form
    for form in (
        Format("decisions", "/decisions", _openai_body, _first_answer),
        Format("sglang", "/decisions", _sglang_body, _named_answer, lambda _, answer: answer.get("label_mass")),
        Format("systemone", "/systemone", _systemone_body, _named_answer, _systemone_mass),
    )
}
