"""Inputs of many files and from elsewhere are what one file with the same rows is: rows, faults, digest, numbers."""

from __future__ import annotations

import functools
import gzip
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import zstandard

from helpers import heed_interrupts, rlaif, rows_of
from rlaif_cli.config.data import DedupeConfig, ShardConfig, StatsConfig, ValidateConfig
from rlaif_cli.data import inputs
from rlaif_cli.data.compression import content_sha256
from rlaif_cli.data.overlap import check_outputs
from rlaif_cli.data.reader import Source
from rlaif_cli.data.records import PromptRecord
from rlaif_cli.data.tools import dedupe as dedupe_module
from rlaif_cli.data.tools import stats
from rlaif_cli.data.tools import validate as validate_module
from rlaif_cli.data.tools.shard import shard
from rlaif_cli.errors import InputError, MissingDependency, RlaifWarning, UsageError
from rlaif_cli.pipeline.plan.counts import measure

JUDGE = ("--judge", "fake", "--constitution", "helpfulness")


def row(number: int) -> dict[str, Any]:
    return {"id": f"r{number}", "prompt": f"Question {number}?"}


def text(*rows: Any) -> bytes:
    return "".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in rows).encode()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Eleven of two rows, of every kind of file, among what `rlaif` leaves beside them."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(11):
        content = text(row(2 * number), row(2 * number + 1))
        if number % 3 == 0:
            (folder / f"p-{number}.jsonl").write_bytes(content)
        elif number % 3 == 1:
            (folder / f"p-{number}.jsonl.gz").write_bytes(gzip.compress(content))
        else:
            (folder / f"p-{number}.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(content))
    for beside in (
        "p-1.rejected.jsonl",
        "p-1.unscored.jsonl",
        "p-1.items.jsonl",
        "p-1.jsonl.manifest.json",
        ".p.jsonl",
    ):
        (folder / beside).write_text('{"no": "record"}\n')
    (folder / "README.txt").write_text("not read")
    (folder / "sub.jsonl").mkdir()
    return folder


@pytest.fixture
def elsewhere() -> Iterator[Callable[[str, bytes], None]]:
    """Puts files into fsspec's memory; afterwards no copy is left on this machine."""
    system = fsspec.filesystem("memory")
    yield lambda name, content: system.pipe_file(name, content)
    system.store.clear()
    folders = [folder for folder, _ in inputs._folders]
    inputs.remove_temporary_files()
    assert not any(map(os.path.exists, folders))


def ids(address: str) -> list[str]:
    return [record.id for record in Source(address, PromptRecord)]


@pytest.mark.parametrize(
    "address", ["shards", "shards/", "shards/p-*", "sh*/p-*.jsonl*", "file://{}/shards/p-*.jsonl*"]
)
def test_the_files_of_an_input_in_natural_order(shards: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards.parent)
    assert ids(address.format(shards.parent)) == [f"r{number}" for number in range(22)]


def test_a_sidecar_is_read_where_it_is_asked_for(shards: Path) -> None:
    (found,) = inputs.files(str(shards / "*.unscored.jsonl"))
    assert found.path.name == "p-1.unscored.jsonl"


def test_a_series_needs_numbers_of_five_digits(tmp_path: Path) -> None:
    (tmp_path / "best-3-of-5.jsonl").write_bytes(text(row(1)))
    assert ids(str(tmp_path)) == ["r1"]


def test_folders_of_records_and_of_models(shards: Path, tiny: Path, tmp_path: Path) -> None:
    assert inputs.names_records(str(shards)) and not inputs.names_records(str(tiny))
    (shards / "config.json").touch()  # a trained model, with its metrics.jsonl
    assert not inputs.names_records(str(shards)) and not inputs.names_records("org/model")


def test_a_plan_counts_the_rows_of_all_files(shards: Path) -> None:
    assert measure(f"{shards}/p-*").rows == 22


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_bytes(text(row(1)))
    (tmp_path / "a1.jsonl").write_bytes(text(row(2)))
    assert ids(str(tmp_path / "a[1].jsonl")) == ["r1"]


@pytest.mark.parametrize("last", [b"\n", b""])
def test_the_digest_is_that_of_one_file(tmp_path: Path, last: bytes) -> None:
    rows = [text(row(number)).strip() for number in range(4)]
    (tmp_path / "one.jsonl").write_bytes(b"\n".join(rows) + last)
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "1.jsonl").write_bytes(rows[0] + b"\n\n" + rows[1])  # its last line has no end
    (parts / "2.jsonl").touch()
    (parts / "3.jsonl").write_bytes(b"\xef\xbb\xbf" + rows[2] + b"\n" + rows[3] + last)
    one = Source(str(tmp_path / "one.jsonl"), PromptRecord)
    assert Source(str(parts), PromptRecord).sha256 == one.sha256 == content_sha256(tmp_path / "one.jsonl")
    (parts / "3.jsonl").rename(parts / "0.jsonl")
    assert Source(str(parts), PromptRecord).sha256 != one.sha256, "the order counts"


def test_faults_name_the_shard_and_the_line_in_it(tmp_path: Path) -> None:
    (tmp_path / "p-1.jsonl").write_bytes(text(row(1), row(2)))
    (tmp_path / "p-2.jsonl").write_bytes(text("", row(3), "{torn", row(2), row(3)))
    (tmp_path / "p-3.jsonl").write_bytes(text(row(2), row(4)))
    address, aside = str(tmp_path / "p-*.jsonl"), tmp_path / "aside.jsonl"
    with pytest.raises(InputError, match="4 of 8 lines") as caught:
        Source(address, PromptRecord)
    first, second, third = (str(tmp_path / f"p-{number}.jsonl") for number in (1, 2, 3))
    assert "line 3: not JSON" in caught.value.errors[0] and caught.value.errors[0].startswith(second)
    assert caught.value.errors[1:] == [
        f"{second} line 4: the id 'r2' is already used in {first} line 2",
        f"{second} line 5: the id 'r3' is already used in line 2",
        f"{third} line 1: the id 'r2' is already used in {first} line 2",
    ]
    source = Source(address, PromptRecord, skip_invalid=True, rejected_path=aside)
    assert [record.id for record in source] == ["r1", "r2", "r3", "r4"]
    assert [(each["file"], each["line"]) for each in rows_of(aside)] == [
        (second, 3),
        (second, 4),
        (second, 5),
        (third, 1),
    ]


def test_equal_rows_without_an_id_are_told_apart_over_files(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jsonl").write_bytes(text({"prompt": "same"}))
    first, *others = ids(str(tmp_path))
    assert others == [f"{first}-2", f"{first}-3"]


def test_an_error_within_a_shard_names_it(shards: Path) -> None:
    broken = shards / "p-4.jsonl.gz"
    broken.write_bytes(broken.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"p-4\.jsonl\.gz: cannot be decompressed"):
        Source(str(shards), PromptRecord)


@pytest.mark.parametrize(
    ("address", "kind", "said"),
    [
        ("{}/none-*.jsonl", InputError, "no file matches"),
        ("{}", InputError, "holds no records"),
        ("{}/none.jsonl", InputError, "no such file"),
        ("memory://none/x.jsonl", InputError, "no such file"),
        ("memory://none/*.jsonl", InputError, "no file matches"),
        ("gibberish://x", InputError, "unsupported kind of address"),
        ("http://127.0.0.1:9/x.jsonl", InputError, "cannot be copied"),
    ],
)
def test_what_is_not_there(tmp_path: Path, address: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said) as caught:
        inputs.files(address.format(tmp_path))
    assert address.format(tmp_path) in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingDependency) as caught:
        inputs.files("s3://bucket/x.jsonl")
    assert "s3fs" in str(caught.value.hint)


def test_a_shard_that_is_missing_from_its_series(tmp_path: Path) -> None:
    for number in (0, 1, 3):
        (tmp_path / f"p-0000{number}-of-00004.jsonl").write_bytes(text(row(number)))
    for address in (str(tmp_path), f"{tmp_path}/p-*"):
        with pytest.raises(InputError, match=r"a shard is missing: .*p-00002-of-00004\.jsonl$"):
            inputs.files(address)
    assert len(inputs.files(f"{tmp_path}/p-0000[01]-*")) == 2, "a part of them on purpose"
    assert len(inputs.files(f"{tmp_path}/p-00003-of-00004.jsonl")) == 1


@pytest.mark.parametrize("address", ["memory://box/p-*.jsonl*", "memory://box"])
def test_files_elsewhere_are_copied_once(elsewhere: Callable[[str, bytes], None], address: str) -> None:
    elsewhere("/box/p-10.jsonl", text(row(2), "{torn"))
    elsewhere("/box/p-9.jsonl.gz", gzip.compress(text(row(0), row(1))))
    elsewhere("/box/p-9.rejected.jsonl", b"{}\n")
    source = Source(address, PromptRecord, skip_invalid=True)
    assert [record.id for record in source] == ["r0", "r1", "r2"]
    assert source.errors[0].startswith("memory:///box/p-10.jsonl line 2: not JSON")
    fsspec.filesystem("memory").store.clear()
    assert len(list(Source(address, PromptRecord, skip_invalid=True))) == 3


def test_a_web_server(shards: Path, elsewhere: Any) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(shards))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        assert ids(f"{base}/p-0.jsonl?key=1") == ["r0", "r1"]
        assert ids(f"{base}/") == ids(f"{base}/p-*") == ids(str(shards))
        with pytest.raises(InputError, match="no such file"):
            inputs.files(f"{base}/none.jsonl")
        server.shutdown()


def test_label_goes_on_after_its_input_was_sharded_anew(tmp_path: Path) -> None:
    rows = [{"id": str(number), "prompt": f"{number}?", "responses": ["so", "no"]} for number in range(12)]
    (tmp_path / "c.jsonl").write_bytes(text(*rows))
    assert rlaif("label", "c.jsonl", *JUDGE, "-o", "p.jsonl", cwd=tmp_path).returncode == 0
    whole = (tmp_path / "p.jsonl").read_bytes()
    manifest = json.loads((tmp_path / "p.jsonl.manifest.json").read_text())
    (tmp_path / "p.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:5]))  # it was cut off
    assert rlaif("data", "shard", "c.jsonl", "--rows", "5", "-o", "box", cwd=tmp_path).returncode == 0
    done = rlaif("label", f"file://{tmp_path}/box/*.zst", *JUDGE, "-o", "p.jsonl", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = json.loads((tmp_path / "p.jsonl.manifest.json").read_text())
    assert again["sha256"] == manifest["sha256"] and again["settings"]["candidates"].startswith("file://")
    (tmp_path / "c.jsonl").write_bytes(text(*rows[:-1]))
    refused = rlaif("label", "c.jsonl", *JUDGE, "-o", "p.jsonl", cwd=tmp_path)
    assert refused.returncode == 2 and "the input has changed" in refused.stderr


def test_lineage_through_shards(shards: Path) -> None:
    def tree() -> dict[str, Any]:
        return json.loads(rlaif("lineage", "c.jsonl", "--json", cwd=shards.parent).stdout)  # type: ignore[no-any-return]

    (shards / "p-1.jsonl.manifest.json").unlink()
    made = rlaif("data", "dedupe", "shards/p-0.jsonl", "-o", "shards/p-11.jsonl", cwd=shards.parent)
    assert made.returncode == 0, made.stderr
    (shards / "p-0.jsonl").unlink()
    generated = rlaif("generate", "shards/p-*", "--model", "fake", "-o", "c.jsonl", cwd=shards.parent)
    assert generated.returncode == 0, generated.stderr
    (prompts,) = (node for node in tree()["inputs"] if node["role"] == "prompts")
    assert prompts["name"] == "shards/p-*" and prompts["state"] == "as recorded"
    (made_alone,) = prompts["inputs"]
    assert (made_alone["role"], made_alone["state"]) == ("shard", "as recorded")
    assert made_alone["inputs"][0]["state"] == "missing"
    (shards / "p-10.jsonl.gz").unlink()
    assert next(node["state"] for node in tree()["inputs"] if node["role"] == "prompts") == "changed"


@pytest.mark.parametrize("pattern", ["{}", "{}/p-*", "file://{}", "file://{}/p-*.jsonl"])
def test_no_output_among_the_inputs(shards: Path, pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards)
    address = pattern.format(shards)
    with pytest.raises(ValueError, match="would replace an input"):
        check_outputs(DedupeConfig(records=address, output="p-99.jsonl"))
    for other in ("../p-99.jsonl", "sub.jsonl/p-99.jsonl", "p-99.rejected.jsonl"):
        check_outputs(DedupeConfig(records=address, output=other))
    with pytest.raises(ValueError, match="outputs must be local files"):
        check_outputs(DedupeConfig(records=address, output="s3://bucket/p-99.jsonl"))


# ------------------------------------------------------------------------------------------------ several processes


@pytest.fixture
def faulty(shards: Path) -> Path:
    """Shards with repeats and faults within and between them."""
    (shards / "p-0.jsonl").write_bytes(text(row(0), "{torn", row(5), {"prompt": "made"}, row(0)))
    (shards / "p-9.jsonl").write_bytes(text({"prompt": "made"}, row(0) | {"id": "other"}, {"no": 1}, row(20)))
    return shards


def test_two_workers_find_what_one_finds(faulty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # rejected lines go to the current folder

    def found(workers: int) -> Any:
        given: dict[str, Any] = {"records": str(faulty), "num_workers": workers, "skip_invalid": True}
        out = tmp_path / f"{workers}.jsonl"
        dedupe = DedupeConfig(**given, by="prompt", output=str(out))
        counts = stats.stats(StatsConfig(**given), "prompts"), dedupe_module.dedupe(dedupe, "prompts")
        manifest = json.loads((tmp_path / f"{workers}.jsonl.manifest.json").read_text())
        return validate_module.invalid_lines(ValidateConfig(**given), "prompts"), counts, out.read_bytes(), manifest

    one = found(1)
    assert found(2) == one
    good, faults = one[0]
    assert good == 22 and len(faults) == 5 and len([fault for fault in faults if "already used" in fault]) == 3


def test_the_command_with_two_workers_tells_faults_in_order(faulty: Path) -> None:
    done = [rlaif("data", "validate", str(faulty), "--num-workers", workers) for workers in "12"]
    assert done[0].returncode == done[1].returncode == 1
    assert done[0].stdout == done[1].stdout and done[0].stderr == done[1].stderr


def test_an_error_in_a_worker_is_told_as_one_of_ours(shards: Path) -> None:
    broken = shards / "p-4.jsonl.gz"
    broken.write_bytes(broken.read_bytes()[:-9])
    done = rlaif("data", "stats", str(shards), "--num-workers", "2")
    assert done.returncode == 1 and "p-4.jsonl.gz: cannot be decompressed" in done.stderr


def test_the_next_copy_removes_what_a_killed_command_left(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}

    def validate() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "rlaif_cli", "data", "stats", "-"]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)

    def folders() -> set[Path]:
        return {path.parent for path in tmp_path.glob("rlaif-*/rows.jsonl")}

    def wait_for(count: int) -> set[Path]:
        deadline = time.monotonic() + 60
        while len(found := folders()) < count:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return found

    killed = validate()
    (left,) = wait_for(1)
    killed.kill()
    killed.communicate(timeout=60)
    running = validate()
    while folders() == {left}:
        time.sleep(0.05)
    (of_running,) = wait_for(1)
    assert of_running != left, "what was left is gone"
    done = validate()
    done.communicate(b'{"id": "a", "prompt": "x"}\n', timeout=60)
    assert folders() == {of_running}, "what is in use stays, and what was used is gone"
    running.communicate(b'{"id": "a", "prompt": "x"}\n', timeout=60)
    assert running.returncode == done.returncode == 0 and not folders()


@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_workers_end_with_their_command(tmp_path: Path, stop: signal.Signals) -> None:
    for number in range(2):
        path = tmp_path / f"{number}.jsonl"
        path.write_bytes(text(*({"id": f"{number}.{i}", "prompt": "x" * 100} for i in range(80_000))))
    command = [sys.executable, "-m", "rlaif_cli", "data", "stats", str(tmp_path), "--num-workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)

    def children() -> list[str]:
        return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()

    deadline = time.monotonic() + 60
    while len(begun := children()) < 3:  # two workers, and what Python has beside them
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(stop)
    _, said = process.communicate(timeout=60)
    assert process.returncode == (130 if stop == signal.SIGINT else -signal.SIGKILL), said
    assert "Traceback" not in said
    while any(os.path.exists(f"/proc/{worker}") for worker in begun):
        assert time.monotonic() < deadline
        time.sleep(0.05)


# ------------------------------------------------------------------------------------------------ data shard


@pytest.mark.parametrize(
    ("size", "compress", "counts"),
    [({"rows": 9}, "zst", [9, 9, 4]), ({"rows": 22}, "gz", [22]), ({"megabytes": 1}, "none", [11, 11])],
)
def test_shards_of_a_size(shards: Path, size: dict[str, int], compress: Any, counts: list[int]) -> None:
    given = shards
    if "megabytes" in size:
        given = shards.parent / "large.jsonl"
        given.write_bytes(text(*(row(number) | {"text": "x" * 92_000} for number in range(22))))
    out = shards.parent / "out"
    config = ShardConfig(records=str(given), output=str(out), compress=compress, **size)
    assert shard(config) == {"rows": 22, "shards": len(counts)}
    found = inputs.files(str(out))
    ending = "" if compress == "none" else f".{compress}"
    total = f"{len(counts):05d}"
    assert [file.path.name for file in found] == [
        f"out-{number:05d}-of-{total}.jsonl{ending}" for number in range(len(counts))
    ]
    assert [sum(1 for _ in file.lines()) for file in found] == counts
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["sha256"] == manifest["settings"]["input_sha256"] == Source(str(given), PromptRecord).sha256
    assert ids(str(out)) == ids(str(given))


def test_a_folder_of_shards_is_replaced_only_by_another(shards: Path) -> None:
    out = shards.parent / "out"
    config = ShardConfig(records=str(shards), output=str(out), rows=11)
    shard(config)
    with pytest.raises(UsageError, match="exists"):
        shard(config)
    (out.parent / ".99999999.out").mkdir()  # of one that was killed
    shard(config.model_copy(update={"rows": 22, "overwrite": True}))
    assert len(list(out.glob("*.zst"))) == 1
    with pytest.raises(UsageError):
        shard(config.model_copy(update={"output": str(shards), "overwrite": True, "records": str(out)}))
    assert (shards / "README.txt").exists()
    assert sorted(path.name for path in shards.parent.iterdir()) == ["out", "shards"], "nothing is left over"


def test_a_folder_of_shards_that_was_changed_is_told(shards: Path) -> None:
    out = shards.parent / "out"
    shard(ShardConfig(records=str(shards), output=str(out), rows=11, compress="none"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids(str(out))
    first = out / "out-00000-of-00002.jsonl"
    first.write_bytes(first.read_bytes()[: -len(text(row(10)))])
    with pytest.warns(RlaifWarning, match="it was changed after it was made"):
        ids(str(out))


@pytest.mark.parametrize(("line", "said"), [(b"\xff", "line 2 is not UTF-8"), (b"x" * (33 << 20), "line 2 is longer")])
def test_what_cannot_be_copied_as_it_is_leaves_nothing(tmp_path: Path, line: bytes, said: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(text(row(1)) + line + b"\n")
    with pytest.raises(InputError, match=said):
        shard(ShardConfig(records=str(tmp_path / "in.jsonl"), output=str(tmp_path / "out"), rows=1))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
