"""Nothing let in: broken records, YAML and checkpoints against every reader.

    python benchmarks/fuzz.py [--inputs 10000] [--seed 0] [--readers NAME …]
    python benchmarks/fuzz.py --servers [--inputs 2000] [--seed 0]      # answers of a chat server (fuzz_servers.py)

Input `i` depends on `--seed` and `i` alone, so that one can be made again (`--only i`). Records are read as each kind,
in each foreign format, repaired, converted, counted, audited, and resumed from; YAML as a constitution and as a
pipeline; checkpoints by the resolver, the tokenizer and the trainers' loader. What is refused must be refused by an
error of ours that names the file (and, for a line, its number); accepted input is read to its end. Counted are:

    accepted, refused   both are right; broken input may still be good input
    no place            refusals that do not name the file
    tracebacks          any other exception: a bug
    hangs               inputs that took over 20 seconds
    invented            responses and labels that no answer of the server holds

Ends with exit code 1 if one of the last four is not 0.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import zstandard

import fuzz_servers
from rlaif_cli.config.data import ConvertConfig, StatsConfig, ValidateConfig
from rlaif_cli.config.judge import AuditConfig, LabelConfig
from rlaif_cli.data import formats
from rlaif_cli.errors import InputError, RlaifError
from rlaif_cli.judge.constitution_files import _find, load_constitution, shipped_constitutions
from rlaif_cli.models import tiny
from rlaif_cli.models.metadata import context_length
from rlaif_cli.models.resolve import resolve_model

SECONDS = 20

TURNS = [{"role": "user", "content": "Why is the sky blue?"}, {"role": "assistant", "content": "Light scatters."}]
ROWS: dict[str, dict[str, Any]] = {
    "prompts": {"id": "a", "prompt": TURNS[:1], "reference": "Rayleigh", "meta": {"source": "x"}},
    "candidates": {"id": "a", "prompt": "Why?", "responses": [{"text": "x", "tokens": 3, "logprob": -1.5}, "y"]},
    "preferences": {
        "id": "a",
        "prompt": TURNS[:1],
        "chosen": TURNS[1:],
        "rejected": [{"role": "assistant", "content": "It is paint."}],
        "p_chosen": 0.8,
        "judge": {
            "model": "m",
            "method": "pairwise",
            "principle": "honest",
            "p_first": [0.7, 0.3],
            "mass": [0.9, 0.8],
            "flipped": False,
        },
        "meta": {"prompt_id": "a", "pair": [0, 1]},
    },
    "pairs": {"id": "a", "prompt": "Why?", "response_a": "x", "response_b": "y", "p_a": 0.5, "source": "s"},
    "demonstrations": {"messages": TURNS},
    "revisions": {
        "id": "a",
        "prompt": "Why?",
        "response": "z",
        "initial": "x",
        "rounds": [{"principle": "honest", "critique": "c", "revision": "z"}],
        "model": "m",
    },
}
FOREIGN: dict[str, dict[str, Any]] = {
    "trl-preference": {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": TURNS[1:]},
    "trl-prompt-completion": {"prompt": TURNS[:1], "completion": TURNS[1:]},
    "hh-rlhf": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    "ultrafeedback": {"instruction": "q", "completions": [{"response": "x", "overall_score": 3}] * 2},
    "ultrafeedback-binarized": {"prompt": "q", "chosen": TURNS, "rejected": TURNS, "score_chosen": 8.0},
    "openrlhf": {"chosen": TURNS, "rejected": TURNS},
    "argilla": {"instruction": "q", "chosen_response": "a", "rejected_response": "b", "chosen_avg_rating": 5},
    "openai-chat": {"messages": TURNS},
}
LONE = "\ud800"
VALUES: list[Any] = [
    None, True, -1, 0, 2**63, 10**400, 1e308, -0.0, float("nan"), float("inf"), "", " ", "\0", "\x1b[2J", "é\u202e",
    LONE, "a" * 10_000, [], [[]], {}, {"": None}, [None, 1, "x"], {"role": "user"}, {"role": 3, "content": []},
    [{"role": "system", "content": "x"}], [{"role": "user", "content": LONE}], "../../etc/passwd", "hf:x/y", "-",
]  # fmt: skip


# ---------------------------------------------------------------------------------------------------- broken records


def break_value(value: Any, chance: random.Random) -> Any:
    """Something inside a JSON value is another thing, missing, or there twice as often."""
    places = list(_places(value))
    holder, key = chance.choice(places) if places else (None, None)
    if holder is None:
        return chance.choice(VALUES)
    kind = chance.randrange(4)
    if kind == 0 and isinstance(holder, dict):
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[chance.choice(["id", "prompt", "", "p_chosen", "\x1b[2J", "a" * 500, LONE])] = holder.pop(key)
    elif kind == 2 and isinstance(holder, list):
        holder *= chance.choice([0, 2, 50])
    else:
        holder[key] = copy.deepcopy(chance.choice(VALUES))
    return value


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


def as_line(row: Any, chance: random.Random) -> bytes:
    text = json.dumps(row, ensure_ascii=chance.random() < 0.5)
    kind = chance.randrange(12)
    if kind == 0:
        text = text[: chance.randrange(len(text) + 1)]
    elif kind == 1:
        text = '{"id": "twice", ' + text[1:]
    elif kind == 2:
        text = "[" * (deep := chance.choice([50, 2_000, 200_000])) + text + "]" * deep
    elif kind == 3:
        text = text.replace(":", f": {'9' * 5000}, 0:", 1) if chance.random() < 0.5 else text.replace('"', "'")
    elif kind == 4:
        text += chance.choice([",", "}", " {}", "\0", "# what?", "\u2028"])
    return text.encode("utf-8", "surrogatepass")


def flip_bytes(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice([1, 3, 30])):
        if changed:
            changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


def records(row: dict[str, Any], chance: random.Random) -> bytes:
    """A file of a few good rows and a few broken ones, and then broken as a whole."""
    lines = []
    for number in range(chance.choice([1, 2, 5])):
        fresh = copy.deepcopy(row) | ({"id": f"r{number}"} if chance.random() < 0.7 else {})
        for _ in range(chance.choice([0, 1, 1, 3])):
            fresh = break_value(fresh, chance)
        lines.append(as_line(fresh, chance))
    content = chance.choice([b"\n", b"\r\n", b"\n\n", b"\r"]).join(lines) + chance.choice([b"\n", b""])
    kind = chance.randrange(16)
    if kind == 0:
        content = b"\xef\xbb\xbf" + content
    elif kind == 1:
        content = content.decode("utf-8", "replace").encode(
            chance.choice(["utf-16", "utf-16-le", "utf-32", "latin-1"]), "replace"
        )
    elif kind == 2:
        content = flip_bytes(content, chance)
    elif kind == 3:
        content = b""
    elif kind == 4:
        content = bytes(chance.randrange(256) for _ in range(200))
    elif kind == 5 and chance.random() < 0.05:
        content += b'{"id": "' + b"x" * (50 << 20) + b'"}\n'
    return _compressed(content, chance)


def _compressed(content: bytes, chance: random.Random) -> bytes:
    kind = chance.randrange(20)
    if kind == 0:
        content = gzip.compress(content)
    elif kind == 1:
        content = zstandard.ZstdCompressor().compress(content)
    elif kind == 2 and chance.random() < 0.03:
        return gzip.compress(b" " * (1 << 30), compresslevel=1)  # a bomb: a blank gigabyte
    if kind < 3 and chance.random() < 0.5:
        content = (
            content[: chance.randrange(len(content) + 1)] if chance.random() < 0.5 else flip_bytes(content, chance)
        )
    return content


# ------------------------------------------------------------------------------------------------------- broken YAML

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + chr(ord(name) - 1)] * 9)}]\n" for name in "bcdefgh"
)
YAML = [
    "!!python/object/apply:os.system ['true']", "&x *x", "? [a]\n: b", "{", "|", "- - -", "\t", "<<: *a", BOMB,
    "[" * 5000, "2001-01-01", "0o7", ".nan", "~", "!!binary aGk=", "%YAML 9.9", "---\n---", "\0", "\ufeff",
]  # fmt: skip


def yaml_text(text: str, chance: random.Random) -> bytes:
    lines = text.splitlines(keepends=True)
    for _ in range(chance.choice([1, 1, 2, 5])):
        place = chance.randrange(len(lines))
        kind = chance.randrange(7)
        if kind == 0:
            del lines[place]
            lines = lines or ["\n"]
        elif kind == 1:
            lines.insert(place, lines[chance.randrange(len(lines))])
        elif kind == 2:
            lines[place] = " " * chance.randrange(9) + lines[place].lstrip()
        elif kind == 3:
            key, colon, _ = lines[place].partition(":")
            lines[place] = f"{key}{colon} {chance.choice(YAML)}\n"
        elif kind == 4:
            lines[place] = chance.choice(YAML) + "\n"
        elif kind == 5:
            key, colon, _ = lines[place].partition(":")
            lines[place] = f"{key}{colon} {json.dumps(chance.choice(VALUES))}\n"
        else:
            cut = chance.randrange(len(lines[place]) + 1)
            lines[place] = (
                lines[place][:cut] + chance.choice(["${run}", "${", "'", '"', ": ", "#"]) + lines[place][cut:]
            )
    content = "".join(lines).encode("utf-8", "surrogatepass")
    return flip_bytes(content, chance) if chance.random() < 0.15 else content


# ------------------------------------------------------------------------------------------------ broken checkpoints


def checkpoint(good: Path, folder: Path, chance: random.Random) -> None:
    """A copy of `good` in which one or two files are damaged."""
    folder.mkdir()
    for file in good.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for file in chance.sample(sorted(folder.iterdir()), chance.choice([1, 1, 2])):
        content, kind = file.read_bytes(), chance.randrange(6)
        if kind == 0:
            file.unlink()
        elif kind == 1:
            file.write_bytes(content[: chance.randrange(len(content) + 1)])
        elif kind == 2:
            file.write_bytes(flip_bytes(content[:4000], chance) + content[4000:])  # a header is at the start
        elif kind == 3:
            file.write_bytes(b"\x80\x04\x95")  # as a pickle begins
        elif file.suffix == ".json":
            value = json.loads(content)
            for _ in range(2):
                value = break_value(value, chance)
            file.write_bytes(json.dumps(value).encode("utf-8", "surrogatepass"))
        else:
            file.write_bytes(b"")
    if chance.random() < 0.1:
        index = {"weight_map": {"x": chance.choice(["no.safetensors", "../up.safetensors", 3, None])}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


# ------------------------------------------------------------------------------------------------------- the readers

Reader = Callable[[Path, random.Random], None]


def _told(faults: list[str], path: Path) -> None:
    """Faults that were listed and not raised name their place too."""
    if any(path.name not in fault for fault in faults):
        raise InputError("a listed fault without its place", errors=faults)


def readers() -> dict[str, Callable[[Path, random.Random], None]]:
    """Each makes one broken input in a folder and reads it."""
    from rlaif_cli.data.tools import convert, repair, stats, validate
    from rlaif_cli.data.tools.kinds import KINDS, kind_of
    from rlaif_cli.pipeline import reproduce
    from rlaif_cli.pipeline.file import load as load_pipeline
    from rlaif_cli.registry import STAGES
    from rlaif_cli.stages import audit

    def file(folder: Path, row: dict[str, Any], chance: random.Random) -> Path:
        path = folder / f"broken{chance.choice(['.jsonl', '.jsonl', '.jsonl.gz', '.jsonl.zst'])}"
        path.write_bytes(records(row, chance))
        return path

    def validated(folder: Path, chance: random.Random) -> None:
        kind = chance.choice(list(ROWS))
        path = file(folder, ROWS[kind], chance)
        given = ValidateConfig(records=str(path), kind=chance.choice([kind, None]))
        _told(validate.invalid_lines(given, kind_of(given))[1], path)

    def repaired(folder: Path, chance: random.Random) -> None:
        kind = chance.choice(list(ROWS))
        path = file(folder, ROWS[kind], chance)
        given = ValidateConfig(records=str(path), fix=str(folder / "fixed.jsonl"))
        repair.repair(given, KINDS[kind])

    def counted(folder: Path, chance: random.Random) -> None:
        kind = chance.choice(list(ROWS))
        given = StatsConfig(records=str(file(folder, ROWS[kind], chance)), skip_invalid=chance.random() < 0.5)
        stats.stats(given, kind)

    def converted(folder: Path, chance: random.Random) -> None:
        name = chance.choice(list(FOREIGN))
        origin: dict[str, Any] = {"from_format": name}
        row = FOREIGN[name]
        if chance.random() < 0.5:
            kind = next(kind for kind, record in KINDS.items() if record is formats.FORMATS[name].record)
            origin, row = {"to_format": name}, ROWS[kind]
        path = file(folder, row, chance)
        out = str(folder / "converted.jsonl")
        convert.convert(ConvertConfig(records=str(path), output=out, skip_invalid=chance.random() < 0.5, **origin))

    def audited(folder: Path, chance: random.Random) -> None:
        path = file(folder, ROWS["preferences"], chance)
        audit.audit(AuditConfig(preferences=str(path), skip_invalid=chance.random() < 0.5))

    def resumed(folder: Path, chance: random.Random) -> None:
        from rlaif_cli.data.resumable_output import Output

        path = file(folder, ROWS["candidates"], chance)
        state: Any = {"settings": {"n": 2}, "usage": {"tokens_in": 3}, "bytes": path.stat().st_size}
        if chance.random() < 0.5:
            state = break_value(state, chance)
        side = path.with_name(path.name + chance.choice([".run.json", ".manifest.json"]))
        side.write_bytes(as_line(state, chance))
        Output(path, {"n": 2}).close()

    def labelled(folder: Path, chance: random.Random) -> None:
        from rlaif_cli.engines import EnginePool
        from rlaif_cli.stages.label import label

        path = file(folder, ROWS["candidates"], chance)
        out = str(folder / "labels.jsonl")
        given = LabelConfig(
            candidates=str(path),
            judge="fake",
            constitution="helpfulness",
            output=out,
            skip_invalid=chance.random() < 0.5,
        )
        label(given, EnginePool())

    def constitutions(folder: Path, chance: random.Random) -> None:
        good = shipped_constitutions()
        path = folder / "broken.yaml"
        path.write_bytes(yaml_text(_find(chance.choice(good)).read_text("utf-8"), chance))
        load_constitution(str(path))

    def pipelines(folder: Path, chance: random.Random) -> None:
        examples = sorted((Path(__file__).parents[1] / "examples").glob("*/pipeline.yaml"))
        path = folder / "broken.yaml"
        path.write_bytes(yaml_text(chance.choice(examples).read_text("utf-8"), chance))
        load_pipeline(str(path), folder / "run", STAGES)

    def repeated(folder: Path, chance: random.Random) -> None:
        stage = {"run": "generate", "settings": {"prompts": "p", "model": "fake", "output": str(folder / "c.jsonl")}}
        summary = break_value({"name": "x", "stages": {"c": stage}}, chance)
        (folder / "summary.json").write_bytes(as_line(summary, chance))
        reproduce.reproduce(str(folder), folder / "again", STAGES)

    # Imported before the clock of an input starts: an import that is interrupted leaves half a module.
    from rlaif_cli.models.tokenizer import ChatTokenizer
    from rlaif_cli.train.nn.heads import load_policy, new_reward_model

    def checkpoints(folder: Path, chance: random.Random) -> None:
        checkpoint(good_checkpoint(), folder / "broken", chance)
        path = resolve_model(str(folder / "broken"))
        context_length(path)
        ChatTokenizer(path)
        load_policy(path) if chance.random() < 0.5 else new_reward_model(path, seed=0)

    found = (validated, repaired, counted, converted, audited, resumed, labelled, constitutions, pipelines, repeated)
    return {reader.__name__: reader for reader in (*found, checkpoints)}


_good: list[tempfile.TemporaryDirectory[str]] = []


def good_checkpoint() -> Path:
    if not _good:
        _good.append(tempfile.TemporaryDirectory())
        tiny.build(Path(_good[0].name), layers=1, width=64)
    return Path(_good[0].name)


# ------------------------------------------------------------------------------------------------------- the counting


class Hang(BaseException):
    pass


def tried(reader: Reader, chance: random.Random) -> tuple[str, str]:
    """(what came of it, what was said)."""

    def stop(*_: Any) -> None:
        raise Hang

    here = Path.cwd()
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    with tempfile.TemporaryDirectory(prefix="rlaif-fuzz-") as name:
        quiet = io.StringIO()
        os.chdir(name)  # where commands that write to stdout put what they reject
        try:
            with redirect_stdout(quiet), redirect_stderr(quiet):
                reader(Path(name), chance)
        except RlaifError as error:
            said = "\n".join([str(error), *getattr(error, "errors", ())])
            named = any(place in said for place in ("broken", name, "the server", fuzz_servers.PLACE))
            return ("refused" if named else "no place"), said
        except Hang:
            return "hangs", traceback.format_exc(limit=-3)
        except fuzz_servers.Invented as error:
            return "invented", str(error)
        except Exception:
            return "tracebacks", traceback.format_exc(limit=-6)
        finally:
            signal.alarm(0)
            os.chdir(here)
    return "accepted", ""


OUTCOMES = ("accepted", "refused", "no place", "tracebacks", "hangs", "invented")


def fuzz(
    inputs: range, seed: int, wanted: list[str] | None = None, *, every: dict[str, Reader]
) -> dict[str, Counter[str]]:
    """By reader: how often each outcome came; faults are printed with the number of the input."""
    names = wanted or list(every)
    # A checkpoint costs ten times a file of records, so there is one for every three of each other.
    turns = [name for name in names for _ in range(1 if name == "checkpoints" else 3)]
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for number in inputs:
        name = turns[number % len(turns)]
        started = time.monotonic()
        outcome, said = tried(every[name], random.Random(f"{seed}:{number}"))
        counts[name][outcome] += 1
        counts[name]["milliseconds"] += round(1000 * (time.monotonic() - started))
        if outcome in OUTCOMES[2:]:
            print(f"input {number}, {name}: {outcome}\n{said[:2000]}\n", file=sys.stderr, flush=True)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, help="default: 10,000; 2,000 with --servers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", nargs="+", choices=readers())
    parser.add_argument("--servers", action="store_true", help="broken answers of a chat server")
    parser.add_argument("--only", type=int, help="one input, by its number")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    inputs = range(options.inputs or (2_000 if options.servers else 10_000))
    if options.only is not None:
        inputs = range(options.only, options.only + 1)
    every = fuzz_servers.readers() if options.servers else readers()
    counts = fuzz(inputs, options.seed, options.readers, every=every)
    print("| reader | inputs | " + " | ".join(OUTCOMES) + " | ms an input |")
    print("|---" * (len(OUTCOMES) + 3) + "|")
    for name, found in counts.items():
        total = sum(found[outcome] for outcome in OUTCOMES)
        cells = [str(found[outcome]) for outcome in OUTCOMES]
        print(f"| {name} | {total} | {' | '.join(cells)} | {found['milliseconds'] / max(1, total):.0f} |")
    sys.exit(any(found[outcome] for found in counts.values() for outcome in OUTCOMES[2:]))


if __name__ == "__main__":
    main()
