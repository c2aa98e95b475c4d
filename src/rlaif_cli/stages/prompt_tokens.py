"""The tokens of an input's prompts, kept from the check of the input until the prompts are sampled from."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from tempfile import SpooledTemporaryFile, gettempdir

from rlaif_cli.errors import RlaifError

_IN_MEMORY = 1 << 26  # bytes, four per token; the rest goes to a temporary file


class PromptTokens:
    """Token ids of prompts, in order; read in the order in which they were added, as often as wanted."""

    def __init__(self) -> None:
        self._file = SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115 - closed in `close`
        self._lengths = array("I")

    def add(self, ids: Sequence[int]) -> None:
        try:
            self._file.write(array("I", ids).tobytes())
        except OSError as error:
            hint = "free some space in the temporary folder, or choose another one (TMPDIR)"
            raise RlaifError(f"cannot be written: {error.strerror}", where=gettempdir(), hint=hint) from error
        self._lengths.append(len(ids))

    def clear(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        del self._lengths[:]

    def close(self) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[list[int]]:
        self._file.seek(0)
        for length in self._lengths:
            ids = array("I")
            ids.frombytes(self._file.read(length * ids.itemsize))
            yield ids.tolist()
