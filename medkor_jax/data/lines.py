"""A file as text and as lines, in its own encoding, or why it is none.

    with open_text(pathlib.Path("train.csv.gz"), Tally()) as file:
        for line in lines_of(file): ...

By the rule and not by guess: a line ends at LF or CRLF alone, a byte order mark names the encoding and is not text. Bytes
that are not UTF-8 stay as lone surrogates, so that the row that holds them can be named.
"""

from __future__ import annotations

import codecs
import gzip
import io
import pathlib
from collections.abc import Iterator
from typing import Any

from medkor_jax.data.notes import Tally

Row = dict[str, Any]

_HEAD = 2**16  # bytes looked at before a file is read


class UnreadableFile(ValueError):
    """Why a whole file cannot be read."""


def open_text(path: pathlib.Path, tally: Tally) -> io.TextIOWrapper:
    """Returns the file as text in its own encoding, its lines ended by LF only (see `lines_of`).

    Raises: UnreadableFile for what is neither UTF-8 nor UTF-16 with a byte order mark, and for lines that end in CR.
    """
    binary = gzip.open(path) if path.name.endswith(".gz") else open(path, "rb")
    head = binary.read(_HEAD)
    binary.seek(0)
    encoding, errors = "utf-8-sig", "surrogateescape"
    wrong = ""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        wrong = "is UTF-32; save it as UTF-8"
    elif head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding, errors = "utf-16", "replace"
        tally.say("the file is UTF-16, read as such")
    elif b"\0" in head:
        wrong = "holds zero bytes: UTF-16 without a byte order mark, or no text at all; save it as UTF-8"
    elif head.count(b"\r") > 1 and b"\n" not in head:
        wrong = "ends its lines in CR alone (old Macintosh); lines end in LF or CRLF: save it with those"
    if wrong:
        binary.close()
        raise UnreadableFile(wrong)
    return io.TextIOWrapper(binary, encoding, errors=errors, newline="\n")


def lines_of(file: io.TextIOBase) -> Iterator[str]:
    """Yields the lines without their ends, LF or CRLF; a CR elsewhere is a character like others."""
    for line in file:
        yield line.removesuffix("\n").removesuffix("\r")
