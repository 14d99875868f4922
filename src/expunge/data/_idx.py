"""The IDX format of the MNIST family: a big-endian header of magic number and shape, then bytes."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

from expunge.base.errors import SpecError


def read_idx(path: Path) -> np.ndarray:
    """An array of uint8 from a gzip-compressed IDX file.

    Raises:
        SpecError: The file is not a gzip file, or its length does not match its header.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise SpecError(f"not a readable gzip file ({error})", where=str(path)) from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise SpecError("not an IDX file of bytes", where=str(path), allowed="magic number 0x000008nn")
    rank = raw[3]
    if len(raw) < 4 + 4 * rank:
        raise SpecError("truncated within its header", where=str(path))
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    if len(raw) - 4 - 4 * rank != int(np.prod(shape)):
        raise SpecError(f"truncated: the header says shape {shape}", where=str(path))
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)
