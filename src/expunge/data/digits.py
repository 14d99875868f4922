"""Handwritten digits: 1,797 images of 8 x 8 from scikit-learn (BSD licence; UCI, 1998)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from expunge.base.errors import SpecError
from expunge.base.part import Count
from expunge.core.contracts import Source
from expunge.core.data import Data


@dataclass(frozen=True)
class Digits(Source):
    """Ten digits, 8 x 8."""

    train: Count = 1200
    """Number of training images, the first in scikit-learn's order; the rest is the test set."""
    test: Count | None = None
    """Use only this many test images, the first ones."""

    def __call__(self) -> Data:
        """Load the images, `[n, 1, 8, 8]` in [0, 1], in scikit-learn's order.

        Raises:
            SpecError: No image is left for the test set.
        """
        from sklearn.datasets import load_digits

        bunch = load_digits()
        n = len(bunch.images)
        if self.train >= n:
            raise SpecError(f"{self.train} training images", where="data.train", allowed=f"1 to {n - 1}")
        last = n if self.test is None else min(self.train + self.test, n)
        images = torch.from_numpy(bunch.images[:last].astype(np.float32) / 16).unsqueeze(1)
        targets = torch.from_numpy(bunch.target[:last].astype(np.int64))
        labels = tuple(str(digit) for digit in range(10))
        return Data(images, targets, torch.arange(self.train), torch.arange(self.train, last), labels)
