"""Outputs: appended, resumed, locked, compressed; what a kill or a full disk leaves of them."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

from helpers import rlaif, rows_of
from rlaif_cli.data import compression
from rlaif_cli.data.compression import MAX_LINE, CompressedFile, blocks
from rlaif_cli.data.hash_set import HashSet
from rlaif_cli.data.paths import beside
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import PromptRecord
from rlaif_cli.data.resumable_output import Output
from rlaif_cli.errors import InputError, UsageError


def record(name: str) -> PromptRecord:
    return PromptRecord(id=name, prompt="p")


def ids(path: Path) -> list[str]:
    return [row.id for row in Source(str(path), PromptRecord)]


# --- compressed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_output_goes_on_behind_its_last_whole_member(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"out.jsonl{suffix}"
    first = Output(path, {})
    for name in "abcd":
        first.write(record(name))
        first.flush()
    first.close()
    whole = path.read_bytes()
    for cut in (1, 5, 20):
        path.write_bytes(whole[:-cut])
        again = Output(path, {})
        assert [name in again.done for name in "abcd"] == [True, True, True, False]
        again.write(record("d"))
        again.finish({})
        again.close()
        assert ids(path) == list("abcd")
        again.manifest_path.rename(tmp_path / "out.jsonl.run.json")
        os.replace(tmp_path / "out.jsonl.run.json", str(path) + ".run.json")
    assert Output(path, {}).usage == {}
    text = gzip.decompress(path.read_bytes()) if suffix == ".gz" else b"".join(blocks(path))
    assert [json.loads(line)["id"] for line in text.splitlines()] == list("abcd"), "other tools can read it"


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_compressed_input_is_known_by_its_bytes(compress: Any, tmp_path: Path) -> None:
    text = b"".join(b'{"id": "%d", "prompt": "q"}\n' % i for i in range(1000))
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(compress(text[:5000]) + compress(text[5000:]))
    source = Source(str(path), PromptRecord)
    assert len(list(source)) == 1000
    path.write_bytes(text)
    assert source.sha256 == Source(str(path), PromptRecord).sha256, "one content, one hash"


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor(write_checksum=True).compress])
@pytest.mark.parametrize("fault", ["cut", "noise"])
def test_broken_compressed_input(compress: Any, fault: str, tmp_path: Path) -> None:
    text = "".join(json.dumps({"prompt": random.Random(i).random()}) + "\n" for i in range(100)).encode()
    data = bytearray(compress(text))
    if fault == "cut":
        del data[-20:]
    else:
        data[len(data) // 2] ^= 0xFF
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"prompts\.jsonl: cannot be decompressed"):
        Source(str(path), PromptRecord)


def test_a_decompression_bomb_is_one_long_line(tmp_path: Path) -> None:
    path = tmp_path / "bomb.jsonl"
    path.write_bytes(gzip.compress(b"0" * (MAX_LINE + 2) + b"\n" + b'{"prompt": "q"}\n', 1))
    with pytest.raises(InputError) as caught:
        Source(str(path), PromptRecord)
    assert caught.value.errors == [f"{path} line 1: longer than {MAX_LINE >> 20} MiB"]
    assert len(Source(str(path), PromptRecord, skip_invalid=True)) == 1


def test_side_files_of_a_compressed_output() -> None:
    assert str(beside("a/prefs.jsonl.zst", "label", "unscored")) == "a/prefs.unscored.jsonl"
    assert str(beside("a/prefs.v2.jsonl", "label", "unscored")) == "a/prefs.v2.unscored.jsonl"


def test_the_whole_chain_in_compressed_files(write_jsonl: Callable[..., str], tmp_path: Path) -> None:
    prompts = write_jsonl("prompts.jsonl", [{"id": str(i), "prompt": f"q{i}"} for i in range(20)])
    for command in (
        ("generate", prompts, "--model", "fake", "-n", "2", "-o", "c.jsonl.gz"),
        ("label", "c.jsonl.gz", "--judge", "fake", "--constitution", "helpfulness", "-o", "p.jsonl.zst"),
    ):
        for said in ("20", "20 already done" if command[0] == "generate" else "resumed 20"):
            done = rlaif(*command, cwd=tmp_path)
            assert done.returncode == 0 and said in done.stderr, done.stderr
    audited = json.loads(rlaif("audit", "p.jsonl.zst", "--json", cwd=tmp_path).stdout)
    assert audited["checks"][0]["numbers"]["rows"] == 20
    with open(tmp_path / "c.jsonl.gz", "rb") as file:
        command = [sys.executable, "-m", "rlaif_cli", "label", "-", "--judge", "fake", "--constitution", "helpfulness"]
        piped = subprocess.run(command, stdin=file, capture_output=True, cwd=tmp_path)
    assert piped.returncode == 0 and len(piped.stdout.splitlines()) == 20, piped.stderr


def test_a_failed_write_leaves_no_torn_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = CompressedFile(tmp_path / "x.jsonl.gz")
    file.write('{"prompt": "a"}\n')
    file.flush()
    size = (tmp_path / "x.jsonl.gz").stat().st_size

    class Full:
        def __init__(self, real: Any) -> None:
            self.real = real

        def write(self, data: bytes) -> int:
            self.real.write(data[:5])
            raise OSError(28, "No space left on device")

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    real, file._file = file._file, Full(file._file)  # type: ignore[assignment]
    file.write('{"prompt": "b"}\n')
    with pytest.raises(OSError, match="No space"):
        file.flush()
    assert (tmp_path / "x.jsonl.gz").stat().st_size == size
    file._file = real
    file.close()
    assert [row.prompt for row in Source(str(tmp_path / "x.jsonl.gz"), PromptRecord)] == ["a", "b"]


# --- two processes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_that_is_being_written_is_refused(overwrite: bool, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    first = Output(path, {})
    first.write(record("a"))
    first.flush()
    with pytest.raises(UsageError, match="another process"):
        Output(path, {}, overwrite=overwrite)
    first.finish({})
    first.close()
    assert ids(path) == ["a"] and Output(path, {}).complete


def test_the_lock_dies_with_its_owner(tmp_path: Path) -> None:
    script = (
        "import pathlib, time, rlaif_cli.data.resumable_output as o\nkept = o.Output(pathlib.Path('out.jsonl'), {})\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script + "print('begun', flush=True)\ntime.sleep(60)"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
    )
    assert owner.stdout is not None and owner.stdout.readline() == b"begun\n"
    with pytest.raises(UsageError, match="another process"):
        Output(tmp_path / "out.jsonl", {})
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    Output(tmp_path / "out.jsonl", {}).close()


def test_overwriting_leaves_other_links_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    first = Output(path, {})
    first.write(record("a"))
    first.finish({})
    first.close()
    os.link(path, tmp_path / "kept.jsonl")
    Output(path, {"n": 2}, overwrite=True).close()
    assert path.read_text() == "" and len(rows_of(tmp_path / "kept.jsonl")) == 1


# --- ids ----------------------------------------------------------------------------------------------------


def test_a_hash_set_is_a_set() -> None:
    drawn = random.Random(0)
    names = [str(drawn.randrange(3000)) for _ in range(5000)]
    found = HashSet(names)
    assert len(found) == len(set(names)) and all(name in found for name in names)
    assert not any(str(i) in found for i in range(3000, 6000))
    assert len(found.repeated()) == sum(names.count(name) > 1 for name in set(names))
    assert sum(found.counts()) == 5000 and len(found | HashSet(["new"])) == len(found) + 1
    found.add("new")
    assert "new" in found and "newer" not in found


def test_the_clock_may_jump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of day are nowhere asked: rows are flushed and seconds counted by a clock that only goes forward."""
    for name in ("time", "time_ns"):
        monkeypatch.setattr(time, name, lambda: pytest.fail("the time of day was asked for"))
    output = Output(tmp_path / "out.jsonl", {})
    output.write(record("a"))
    output.finish({})
    output.close()
    assert json.loads(output.manifest_path.read_text())["seconds"] >= 0


def test_a_file_that_grows_a_thousandfold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "_RATIO_FROM", 1 << 20)
    bomb, dense = tmp_path / "bomb.jsonl.gz", tmp_path / "dense.jsonl.gz"
    bomb.write_bytes(gzip.compress(b"\n" * (4 << 20)))
    with pytest.raises(InputError, match="decompression bomb"):
        sum(1 for _ in compression.lines(bomb))
    dense.write_bytes(gzip.compress(b'{"prompt": "the same"}\n' * 100_000))
    assert sum(1 for _ in compression.lines(dense)) == 100_000


def test_of_a_line_that_is_too_long_its_beginning_alone_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "MAX_LINE", 2 << 20)
    path = tmp_path / "long.jsonl"
    path.write_bytes(b"x" * (9 << 20) + b"\n{}\n")
    lengths = [len(line) for _, line in compression.lines(path)]
    assert (2 << 20) < lengths[0] <= (4 << 20) and lengths[1:] == [3]
