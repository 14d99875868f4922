"""(b) A Hugging Face image classifier: a tiny ViT, built from its configuration, forgets 25 wrong labels."""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset
from transformers import ViTConfig, ViTForImageClassification

import expunge


class Digits(Dataset):
    """Items as image processors make them: `pixel_values` and `labels`."""

    def __init__(self, wrong: int) -> None:
        digits = load_digits()
        self.pixels = torch.tensor(digits.images / 16).float()[:, None]
        self.labels = torch.tensor(digits.target)
        self.labels[:wrong] = (self.labels[:wrong] + 1 + torch.arange(wrong) % 9) % 10

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


def build() -> ViTForImageClassification:
    """Return a fresh model; for one of yours, `from_pretrained(path)` gives the original, `_from_config` this."""
    shape = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10}
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTForImageClassification(ViTConfig(**shape, **size))


def train(model: ViTForImageClassification, dataset: Dataset) -> None:
    """Train with the model's own loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        for batch in DataLoader(dataset, batch_size=64, shuffle=True):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()


def main() -> None:
    """Train, unlearn, audit, and save what transformers can load again."""
    torch.manual_seed(0)
    digits = Digits(wrong=25)
    forget, retain, test = (Subset(digits, range(*ends)) for ends in ((0, 25), (25, 225), (225, 700)))
    model = build()
    train(model, ConcatDataset([forget, retain]))

    case = expunge.case(model, forget=forget, retain=retain, test=test, recipe=expunge.recipe(build, train))
    done = expunge.unlearn(case, "npo", epochs=10, learning_rate=1e-3)
    print(expunge.audit(done, case))
    done.model.save_pretrained("unlearned_vit")


if __name__ == "__main__":
    main()
