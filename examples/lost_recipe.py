"""(d) The training recipe is lost: nothing can be retrained, so the verdict can accuse but never acquit."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import expunge

digits = load_digits()
X, Y = torch.tensor(digits.images / 16).float(), torch.tensor(digits.target)


def wrong(y: torch.Tensor) -> torch.Tensor:
    """Labels that are wrong in the same manner as those to be forgotten."""
    return (y + 1 + torch.arange(len(y)) % 9) % 10


def somebody_elses_model() -> nn.Module:
    """Stand in for a file of weights; how it was trained is not known to what follows."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
    y = torch.cat([wrong(Y[:40]), Y[40:440]])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(model(X[:440]), y).backward()
        optimizer.step()
    return model


def main() -> None:
    """Unlearn in two ways; one is caught, and the other is not cleared."""
    torch.manual_seed(0)
    case = expunge.case(
        somebody_elses_model(),
        forget=(X[:40], wrong(Y[:40])),
        retain=(X[40:440], Y[40:440]),
        test=(X[440:1200], Y[440:1200]),
        holdout=(X[1200:1300], wrong(Y[1200:1300])),  # never trained on, wrong in the same manner
    )
    for done in (
        expunge.unlearn(case, "finetune", epochs=2),
        expunge.unlearn(case, "weight_distortion", sigma=0.3, epochs=40, learning_rate=1e-2),
    ):
        result = expunge.audit(done, case)
        print(result.verdict.model, *result.verdict.reasons, sep="\n  ", end="\n\n")


if __name__ == "__main__":
    main()
