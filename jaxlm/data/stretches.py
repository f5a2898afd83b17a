"""Ids in several files, read as one array."""

from collections.abc import Sequence

import numpy as np


class Stretches:
    """Stretches of arrays after one another: what a memory-mapped array is, over many files.

    arrays: each [T_f] of one dtype. file [n], start [n], size [n], int64: stretch i is
    arrays[file[i]][start[i] : start[i] + size[i]]. Reading gives arrays in memory.
    """

    def __init__(
        self, arrays: Sequence[np.ndarray], file: np.ndarray, start: np.ndarray, size: np.ndarray
    ):
        real = size > 0
        self._arrays, self._file, self._start = tuple(arrays), file[real], start[real]
        self._ends = np.cumsum(size[real])
        self._before = self._ends - size[real]
        self.size = int(self._ends[-1]) if self._ends.size else 0
        self.dtype = np.dtype(arrays[0].dtype if arrays else np.uint16)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, at: int | slice | np.ndarray) -> np.ndarray:
        """Those at one place, in a slice of step 1, or at an array of places of any shape."""
        if isinstance(at, slice):
            first, last, step = at.indices(self.size)
            return self[np.arange(first, last, step)]
        places = np.asarray(at)
        if places.size and (places.min() < -self.size or places.max() >= self.size):
            raise IndexError(f"{int(places.max())} is outside {self.size} ids")
        places = np.where(places < 0, places + self.size, places)
        stretch = np.searchsorted(self._ends, places, side="right")
        file, inside = self._file[stretch], self._start[stretch] + places - self._before[stretch]
        found = np.empty(places.shape, self.dtype)
        for each in np.unique(file):
            chosen = file == each
            found[chosen] = self._arrays[each][inside[chosen]]
        return found if found.ndim else found[()]
