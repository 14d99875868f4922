"""Reads an `.npz` file of plain arrays; whatever its bytes are, the result is arrays or one message."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from expunge.base.errors import SpecError
from expunge.base.reading import require_file

ALLOWED = "an .npz file of plain arrays, as np.savez writes it"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1


def read_npz(path: Path, names: Sequence[str], *, where: str) -> dict[str, np.ndarray]:
    """Arrays of an `.npz` file, by name. Pickled objects could run code, so they are never loaded.

    Args:
        path: The file.
        names: The arrays to read; those that the file lacks are left out.
        where: Place of the path in the spec, for messages.

    Raises:
        SpecError: The file cannot be read; the message says why.
    """
    require_file(path, where=where)
    try:
        with zipfile.ZipFile(path) as packed:
            infos = [info for info in packed.infolist() if info.filename.removesuffix(".npy") in names]
            arrays = {info.filename.removesuffix(".npy"): _array(packed, info) for info in infos}
    except MemoryError:
        raise SpecError(f"{path} does not fit into memory", where=where, allowed=ALLOWED) from None
    except Exception as error:  # zipfile and numpy raise a dozen kinds of errors for damaged bytes
        reason = str(error) or type(error).__name__
        raise SpecError(f"{path} cannot be read ({reason})", where=where, allowed=ALLOWED) from None
    if len(arrays) != len(infos):
        raise SpecError(f"{path} holds two arrays of one name", where=where, allowed=ALLOWED)
    return arrays


def _array(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array; its header is compared with the file's size before any memory is reserved."""
    if info.flag_bits & _ENCRYPTED:
        raise ValueError(f"{info.filename} is encrypted")
    if info.compress_type not in _METHODS:
        raise ValueError(f"{info.filename} is compressed by method {info.compress_type}, not by deflate")
    with packed.open(info) as file:
        version = npy.read_magic(file)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
        if read_header is None:
            raise ValueError(f"{info.filename} has the format {version}")
        shape, _, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError(f"{info.filename} holds pickled objects")
        size = math.prod(shape) * dtype.itemsize
        if size != info.file_size - file.tell() or any(length < 0 for length in shape):
            raise ValueError(f"{info.filename} has {info.file_size} bytes, and its header says {list(shape)} {dtype}")
    with packed.open(info) as file:
        array: np.ndarray = npy.read_array(file, allow_pickle=False)
    return array
