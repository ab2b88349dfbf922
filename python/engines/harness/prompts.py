"""Prompts, the same for the same seed: plain English of no meaning, cut to an exact number of
tokens."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.engine import PAGE, Prompt

NOUNS = (
    "harbour",
    "teacher",
    "engine",
    "forest",
    "letter",
    "kitchen",
    "river",
    "window",
    "market",
    "garden",
    "winter",
    "captain",
    "library",
    "mountain",
    "machine",
    "village",
    "doctor",
    "station",
    "painter",
    "bridge",
)
VERBS = (
    "watches",
    "repairs",
    "remembers",
    "follows",
    "describes",
    "finds",
    "crosses",
    "opens",
    "leaves",
    "builds",
)
ADJECTIVES = (
    "old",
    "quiet",
    "bright",
    "narrow",
    "patient",
    "distant",
    "heavy",
    "gentle",
    "broken",
    "early",
)
PLACES = (
    "near the coast",
    "after the rain",
    "behind the wall",
    "in the north",
    "before noon",
    "at the corner",
)


class Writer:
    """Writes text and cuts it to tokens of one model."""

    def __init__(self, model: Path, seed: int) -> None:
        from transformers import AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self.seed = seed

    def tokens(self, name: str, count: int) -> tuple[int, ...]:
        """`count` tokens of the text called `name`; a longer one begins with the shorter one."""
        source = random.Random(f"{self.seed} {name}")
        # The beginning names the text: no two texts share a page.
        words = [f"Chapter {source.randrange(10**9)}."]
        found: list[int] = []
        while len(found) < count:
            words += [self._sentence(source) for _ in range(count // 8 + 8)]
            found = self.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
        return tuple(found[:count])

    @staticmethod
    def _sentence(source: random.Random) -> str:
        number = f" {source.randrange(2, 90)} times" if source.random() < 0.3 else ""
        return (
            f"The {source.choice(ADJECTIVES)} {source.choice(NOUNS)} {source.choice(VERBS)} the "
            f"{source.choice(ADJECTIVES)} {source.choice(NOUNS)}{number} {source.choice(PLACES)}."
        )


@dataclass(frozen=True)
class Case:
    """A family of prompts: some are computed and stored, then others are asked for."""

    name: str
    stored: list[Prompt]
    asked: list[Prompt] = field(default_factory=list)


class Cases:
    """Builds cases around the boundaries of pages."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer

    def same(self, pages: int, beside: int) -> Case:
        """The very prompt again, which ends at, just before or just after a page's end."""
        name = f"same-{pages}{beside:+d}"
        prompt = Prompt(self.writer.tokens(name, PAGE * pages + beside))
        return Case(name, [prompt], [prompt])

    def longer(self, pages: int, beside: int, more: int) -> Case:
        """A prompt that goes on after a stored one."""
        name = f"longer-{pages}{beside:+d}-{more}"
        tokens = self.writer.tokens(name, PAGE * pages + beside + more)
        return Case(name, [Prompt(tokens[: PAGE * pages + beside])], [Prompt(tokens)])

    def shorter(self, pages: int, beside: int) -> Case:
        """A prompt that is the beginning of a stored one."""
        name = f"shorter-{pages}{beside:+d}"
        tokens = self.writer.tokens(name, PAGE * (pages + 3))
        return Case(name, [Prompt(tokens)], [Prompt(tokens[: PAGE * pages + beside])])

    def forked(self, pages: int, beside: int) -> Case:
        """Stored prompts that share their beginning, then one that goes on after each of them."""
        name = f"forked-{pages}{beside:+d}"
        root = self.writer.tokens(name, PAGE * pages + beside)
        left = root + self.writer.tokens(f"{name} left", 70)
        right = root + self.writer.tokens(f"{name} right", 100)
        more = self.writer.tokens(f"{name} more", 20)
        return Case(
            name, [Prompt(left), Prompt(right)], [Prompt(right + more), Prompt(left + more)]
        )

    def local_first(self, pages: int, beside: int) -> Case:
        """Asked-for prompts of which the engine has the beginning itself and Undercroft what
        follows."""
        name = f"local-{pages}{beside:+d}"
        tokens = self.writer.tokens(name, PAGE * (pages + 3) + 5)
        other = self.writer.tokens(f"{name} other", 40)
        first = Prompt(tokens[: PAGE * pages + beside] + other)
        return Case(name, [Prompt(tokens)], [first, Prompt(tokens), Prompt(tokens + other)])

    def salted(self, pages: int) -> Case:
        """The same tokens under two salts: one is stored, the other must not be found."""
        name = f"salted-{pages}"
        tokens = self.writer.tokens(name, PAGE * pages + 7)
        return Case(name, [Prompt(tokens, "one")], [Prompt(tokens, "two"), Prompt(tokens, "one")])

    def many(self) -> list[Case]:
        """All kinds at all boundaries: at least 200 asked-for prompts."""
        beside = (-1, 0, 1)
        cases = [self.same(pages, by) for pages in range(1, 9) for by in beside]
        cases += [
            self.longer(pages, by, more)
            for pages in range(1, 7)
            for by in beside
            for more in (1, 31, 32, 33)
        ]
        cases += [self.shorter(pages, by) for pages in range(1, 7) for by in beside]
        cases += [self.forked(pages, by) for pages in range(1, 5) for by in beside]
        cases += [self.local_first(pages, by) for pages in range(1, 7) for by in beside]
        cases += [self.salted(pages) for pages in range(1, 6)]
        cases += [self.longer(28, by, 65) for by in beside]
        return cases

    def few(self) -> list[Case]:
        """One of each kind, for a look that must not take long."""
        return [
            self.same(2, 0),
            self.same(3, -1),
            self.same(3, 1),
            self.longer(2, 0, 33),
            self.longer(3, -1, 1),
            self.shorter(2, 1),
            self.forked(2, 1),
            self.local_first(2, 0),
            self.local_first(1, 1),
            self.salted(2),
        ]


def pages_of(prompts: list[Prompt]) -> int:
    """How many different full pages there are in them."""
    found = set()
    for prompt in prompts:
        for page in range(len(prompt.tokens) // PAGE):
            found.add((prompt.salt, prompt.tokens[: PAGE * (page + 1)]))
    return len(found)
