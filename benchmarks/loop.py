"""Our training loop against the plainest PyTorch loop that takes the same steps (aim: at most 1.05).

Both train the demo's CNN for one epoch on 5,000 Fashion-MNIST images from the same initial weights in the same order,
and must end with the same weights to the bit: otherwise the comparison would mean nothing.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from benchmarks._ratio import compare
from expunge.core.modules import state_digest
from expunge.data.fashion_mnist import FashionMNIST
from expunge.models.cnn import CNN
from expunge.train.training import TrainedRecipe, Training

AIM = 1.05


def main(repeats: int = 7) -> None:
    torch.set_num_threads(1)
    data = FashionMNIST(train=5000)()
    recipe = TrainedRecipe(CNN(), Training(epochs=1), data)

    def ours() -> torch.nn.Module:
        return recipe.fit(recipe.build(0), data, data.train, 0)

    def plain() -> torch.nn.Module:
        model, inputs, targets = recipe.build(0).train(), data.inputs, data.targets
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, fused=True)
        generator = torch.Generator().manual_seed(0)
        for chunk in torch.randperm(5000, generator=generator).split(128):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs[chunk]), targets[chunk])
            loss.backward()
            optimizer.step()
        return model

    same = state_digest(ours()) == state_digest(plain())
    ratio = compare(ours, plain, repeats)
    print(f"loop        {ratio}; aim {AIM}; {'same weights to the bit' if same else 'DIFFERENT weights'}")


if __name__ == "__main__":
    main()
