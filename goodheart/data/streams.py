"""Bytes out of a file, whatever it is packed in (.gz, .zst), and text out of bytes, whatever is wrong with them.

A packed file that was cut off is an error, never a short file; bytes that are no UTF-8 become U+FFFD and are counted.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from goodheart.errors import DataError

PACKED = (".gz", ".zst")
REPLACEMENT = "\ufffd"
CHUNK = 1 << 20
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_LONE = re.compile("[\ud800-\udfff]")
# Everything that could move a terminal's cursor, change its colours or turn the direction of the text around.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def visible(text: str, limit: int = 120) -> str:
    """One line of `text` that is safe to print: at most `limit` characters, control characters shown as escapes."""
    cut = text[: limit + 1]
    shown = _UNSAFE.sub(lambda found: found.group().encode("unicode_escape", "surrogatepass").decode("ascii"), cut)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


class _Unzstd(io.RawIOBase):
    """Plain bytes of a .zst file. The package's own reader ends quietly where the file was cut; this one raises."""

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._file = file
        self._frame: Any = None
        self._packed = b""
        self._plain = memoryview(b"")
        self._bite = 1 << 8  # packed bytes taken at once, chosen so that about CHUNK plain bytes come of them

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            self._packed = self._packed or self._file.read(self._bite)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the compressed stream ends in the middle")
                return 0
            self._frame = self._frame or self._new_frame()
            self._plain = memoryview(self._frame.decompress(self._packed))
            if len(self._plain) > CHUNK:
                self._bite = max(64, self._bite // 2)
            elif len(self._plain) < CHUNK // 4:
                self._bite = min(CHUNK, self._bite * 2)
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        taken = min(len(buffer), len(self._plain))
        buffer[:taken] = self._plain[:taken]
        self._plain = self._plain[taken:]
        return taken

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open `path` for reading its unpacked bytes.

    Raises:
        DataError: the file cannot be opened, or its compression turns out damaged or cut off while it is read.
    """
    try:
        with _opened(path) as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(_damaged(path, error)) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] == "zstandard":
            raise DataError(_damaged(path, error)) from error
        raise


def _opened(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(_Unzstd(path.open("rb")), CHUNK)
    return path.open("rb", buffering=CHUNK)


def _damaged(path: Path, error: Exception) -> str:
    return f"{path}: the compressed file is damaged or cut off ({error}); fetch or write it again"


def lines(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Lines of a text file in constant memory: (number from 1, text with its line end, whether bytes were damaged).

    Only \\n ends a line; a byte order mark is dropped.
    """
    with open_bytes(path) as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                raw = without_mark(raw, path)
            text, damaged = decode(raw)
            yield number, text, damaged


def without_mark(raw: bytes, path: Path) -> bytes:
    """The first bytes of a file without its UTF-8 byte order mark; UTF-16 is refused."""
    if raw.startswith(_UTF16_MARKS):
        raise DataError(f"{path}: the file is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    return raw.removeprefix(_UTF8_MARK)


def decode(raw: bytes) -> tuple[str, bool]:
    """UTF-8 text of `raw`, and whether some bytes were invalid (each run of them becomes U+FFFD)."""
    try:
        return raw.decode("utf-8"), False
    except UnicodeDecodeError:
        return raw.decode("utf-8", "replace"), True


def contains(path: Path, needle: bytes) -> bool:
    """Whether the unpacked file holds `needle`; reads until the first hit."""
    with open_bytes(path) as file:
        tail = b""
        while chunk := file.read(CHUNK):
            if needle in tail + chunk:
                return True
            tail = chunk[-len(needle) :]
    return False


def mended(value: Any) -> tuple[Any, bool]:
    """A JSON value whose lone surrogates (`"\\ud83d"` without its half) became U+FFFD, and whether any did."""
    if isinstance(value, str):
        fixed = _LONE.sub(REPLACEMENT, value)
        return fixed, fixed != value
    if isinstance(value, list):
        pairs = [mended(item) for item in value]
        return [fixed for fixed, _ in pairs], any(hit for _, hit in pairs)
    if isinstance(value, dict):
        both = {mended(key)[0]: mended(item) for key, item in value.items()}
        return {key: fixed for key, (fixed, _) in both.items()}, any(hit for _, hit in both.values())
    return value, False
