"""Which neurons of your model hold one class? A learned mask, how repeatable it is, and what relearning brings back."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import expunge
from expunge.attacks.relearn import Relearn
from expunge.methods.learned_mask import overlap, removed_units

CLASS, SEEDS, HIDDEN = 3, (0, 1, 2), 128
METHODS = {"learned_mask": {"layers": ["1"], "epochs": 20, "weight": 0.1}, "ssd": {"alpha": 1.5}}
METHODS |= {"balanced_subnet": {"share": 0.4, "epochs": 20}, "salun": {"epochs": 20, "learning_rate": 2e-3}}


def trained(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    """A classifier of digits; layer `1` has the neurons."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def main() -> None:
    """Unlearn one class by each method and seed; print what the class keeps, also after relearning."""
    torch.manual_seed(0)
    x, y = (torch.tensor(rows) for rows in load_digits(return_X_y=True))
    x, seen, held = x.float() / 16, torch.arange(len(x)) < 1200, y == CLASS
    model = trained(x[seen], y[seen])

    def accuracy(net: nn.Module, rows: torch.Tensor) -> float:
        return float((net.eval()(x[rows]).argmax(1) == y[rows]).float().mean())

    parts, masks = {"forget": seen & held, "retain": seen & ~held, "test": ~seen & ~held}, []
    data = {name: (x[rows], y[rows]) for name, rows in parts.items()}
    given = {"original": model, "retrained": trained(x[seen & ~held], y[seen & ~held])}
    print("method           class   others  class after relearning   (unseen images, mean over seeds)")
    for name, settings in ({name: {} for name in given} | METHODS).items():
        rows = []
        for seed in SEEDS:
            case = expunge.case(model, **data, seed=seed)
            net = given[name] if name in given else expunge.unlearn(case, name, **settings).model
            again = Relearn(k=10, epochs=20, learning_rate=2e-3)(net, case, seed).model
            rows.append([accuracy(net, ~seen & held), accuracy(net, ~seen & ~held), accuracy(again, ~seen & held)])
            masks += [removed_units(model, net, ["1"])["1"]] if name == "learned_mask" else []
        print(f"{name:<16} " + "    ".join(f"{value:.2f}" for value in torch.tensor(rows).mean(0).tolist()))
    sizes, common = [int(mask.sum()) for mask in masks], torch.stack(masks).all(0).nonzero().flatten().tolist()
    print(f"of {HIDDEN} neurons {sizes} go, overlap {overlap([{'1': mask} for mask in masks]):.2f}; always {common}")


if __name__ == "__main__":
    main()
