"""Files of workloads: whether they are there, unpacked, as text, and JSON in them with the place of what is none."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import IO, cast

from simbatch.sim.errors import NOTHING, Problem, UserError
from simbatch.sim.files import is_dangling, shorten_path, stat_of

_PACKED: dict[bytes, Callable[[Path], object]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zX": lzma.open}
_ZSTD = b"\x28\xb5\x2f\xfd"
_MAGIC = {
    b"PK\x03\x04": "a zip archive or a spreadsheet: unpack it first, or save it as CSV",
    b"\xff\xfe": "UTF-16: save it as UTF-8",
    b"\xfe\xff": "UTF-16: save it as UTF-8",
}
_PUBLIC = {  # traces that shipped scenarios and pages name, and who publishes them
    "AzureLLMInferenceTrace_conv.csv": "github.com/Azure/AzurePublicDataset (folder data)",
    "AzureLLMInferenceTrace_code.csv": "github.com/Azure/AzurePublicDataset (folder data)",
}


def check_file(path: Path, place: str) -> None:
    """UserError at `place` unless `path` is a file that can be read."""
    there = stat_of(path)
    if there is not None and stat.S_ISDIR(there.st_mode):
        raise UserError(Problem(place, "is a folder, not a trace", str(path), "name a file in it"))
    if there is not None and not stat.S_ISREG(there.st_mode):
        rule = "is a pipe or a device, and a trace is read more than once"
        raise UserError(Problem(place, rule, str(path), "save it as a file first"))
    if there is not None:
        try:
            path.open("rb").close()
        except OSError as error:
            raise UserError(
                Problem(place, f"cannot be read: {error.strerror}", str(path), "check who may read it")
            ) from None
        return
    if is_dangling(path):
        raise UserError(Problem(place, "is a link that leads to no file", str(path), "mend the link"))
    near = get_close_matches(path.name, _siblings(path), n=1)
    otherwise = "check the path" if place == str(path) else "a relative path is taken from the scenario's folder"
    if path.name in _PUBLIC:
        otherwise = f"get it from {_PUBLIC[path.name]} and say where it is: --set workload.trace.path=FILE"
    mend = f"did you mean {near[0]}?" if near else otherwise
    value = NOTHING if place == str(path) else str(path)
    raise UserError(Problem(shorten_path(place), "there is no such file", value, mend))


def _siblings(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    except (OSError, ValueError):
        return []


def open_binary(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked (gzip, bzip2, xz, zstd); UserError for other packed files and encodings."""
    with path.open("rb") as file:
        head = file.read(4)
    for magic, unpacked in _PACKED.items():
        if head.startswith(magic):
            return cast("IO[bytes]", unpacked(path))
    if head.startswith(_ZSTD):
        import pyarrow as pa

        return cast("IO[bytes]", io.BufferedReader(pa.input_stream(path, compression="zstd")))
    found = next((what for magic, what in _MAGIC.items() if head.startswith(magic)), None)
    if found is not None:
        kind, _, mend = found.partition(": ")
        raise UserError(Problem(f"{path}:1", f"must be UTF-8 text, and is {kind}", head, mend))
    return path.open("rb")


def open_text(path: Path, newline: str | None = None) -> IO[str]:
    """The file's text, unpacked, without a byte order mark."""
    return io.TextIOWrapper(open_binary(path), encoding="utf-8-sig", newline=newline)


@contextmanager
def text_errors(path: Path) -> Iterator[None]:
    """Turn bytes that are not UTF-8, and packed files that are cut off, into a UserError with their line."""
    try:
        yield
    except UnicodeDecodeError:
        raise UserError(_not_text(path)) from None
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(Problem(str(path), f"cannot be unpacked: {error}", mend="fetch the file again")) from None


def _not_text(path: Path) -> Problem:
    with open_binary(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                bad = error.object[error.start : error.start + 1]
                return Problem(
                    f"{path}:{number}", "must be UTF-8 text, and a byte here is not", bad, "save it as UTF-8"
                )
    return Problem(f"{path}", "must be UTF-8 text", mend="save it as UTF-8")


class BadValueError(ValueError):
    """A value that breaks a rule."""

    def __init__(self, rule: str, mend: str = "") -> None:
        super().__init__(rule)
        self.rule, self.mend = rule, mend
