"""(a) Your own module, your own training script: 40 wrong labels are taken out of a digit classifier."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

import expunge


def build() -> nn.Module:
    """Return a fresh model; initial weights come from torch's global generator, which expunge seeds."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


def train(model: nn.Module, dataset: torch.utils.data.Dataset) -> None:
    """Train on any map-style data set; knows nothing of expunge."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        for x, y in DataLoader(dataset, batch_size=64, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def main() -> None:
    """Train, unlearn, audit, report."""
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.images / 16).float(), torch.tensor(digits.target)
    y[:40] = (y[:40] + 1 + torch.arange(40) % 9) % 10  # the labels that turned out to be wrong
    forget, retain = TensorDataset(x[:40], y[:40]), TensorDataset(x[40:440], y[40:440])
    test = TensorDataset(x[440:1200], y[440:1200])
    model = build()
    train(model, ConcatDataset([forget, retain]))

    case = expunge.case(model, forget=forget, retain=retain, test=test, recipe=expunge.recipe(build, train))
    done = expunge.unlearn(case, "random_relabel", epochs=5, learning_rate=1e-3)
    result = expunge.audit(done, case)
    print(result)
    print(expunge.report(result, "own_model.html"))


if __name__ == "__main__":
    main()
