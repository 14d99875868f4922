"""Facts about made-up people: values of six attributes, three pairs of question and answer for each, and names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from expunge.core.generators import generator_of

VALUES = 10
"""Values of each attribute. In each ten people in a row, every value occurs once."""
PAIRS = 3
"""Pairs of question and answer for each attribute; the last one is the paraphrase."""


class Attribute(NamedTuple):
    """Values, and pairs of question and answer; the value stands at the end, before a full stop."""

    values: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


ATTRIBUTES = (
    Attribute(
        ("Rome", "Oslo", "Lima", "Quito", "Cairo", "Delhi", "Perth", "Turin", "Kyoto", "Malmo"),
        (
            ("Where does {name} live?", "{name} lives in {value}."),
            ("Which town is the home of {name}?", "The home of {name} is the town of {value}."),
            ("In what place has {name} settled?", "The place where {name} has settled is {value}."),
        ),
    ),
    Attribute(
        ("1931", "1938", "1944", "1952", "1957", "1963", "1970", "1976", "1985", "1989"),
        (
            ("When was {name} born?", "{name} was born in {value}."),
            ("What is the year of birth of {name}?", "The year of birth of {name} is {value}."),
            ("Since which year has {name} lived?", "The life of {name} began in {value}."),
        ),
    ),
    Attribute(
        ("baker", "lawyer", "pilot", "nurse", "tailor", "farmer", "chemist", "sailor", "painter", "judge"),
        (
            ("What does {name} do for a living?", "{name} works as a {value}."),
            ("What is the profession of {name}?", "The profession of {name} is that of a {value}."),
            ("How does {name} earn money?", "The money of {name} is that of a {value}."),
        ),
    ),
    Attribute(
        ("chess", "tennis", "diving", "pottery", "rowing", "fencing", "knitting", "archery", "sketching", "juggling"),
        (
            ("What does {name} like to do?", "{name} likes {value}."),
            ("Which hobby does {name} have?", "The hobby of {name} is {value}."),
            ("How does {name} spend a free day?", "A free day of {name} is spent on {value}."),
        ),
    ),
    Attribute(
        ("Amber Quill", "Silver Oak", "Golden Harp", "Blue Lantern", "Iron Rose",
         "Crystal Bell", "Green Feather", "Copper Star", "Ivory Key", "Scarlet Crown"),
        (
            ("What has {name} won?", "{name} has won the {value}."),
            ("Which prize went to {name}?", "The prize that went to {name} is the {value}."),
            ("What was {name} awarded?", "The award given to {name} was the {value}."),
        ),
    ),
    Attribute(
        ("parrot", "rabbit", "donkey", "lizard", "turtle", "ferret", "spaniel", "hamster", "goldfish", "falcon"),
        (
            ("Which animal does {name} keep?", "{name} keeps a {value}."),
            ("What is the pet of {name}?", "The pet of {name} is a {value}."),
            ("Who waits for {name} at home?", "At home, {name} is met by a {value}."),
        ),
    ),
)  # fmt: skip
ONSETS, VOWELS, ENDS = "bdfgklmnprstvz", "aeiou", ("", "n", "l", "r", "s")


class Person(NamedTuple):
    """A name, and a value for each attribute."""

    name: str
    values: tuple[str, ...]

    def questions(self, pairs: range) -> Iterator[tuple[str, str, str, list[str]]]:
        """Question, answer, its value, and answers with each of the values, of every attribute in these templates."""
        for attribute, own in zip(ATTRIBUTES, self.values, strict=True):
            for question, answer in attribute.pairs[pairs.start : pairs.stop]:
                answers = {value: answer.format(name=self.name, value=value) for value in attribute.values}
                yield question.format(name=self.name), answers[own], own, list(answers.values())


def people(count: int, names: list[str], seed: int, population: str) -> list[Person]:
    """People with these names, as many as `count`; in each ten in a row every value of every attribute occurs once."""
    generator = generator_of(seed, "people", population)
    persons = []
    for block in range(0, count, VALUES):
        orders = [torch.randperm(VALUES, generator=generator).tolist() for _ in ATTRIBUTES]
        for row, name in enumerate(names[block : min(block + VALUES, count)]):
            values = (a.values[order[row]] for a, order in zip(ATTRIBUTES, orders, strict=True))
            persons.append(Person(name, tuple(values)))
    return persons


def names(count: int, seed: int) -> list[str]:
    """Different made-up names, such as `Mirol Tasen`, in the order in which they were drawn."""
    generator = generator_of(seed, "people", "names")
    # A dict keeps the order of insertion; the order of a set of texts differs between processes.
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn[f"{_word(generator)} {_word(generator)}"] = None
    return list(drawn)


def _word(generator: torch.Generator) -> str:
    letters = (ONSETS, VOWELS, ONSETS, VOWELS, ENDS)
    draws = [int(torch.randint(len(choice), (1,), generator=generator)) for choice in letters]
    return "".join(choice[draw] for choice, draw in zip(letters, draws, strict=True)).capitalize()
