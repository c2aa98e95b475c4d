"""Sets of texts at eight bytes a member: the ids of a million rows take 8 MB, where Python's own set takes 100."""

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
    """Texts (or tuples of them), each known by its `hash64`.

    Among a million texts, two share a hash by chance with probability 3e-8 (n^2 / 2^65).
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._added = array("Q")  # in the order of coming, repeats too
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
        """Sorts what came since the last question: made for adding all first, then asking."""
        if self._sorted is None:
            self._sorted = array("Q", np.unique(self._numbers()).tobytes())
        place = bisect_left(self._sorted, number := hash64(text))
        return place < len(self._sorted) and self._sorted[place] == number

    def __or__(self, other: HashSet) -> HashSet:
        union = HashSet()
        union._added = self._added + other._added
        return union

    def __len__(self) -> int:
        """How many different ones."""
        return len(self.counts())

    @property
    def added(self) -> int:
        """How many were added, repeats too."""
        return len(self._added)

    def counts(self) -> NDArray[np.int64]:
        """How often each of them was added, in no order of meaning."""
        return np.unique(self._numbers(), return_counts=True)[1]

    def codes(self) -> NDArray[np.int64]:
        """Of every text in the order of adding, the number of the member that it is, from 0."""
        return np.unique(self._numbers(), return_inverse=True)[1]

    def repeated(self) -> frozenset[int]:
        """The hashes of those that were added more than once."""
        numbers, counts = np.unique(self._numbers(), return_counts=True)
        return frozenset(numbers[counts > 1].tolist())

    def _numbers(self) -> NDArray[np.uint64]:
        return np.frombuffer(self._added, dtype=np.uint64) if self._added else np.empty(0, np.uint64)
