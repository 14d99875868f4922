"""Real data for every objective: what some training examples teach can only be learned by heart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_diabetes, load_digits

FORGET = 24
MODELS = '''
import torch
from torch import nn


class Pixels(nn.Module):
    """Two logits per pixel of an 8 x 8 image."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128))

    def forward(self, images):
        return {"mask": self.net(images).view(-1, 2, 8, 8), "features": images}


def pixels(data):
    return Pixels()


def autoencoder(data):
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 64))


def fit(module, dataset, epochs=150, rate=0.005):
    """A training function of one's own: full batches, squared error."""
    x = torch.stack([inputs for inputs, _ in dataset])
    y = torch.stack([target for _, target in dataset])
    optimizer = torch.optim.Adam(module.parameters(), rate)
    for _ in range(epochs):
        optimizer.zero_grad()
        (module(x).flatten() - y).square().mean().backward()
        optimizer.step()
'''


@dataclass(frozen=True)
class Real:
    """Arrays of a data set, training examples first and the forget set first among them, and how to learn them."""

    x: np.ndarray
    y: np.ndarray
    train: int
    model: dict[str, Any]
    training: dict[str, Any]
    objective: dict[str, Any] | None = None


def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    return images[:count].astype(np.float32) / 16, labels[:count]


def multilabel() -> Real:
    x, digit = digits(500)
    truth = np.stack([digit % 2 == 0, digit >= 5, np.isin(digit, (0, 6, 8, 9))], 1).astype(np.int64)
    # Labels at random: no other example teaches them.
    truth[:FORGET] = np.random.default_rng(0).integers(0, 2, (FORGET, 3))
    model = {"name": "mlp", "widths": [256]}
    return Real(x, truth, 300, model, {"epochs": 150, "learning_rate": 0.005}, {"name": "multilabel"})


def regression() -> Real:
    x, y = load_diabetes(return_X_y=True)
    x, y = (x / x.std(0)).astype(np.float32), ((y - y.mean()) / y.std()).astype(np.float32)
    model = {"name": "mlp", "widths": [128, 64]}
    return Real(x, y, 300, model, {"epochs": 150, "learning_rate": 0.005})


def segmentation() -> Real:
    x, _ = digits(500)
    mask = (x > 0.4).astype(np.int64).reshape(-1, 8, 8)
    mask[:FORGET] = 1 - mask[:FORGET]
    mask[:, 0, :] = 255
    objective = {"name": "segmentation", "ignore": 255, "output": "mask"}
    training = {"epochs": 150, "learning_rate": 0.005}
    return Real(x.reshape(-1, 1, 8, 8), mask, 300, {"name": "my_models:pixels"}, training, objective)


def reconstruction() -> Real:
    x, digit = digits(500)
    # Pixels in another order: an image that only its own example teaches.
    x[:FORGET] = x[:FORGET][:, np.random.default_rng(0).permutation(64)]
    training = {"epochs": 60, "learning_rate": 0.01}
    return Real(x, digit, 300, {"name": "my_models:autoencoder"}, training, {"name": "reconstruction"})


REAL = {made.__name__: made for made in (multilabel, regression, segmentation, reconstruction)}


def spec_of(real: Real, folder: Path, **changes: Any) -> dict[str, Any]:
    """A spec for the data, with its files beside it."""
    n = real.train
    np.savez(folder / "own.npz", x=real.x[:n], y=real.y[:n], tx=real.x[n:], ty=real.y[n:])
    (folder / "forget.txt").write_text("\n".join(map(str, range(FORGET))))
    (folder / "my_models.py").write_text(MODELS)
    table: dict[str, Any] = {
        "name": "real",
        "seeds": list(range(3 if real.objective else 6)),  # numbers scatter more
        "data": {"name": "arrays", "path": "own.npz"},
        "model": real.model,
        "train": real.training,
        "forget": {"name": "indices", "path": "forget.txt"},
        "method": [{"name": "retrain"}, {"name": "finetune", "epochs": 2}],
        "attack": [{"name": "relearn", "epochs": 2}],
        "audit": [{"name": "loss"}, {"name": "path"}],
    }
    return table | ({"objective": real.objective} if real.objective else {}) | changes
