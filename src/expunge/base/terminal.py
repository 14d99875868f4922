"""Everything that expunge writes to a terminal: text from a spec or a record cannot control the terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata
from typing import TextIO

from expunge.base.errors import RunError

_KEPT = "\n\t"


def plain(text: str) -> str:
    """The text with control characters, changes of direction and halves of characters written as visible escapes.

    Line breaks and tabs stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in _KEPT or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def one_line(text: str) -> str:
    """The same, with line breaks and tabs as escapes too, for a cell of a table or the middle of a sentence."""
    return plain(text).replace("\n", "\\n").replace("\t", "\\t")


class OutputClosed(Exception):
    """The reader of stdout, such as `head`, needs no more."""


def _drop_output() -> None:
    """Let what is still in stdout's buffer go nowhere, so that Python does not complain about it when it exits."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str, *, error: bool = False) -> None:
    """Write lines to stdout, or to stderr.

    Raises:
        OutputClosed: The reader of stdout has closed it.
        RunError: Stdout cannot be written to, for example because it is a file on a full disk.
    """
    if error:
        # A message that cannot be shown must not change the exit code; a closed stderr is None.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            write(sys.stderr, text)
        return
    try:
        write(sys.stdout, text)
    except BrokenPipeError:
        _drop_output()
        raise OutputClosed from None
    except OSError as failure:
        raise RunError(f"cannot write the output ({failure.strerror})", where="stdout") from None


def write(stream: TextIO, text: str, *, end: str = "\n") -> None:
    """Write a text to a stream; what the stream cannot encode is written as escapes."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(plain(text).encode(encoding, "backslashreplace").decode(encoding) + end)
    stream.flush()
