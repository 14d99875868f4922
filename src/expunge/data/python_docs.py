"""Python's own reference texts (`pydoc_data.topics`, about 0.5 MB, PSF licence) as bytes, cut into windows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.core.contracts import Source
from expunge.core.data import Data

VOCABULARY = tuple(str(byte) for byte in range(256))


@dataclass(frozen=True)
class PythonDocs(Source):
    """Windows of bytes with the next byte as target."""

    train: Count = 1000
    """Training windows, from the front of the text."""
    test: Count = 200
    """Test windows, from its end."""
    context: Count = 64
    """Bytes per window."""

    def __call__(self) -> Data:
        """Tokens `[n, context]`, targets shifted by one, training windows first.

        Raises:
            SpecError: The text is too short for so many windows.
        """
        from pydoc_data.topics import topics

        text = "\n\n".join(topics[name] for name in sorted(topics)).encode("ascii", "replace")
        span = self.context + 1
        there = len(text) // span
        if self.train + self.test > there:
            raise SpecError(
                f"{self.train} + {self.test} windows of {span} bytes", where="data", allowed=f"{there} windows in all"
            )
        windows = torch.frombuffer(bytearray(text[: there * span]), dtype=torch.uint8).view(there, span).long()
        windows = torch.cat([windows[: self.train], windows[there - self.test :]])
        n = len(windows)
        return Data(windows[:, :-1], windows[:, 1:], torch.arange(self.train), torch.arange(self.train, n), VOCABULARY)
