"""Resolve model names to checkpoint folders that transformers and vLLM can load.

A name is one of: the built-in `smollm2-135m`, a `.gguf` file, a folder with a `config.json`, `org/name` on the
hub, or `fake` (a tiny random checkpoint). GGUF files are converted once, into the user's cache:

    <cache>/models/<file>-<sha256 of the file, 16 digits>/   a normal checkpoint and `rlaif-manifest.json`
    <cache>/hashes/<key>                                     sha256 of large files, so that each is read once

torch, transformers and huggingface_hub are imported only where they are needed: resolving a folder, or a
model that was converted before, takes milliseconds.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rlaif_cli.data.atomic import read_json
from rlaif_cli.errors import ModelError, RlaifError, UsageError
from rlaif_cli.models.gguf import builtin_file, check_gguf, converted_gguf, tiny_checkpoint
from rlaif_cli.models.metadata import MODEL_FILES
from rlaif_cli.models.names import BUILTIN, FAKE, HUB_NAME, known_hint

_ADAPTER_SUFFIXES = (".json", ".safetensors", ".bin")


def resolve_model(name: str, *, revision: str | None = None) -> Path:
    """Find the checkpoint folder for `name`; convert or download it first if needed.

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
        return tiny_checkpoint()
    if gguf := _gguf_of(name):
        return converted_gguf(gguf)
    if is_local:
        return _checked(Path(name).expanduser())
    return _checked(_from_hub(_hub_name(name), MODEL_FILES, revision))


def look_up(name: str) -> Path | None:
    """The folder with a model's config, without converting anything or downloading weights.

    Returns:
        None: `resolve_model` would make it from an existing file.

    Raises:
        ModelError: there is no such model, or it is incomplete.
    """
    if name == FAKE:
        return None
    if gguf := _gguf_of(name):
        check_gguf(gguf)
        return None
    folder = Path(name).expanduser()
    return _checked(folder) if folder.exists() else _from_hub(_hub_name(name), ("config.json",))


def _gguf_of(name: str) -> Path | None:
    """The GGUF file of a built-in model or of a file name; None for other names."""
    if name in BUILTIN:  # before paths: write ./smollm2-135m for a folder of that name
        return builtin_file(name)
    path = Path(name).expanduser()
    return path if path.exists() and not path.is_dir() else None


# --- folders and the hub ------------------------------------------------------------------------------------


def _checked(folder: Path) -> Path:
    """The absolute path of `folder`, if it holds a complete checkpoint."""
    where = str(folder)
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                "holds a LoRA adapter, not a full model",
                where=where,
                hint="merge it into its base model first",
            )
        ggufs = sorted(folder.glob("*.gguf"))
        hint = f"to use the GGUF file in it, give its path: {ggufs[0]}" if ggufs else None
        raise ModelError("is not a checkpoint: it has no config.json", where=where, hint=hint)

    for index in folder.glob("*.index.json"):
        shards = {str(shard) for shard in read_json(index, error=ModelError, weight_map=dict)["weight_map"].values()}
        if missing := sorted(s for s in shards if not (folder / s).is_file()):
            raise ModelError(f"{len(missing)} of {len(shards)} weight files are missing: {missing[0]} …", where=where)
    if beside := next((f.name for f in sorted(folder.glob("adapter_*")) if f.suffix in _ADAPTER_SUFFIXES), None):
        raise ModelError(
            f"holds a full model and a LoRA adapter ({beside}): is the adapter to be applied, or already merged?",
            where=where,
            hint="move the adapter_* files to a folder of their own; to use it, merge it into its base model first",
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = next(folder.glob("*.bin"), None)
        raise ModelError(
            f"its weights are pickled ({pickled.name})" if pickled else "has a config.json but no weights",
            where=where,
            hint="only *.safetensors are loaded, since a pickle can run any code; "
            "convert a model that you trust with transformers' save_pretrained",
        )
    for file in weights:
        _check_whole(file)
    return folder.resolve()


def _check_whole(weights: Path) -> None:
    """Check that a safetensors file can be opened and has the size that its header says; no tensor is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        hint = "was it copied or downloaded completely?"
        raise ModelError(f"not a complete safetensors file: {error}", where=str(weights), hint=hint) from error


def _hub_name(name: str) -> str:
    if not HUB_NAME.fullmatch(name) or name.lower().endswith(".gguf"):
        raise ModelError("no such model: not a built-in name, a file or a folder", where=name, hint=known_hint(name))
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
        hint = f"{known_hint(name)} (a private model needs `hf auth login`)"
        raise ModelError("no such model on the hub, and no such folder here", where=name, hint=hint) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"the hub has no revision '{revision}' of it", where=name) from error
    except errors.LocalEntryNotFoundError as error:
        offline = isinstance(error.__cause__, errors.OfflineModeIsEnabled)
        why = "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached ({error.__cause__})"
        raise ModelError(
            f"no such folder here, it was not downloaded before, and {why}",
            where=name,
            hint=known_hint(name),
        ) from error
    except Exception as error:  # a proxy, a certificate, a full disk: the hub's client has no common base class
        what = f"cannot be downloaded: {type(error).__name__}: {error}"
        raise ModelError(what, where=name, hint=known_hint()) from error


def _main(argv: list[str]) -> int:
    """`python -m rlaif_cli.models.resolve NAME`: prints only the checkpoint's folder on stdout."""
    if len(argv) != 1:
        print("usage: python -m rlaif_cli.models.resolve NAME", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        print(resolve_model(argv[0]))
    except RlaifError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
