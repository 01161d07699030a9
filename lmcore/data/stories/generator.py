"""The embedded story generator: the corpus of `configs/quickstart.yaml`, which needs no network and no download.

A story is a plot of `plots.yaml` with its slots filled: people with their pronouns, colours, things and places are
drawn once, and every sentence that mentions them again must agree. That agreement over the length of a story is what a
small model has to learn. Other modules need only `stories`; `tell` also returns the plot and the slots' values.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from itertools import product
from random import Random
from typing import NamedTuple, TypeVar

import yaml

EDITION = (
    "d0d96b126807ed781384b3f14ef20c581bedcad9447317b5fbb61cb4a7aec81f",
    "7136710cae1ab950822fb1d8381b48dc76c896984566cfc787eca0bb757d467e",
)
"""Version of the stories, part of a corpus's identity, so that a run is not resumed on other text. A test fails if the
stories change; this must then change too. (These are the digests of the files that first generated the stories.)"""
Option = TypeVar("Option")
Beat = tuple[tuple[str, ...], ...]
"""One step of a plot: the sentences it can be told with, each with its `[this|that]` spellings written out."""


class Plot(NamedTuple):
    """One kind of story, as in `plots.yaml`."""

    name: str
    thread: str
    worlds: tuple[str, ...]
    draws: dict[str, str]
    text: str


class World(NamedTuple):
    """Who lives in a story: names, the kinds of (female, male) heroes, and their homes."""

    girls: str
    boys: str
    kinds: tuple[str, str]
    homes: str


WORLDS = {
    "child": World(
        "Lily, Mia, Anna, Ruby, Zoe",
        "Tom, Tim, Ben, Max, Sam",
        ("girl", "boy"),
        "small house by the sea, white house on the hill, little village near the woods, busy town by the river, "
        "yellow house with a garden, brick house near the school, house beside the old mill",
    ),
    "animal": World(
        "Coco, Dotty, Poppy, Hazel",
        "Pip, Rusty, Finn, Bruno",
        ("fox, rabbit, mouse, squirrel, hedgehog, badger, kitten, raccoon",) * 2,
        "burrow under the hill, hollow tree by the river, hut made of sticks, hole under the oak tree, "
        "little house in the woods, warm den beside the stream",
    ),
}
ADULTS = (("mom", "grandma"), ("dad", "grandpa"))
TRAITS = "little, kind, happy, curious, cheerful, gentle, clever, friendly, young, small, merry, playful, sweet"


class Words(str):
    """The value of a slot: `{toy}` inserts it, `{toy.a}` with its indefinite article, `{toy.cap}` capitalized."""

    @property
    def a(self) -> str:
        return f"{'an' if self[0] in 'aeiou' else 'a'} {self}"

    @property
    def cap(self) -> str:
        return self[0].upper() + self[1:]


class Person(Words):
    """A name with its pronouns: `{hero}`, `{hero.he}`, `{hero.him}`, `{hero.his}`, `{hero.He}`, `{hero.His}`."""

    def __new__(cls, name: str, kind: str, female: bool) -> "Person":
        return super().__new__(cls, name)

    def __init__(self, name: str, kind: str, female: bool) -> None:
        self.kind = Words(kind)
        self.he, self.him, self.his = ("she", "her", "her") if female else ("he", "him", "his")
        self.himself = "herself" if female else "himself"
        self.He, self.His = self.he.capitalize(), self.his.capitalize()
        is_child = kind in ("girl", "boy")
        self.hand = "hand" if is_child else "paw"
        self.full = name if is_child else f"{name} the {kind}"


class Story(NamedTuple):
    """A story, its plot and the values of its slots."""

    text: str
    plot: Plot
    slots: Mapping[str, Words]


@cache
def plots() -> tuple[Plot, ...]:
    """Return all plots, with the opening paragraph in front of each text."""
    source = yaml.safe_load(files(__package__).joinpath("plots.yaml").read_text(encoding="utf-8"))
    return tuple(
        Plot(p["name"], p["thread"], tuple(p["worlds"]), p["draws"], source["opening"] + p["text"])
        for p in source["plots"]
    )


def stories(count: int, seed: int = 0) -> Iterator[str]:
    """Yield `count` stories; story i depends on (seed, i) alone, so a longer corpus begins with the shorter one."""
    for index in range(count):
        yield tell(seed, index).text


def tell(seed: int, index: int) -> Story:
    """Generate story `index` of the corpus `seed`.

    All draws use `Random.random`: seeded with a string, its sequence is the same in every version of Python,
    which `Random.choice` and `Random.shuffle` do not promise.
    """
    rng = Random(f"{seed}/{index}")
    plot = _choose(plots(), rng)
    slots = _fill_slots(plot, rng)
    paragraphs = (
        " ".join(_choose(_choose(beat, rng), rng).format_map(slots) for beat in paragraph)
        for paragraph in _paragraphs(plot.text)
    )
    return Story("\n\n".join(paragraphs), plot, slots)


def _choose(options: tuple[Option, ...], rng: Random) -> Option:
    return options[int(rng.random() * len(options))]


def _fill_slots(plot: Plot, rng: Random) -> dict[str, Words]:
    """Draw the people and the things of one story. Hero and friend differ in name and, among animals, in kind."""
    world = _choose(plot.worlds, rng)
    people = _people(world)
    hero = friend = _choose(people, rng)
    while friend == hero or friend.full.endswith(f" the {hero.kind}"):
        friend = _choose(people, rng)
    slots: dict[str, Words] = {"hero": hero, "friend": friend, "adult": _choose(_adults(), rng)}
    for names, options in (("trait", TRAITS), ("home", WORLDS[world].homes), *plot.draws.items()):
        slots |= zip(names.split("/"), _choose(_options(options), rng))
    return slots


@cache
def _people(world: str) -> tuple[Person, ...]:
    girls, boys, (female_kinds, male_kinds) = WORLDS[world].girls, WORLDS[world].boys, WORLDS[world].kinds
    return tuple(
        Person(name, kind, female)
        for names, kinds, female in ((girls, female_kinds, True), (boys, male_kinds, False))
        for name, kind in product(names.split(", "), kinds.split(", "))
    )


@cache
def _adults() -> tuple[Person, ...]:
    mothers, fathers = ADULTS
    return tuple(Person(name, name, name in mothers) for name in (*mothers, *fathers))


@cache
def _options(options: str) -> tuple[tuple[Words, ...], ...]:
    """Split the options of a draw: `"duckling/duck, lamb/sheep"` → `(("duckling", "duck"), ("lamb", "sheep"))`."""
    return tuple(tuple(Words(word) for word in option.split("/")) for option in options.split(", "))


@cache
def _paragraphs(text: str) -> tuple[tuple[Beat, ...], ...]:
    """Parse a plot's text, whose syntax `plots.yaml` explains."""
    return tuple(
        tuple(
            tuple(_spellings(line.strip()) for line in beat.strip().splitlines())
            for beat in re.split(r"^\* ", paragraph, flags=re.MULTILINE)
            if beat.strip()
        )
        for paragraph in text.replace("\n    ", " ").strip().split("\n\n")
    )


def _spellings(line: str) -> tuple[str, ...]:
    """Expand the alternatives of a line: `"a [big|small] dog"` → `("a big dog", "a small dog")`."""
    literals_and_choices = re.split(r"\[(.*?)\]", line)
    return tuple("".join(parts) for parts in product(*(part.split("|") for part in literals_and_choices)))
