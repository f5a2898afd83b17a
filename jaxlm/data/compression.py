"""Files as streams of bytes, decompressed as they are read."""

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

BLOCK = 2**17
SUFFIXES = (".gz", ".zst")


@contextmanager
def opened(file: Any) -> Iterator[IO[bytes]]:
    """The bytes of a .gz, a .zst or a plain file. Reading raises EOFError where one is cut off."""
    with file.open("rb") as raw:
        packed = Path(file.name.lower()).suffix
        if packed in SUFFIXES:
            if not raw.read(1):  # gzip's own reader takes it for one of an empty file
                raise EOFError("the file has no bytes, not even of compression; copy it again")
            raw.seek(0)
        if packed == ".gz":
            with gzip.open(raw) as stream:
                yield stream  # pyright: ignore[reportReturnType]
        elif packed == ".zst":
            yield io.BufferedReader(_Zstandard(raw))
        else:
            yield raw


class _Zstandard(io.RawIOBase):
    """zstandard's own reader takes a file that was cut off for one that ends there."""

    def __init__(self, raw: IO[bytes]):
        import zstandard

        self._raw, self._decompressor = raw, zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._rest = self._ready = b""

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with what is decompressed next; 0 at the end of the last frame."""
        while not self._ready:
            block = self._rest or self._raw.read(BLOCK)
            self._rest = b""
            if not block:
                if self._frame is not None:
                    raise EOFError("the file ends inside a compressed frame; copy it again")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._ready = self._frame.decompress(block)
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size
