"""Constitutions: the written principles that a judge applies. Check, select, and draw with a seed.

A constitution is one YAML file:

    name: helpfulness
    description: one line for `rlaif constitution list`
    preamble: what a sample is and what a good response is; it opens the judge's prompt
    principles:
      - id: directness
        text: which response is preferable? one or two whole sentences
        choose: better          # or worse; see below
        weight: 1.0             # how often it is drawn, relative to the others
        for: a system prompt that embodies what `text` asks for        (only for the contrast method)
        against: a system prompt that embodies its opposite            (only for the contrast method)
    exemplars:
      - {prompt, response_1, response_2, rationale, answer: 1 or 2, principle: an id}

What `choose` means. A principle with `choose: worse` asks for the *worse* response ("Which response is more
harmful?"), as the RLAIF paper does for harmlessness (Lee et al., arXiv 2309.00267). Everything that belongs
to such a principle is written in the direction of its text: `for` embodies the harmful assistant, and an
exemplar's `answer` is the harmful response. So every method measures how well a response matches the text, and
only the judge turns that into a preference, by inverting it if `choose` is `worse`. Nothing here inverts
anything.

A deviation from the papers: Bai et al. (arXiv 2212.08073) draw a principle for each comparison from a
running random generator; here the draw depends only on the row's key and the seed, not on the order of the file,
the batch or other rows, so a resumed run draws what the interrupted one would have drawn.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StringConstraints, field_validator, model_validator

from rlaif_cli.data.strict_yaml import Loc, dotted, shown
from rlaif_cli.errors import InputError, UsageError

MAX_WEIGHT = 1e6

Text = Annotated[str, StringConstraints(min_length=1)]
Id = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"\A[a-z0-9-]+\z")]
Line = Annotated[str, StringConstraints(min_length=1, pattern=r"\A[^\r\n]*\z")]


class Model(BaseModel):
    """Unknown keys are errors, nothing is converted ("1" is not 1), nothing changes after loading.

    White space around a text is dropped: YAML's block style ends every text with a line break.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, str_strip_whitespace=True)


class Principle(Model):
    """One principle; see the top of the file for `choose`."""

    id: Id
    text: Text
    choose: Literal["better", "worse"] = "better"
    weight: float = Field(default=1.0, gt=0, le=MAX_WEIGHT, allow_inf_nan=False)
    for_: Text | None = Field(default=None, alias="for")  # `for` is a keyword of Python
    against: Text | None = None

    @model_validator(mode="after")
    def _both_or_neither(self) -> Principle:
        if (self.for_ is None) != (self.against is None):
            given, lacking = ("for", "against") if self.against is None else ("against", "for")
            raise ValueError(f"has '{given}' but no '{lacking}'; the contrast method needs both")
        return self

    def contrast_prompts(self) -> tuple[str, str]:
        """The system prompts (for, against) of the contrast method.

        Raises:
            InputError: the principle has none.
        """
        if self.for_ is None or self.against is None:
            raise InputError(
                f"principle '{self.id}' has no 'for' and 'against', which the contrast method compares",
                hint="give it both system prompts, or use another method",
            )
        return self.for_, self.against


class Exemplar(Model):
    """A worked example to show the judge.

    `answer` answers the question of the exemplar's own `principle` (without one: which response is better),
    so for a `choose: worse` principle it names the worse response.
    """

    prompt: Text
    response_1: Text
    response_2: Text
    rationale: Text
    answer: Literal[1, 2]
    principle: Id | None = None

    @field_validator("answer", mode="before")
    @classmethod
    def _not_a_bool(cls, value: object) -> object:
        if isinstance(value, bool):  # Python's True equals 1, and YAML's `yes` is True
            raise ValueError(f"must be 1 or 2, not {shown(value)}")
        return value


class Constitution(Model):
    """A preamble, the principles, and exemplars. Made by `load_constitution`."""

    name: Line
    description: Line
    preamble: Text
    principles: tuple[Principle, ...] = Field(strict=False)  # YAML gives lists
    exemplars: tuple[Exemplar, ...] = Field(default=(), strict=False)

    _path: Path | None = PrivateAttr(default=None)
    _sha256: str | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check_references(self) -> Constitution:
        errors = cross_check_errors(self.model_dump(by_alias=True))
        if errors:
            raise ValueError("; ".join(f"{dotted(loc)}: {what}" for loc, what in errors))
        return self

    def remember_file(self, path: Path, content: bytes) -> None:
        """Note which file this was loaded from, for messages and manifests."""
        self._path, self._sha256 = path, hashlib.sha256(content).hexdigest()

    @property
    def path(self) -> Path | None:
        """The file it was loaded from."""
        return self._path

    @property
    def sha256(self) -> str:
        """sha256 of the file's bytes, or of the content if it was not loaded from a file."""
        return self._sha256 or hashlib.sha256(self.model_dump_json(by_alias=True).encode()).hexdigest()

    def principle(self, id: str) -> Principle:
        """The principle of that id.

        Raises:
            UsageError: there is no such principle.
        """
        for principle in self.principles:
            if principle.id == id:
                return principle
        known = [principle.id for principle in self.principles]
        raise UsageError(
            f"constitution '{self.name}' has no principle '{id}'",
            hint=f"{did_you_mean(id, known)}it has: {', '.join(known)}",
        )

    def select(self, ids: Iterable[str]) -> Constitution:
        """The same constitution with only these principles, in the file's order.

        It keeps their exemplars and those without a principle. `sha256` is still of the whole file.

        Raises:
            UsageError: an id is unknown or named twice, or there are none.
        """
        wanted = [self.principle(id).id for id in ids]
        if not wanted:
            raise UsageError("no principle is selected", hint="name at least one id")
        for id, times in Counter(wanted).items():
            if times > 1:
                raise UsageError(f"principle '{id}' is selected {times} times", hint="name it once")
        return self.model_copy(
            update={
                "principles": tuple(p for p in self.principles if p.id in wanted),
                "exemplars": tuple(e for e in self.exemplars if e.principle in (None, *wanted)),
            }
        )

    def draw(self, key: str, seed: int) -> Principle:
        """One principle at random, by weight.

        It depends on `key`, `seed` and the principles, and on nothing else: not on the order of rows or of
        principles, on earlier draws, the process, or Python's `hash`.

        Every principle draws an exponential waiting time with its weight as the rate, and the shortest wins,
        with probability weight / sum of weights. So if a principle is added or removed, only the draws that it
        wins change.
        """

        def arrival(principle: Principle) -> float:
            digest = hashlib.sha256(json.dumps([seed, key, principle.id]).encode()).digest()
            uniform = (int.from_bytes(digest[:8], "big") + 1) / 2**64  # (0, 1]
            return -math.log(uniform) / principle.weight

        return min(self.principles, key=lambda principle: (arrival(principle), principle.id))

    def exemplars_for(self, principle: Principle) -> list[Exemplar]:
        """The exemplars that may be shown before this principle's question; the principle's own come first.

        Those of the other direction (`choose`) are left out: they would teach the opposite label.
        """
        fitting = [e for e in self.exemplars if self._direction(e) == principle.choose]
        return sorted(fitting, key=lambda e: e.principle != principle.id)

    def warnings(self) -> list[str]:
        """What is valid but probably not intended, for `rlaif constitution check`."""
        found = []
        for i, principle in enumerate(self.principles):
            place = f"principles[{i}] ({principle.id})"
            if principle.for_ is None or principle.against is None:
                found.append(f"{place}: no 'for' and 'against', so --method contrast cannot use it")
            elif not 2 / 3 < len(principle.for_) / len(principle.against) < 3 / 2:
                found.append(f"{place}: 'for' and 'against' differ a lot in length, not only in the principle")
        for direction in ("better", "worse"):
            found += self._exemplar_warnings(direction)
        return found

    def _exemplar_warnings(self, direction: str) -> list[str]:
        exemplars = [e for e in self.exemplars if self._direction(e) == direction]
        if not exemplars:
            lacking = self.exemplars and any(p.choose == direction for p in self.principles)
            return [f"exemplars: none for the 'choose: {direction}' principles"] if lacking else []
        found = []
        ones = sum(e.answer == 1 for e in exemplars)
        twos = len(exemplars) - ones
        if abs(ones - twos) > 1:
            found.append(
                f"exemplars: of those for 'choose: {direction}' {ones} answer 1 and {twos} answer 2; "
                "a judge may copy the more common answer"
            )
        longer = [(len(e.response_1) > len(e.response_2)) == (e.answer == 1) for e in exemplars]
        if len(exemplars) > 1 and len(set(longer)) == 1:
            which = "longer" if longer[0] else "shorter"
            found.append(f"exemplars: the {which} response is always the answer for 'choose: {direction}'")
        return found

    def _direction(self, exemplar: Exemplar) -> str:
        return "better" if exemplar.principle is None else self.principle(exemplar.principle).choose


# --- loading ------------------------------------------------------------------------------------------------


def cross_check_errors(data: Mapping[str, Any]) -> list[tuple[Loc, str]]:
    """Errors across fields: no principles, duplicate ids, exemplars of unknown principles.

    Works on unvalidated data, so that these errors are reported together with those of the schema.
    """
    errors: list[tuple[Loc, str]] = []
    if data.get("principles") in ([], ()):
        errors.append((("principles",), "needs at least one principle, found none"))
    first: dict[str, int] = {}
    for i, id in _texts(data, "principles", "id"):
        if id in first:
            errors.append((("principles", i, "id"), f"'{id}' is already the id of principles[{first[id]}]"))
        first.setdefault(id, i)
    for i, id in _texts(data, "exemplars", "principle"):
        if id not in first:
            what = f"there is no principle '{id}'; {did_you_mean(id, list(first))}".rstrip("; ")
            errors.append((("exemplars", i, "principle"), what))
    return errors


def _texts(data: Mapping[str, Any], section: str, field: str) -> list[tuple[int, str]]:
    """The texts in one field of a section, with their positions; the schema reports what is not text."""
    items = data.get(section)
    if not isinstance(items, list | tuple):
        return []
    values = ((i, item.get(field)) for i, item in enumerate(items) if isinstance(item, Mapping))
    return [(i, value.strip()) for i, value in values if isinstance(value, str)]


# --- messages -----------------------------------------------------------------------------------------------


def did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{close[0]}'? " if close else ""
