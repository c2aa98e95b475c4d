"""Sets of texts at eight bytes per member: the ids of a million rows take 8 MB; a Python set takes 100."""

from __future__ import annotations

import hashlib
from array import array
from bisect import bisect_left
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def hash64(*texts: str) -> int:
    """64 bits of BLAKE2b, the same on every machine."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return int.from_bytes(digest.digest(), "big")


class HashSet:
    """A set of texts (or tuples of texts), each stored as its `hash64`.

    Among a million texts, two share a hash by chance with probability 3e-8 (n^2 / 2^65).
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._added = array("Q")  # in insertion order, with repeats
        self._sorted: array[int] | None = None
        for text in texts:
            self.add(text)

    def add(self, *texts: str) -> None:
        self._added.append(hash64(*texts))
        self._sorted = None

    def update(self, other: HashSet) -> None:
        self._added.extend(other._added)
        self._sorted = None

    def __contains__(self, text: str) -> bool:
        """Sorts if anything was added since the last lookup: add everything first, then look up."""
        if self._sorted is None:
            self._sorted = array("Q", np.unique(self._numbers()).tobytes())
        place = bisect_left(self._sorted, number := hash64(text))
        return place < len(self._sorted) and self._sorted[place] == number

    def __or__(self, other: HashSet) -> HashSet:
        union = HashSet()
        union._added = self._added + other._added
        return union

    def __len__(self) -> int:
        """How many distinct members."""
        return len(self.counts())

    @property
    def added(self) -> int:
        """How many were added, repeats included."""
        return len(self._added)

    def counts(self) -> NDArray[np.int64]:
        """How often each member was added, in arbitrary order."""
        return np.unique(self._numbers(), return_counts=True)[1]

    def codes(self) -> NDArray[np.int64]:
        """For every added text, in order, the index of its member, from 0."""
        return np.unique(self._numbers(), return_inverse=True)[1]

    def repeated(self) -> frozenset[int]:
        """The hashes of the members that were added more than once."""
        numbers, counts = np.unique(self._numbers(), return_counts=True)
        return frozenset(numbers[counts > 1].tolist())

    def _numbers(self) -> NDArray[np.uint64]:
        return np.frombuffer(self._added, dtype=np.uint64) if self._added else np.empty(0, np.uint64)
