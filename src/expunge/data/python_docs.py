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
    """Number of training windows, from the start of the text."""
    test: Count = 200
    """Number of test windows, from the end of the text."""
    context: Count = 64
    """Bytes per window."""

    def __call__(self) -> Data:
        """Load tokens `[n, context]` and targets shifted by one; training windows come first.

        Raises:
            SpecError: The text is too short for this many windows.
        """
        from pydoc_data.topics import topics

        text = "\n\n".join(topics[name] for name in sorted(topics)).encode("ascii", "replace")
        span = self.context + 1
        available = len(text) // span
        if self.train + self.test > available:
            raise SpecError(
                f"{self.train} + {self.test} windows of {span} bytes",
                where="data",
                allowed=f"{available} windows in all",
            )
        windows = torch.frombuffer(bytearray(text[: available * span]), dtype=torch.uint8).view(available, span).long()
        windows = torch.cat([windows[: self.train], windows[available - self.test :]])
        n = len(windows)
        return Data(windows[:, :-1], windows[:, 1:], torch.arange(self.train), torch.arange(self.train, n), VOCABULARY)
