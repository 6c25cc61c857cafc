"""Episodes: conversations in which a model can only learn from what was shown before.

A labelled data set becomes any number of them. A few of its classes get made-up names, images of
each are shown with their names in turn, and an answer is learned where its class has been named
before in the same episode: so nothing can be learned by heart, and what is left is to read the
context. Frozen (Tsimpoukelis et al. 2021, arXiv 2106.13884, section 4.3) tests models so; Chan et
al. 2022 (arXiv 2205.05055) show that training on such sequences is what makes a model learn from
its context. Pure: no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from isthmus.config.model import EpisodeConfig
from isthmus.data.made_up import made_up_name
from isthmus.data.records import LazyRecords, Medium, Record
from isthmus.errors import ConfigError, InputError
from isthmus.prompts.prompt import Example

QUESTIONS = ("What is this?",)
ODD = "Which one is different?"
PLACES = ("first", "second", "third", "fourth", "fifth")


class Episodes(LazyRecords):
    """Episodes of a labelled data set, each made when it is asked for.

    The same number is the same episode, whoever asks for it and when. The image that is asked about
    was never shown before: a class of few images is shown less often.

    Args:
        records: Images with a name each; a record without one is left out.
        config: What episodes are like.
        seed: Decides all of them.
        questions: What is asked of an image, one of them in each episode.
        stream: Another number makes other episodes of the same seed: those that are kept aside.

    Raises:
        ConfigError: If there are fewer classes of two images than an episode needs; one that may
            have more has those there are.

    Example:
        >>> data = [Record.of(f"{n}-{i}.jpg", "", n) for n in ("cat", "dog") for i in range(4)]
        >>> episode = Episodes(data, EpisodeConfig(ways=(2, 2), shots=(2, 2)))[0]
        >>> [turn.learned for turn in episode.turns]
        [False, False, True, True, True]
    """

    def __init__(
        self,
        records: Sequence[Record],
        config: EpisodeConfig,
        *,
        seed: int = 0,
        questions: Sequence[str] = (),
        stream: int = 0,
    ) -> None:
        self.config, self.seed, self.stream = config, seed, stream
        self.questions = tuple(questions) or QUESTIONS
        found: dict[str, dict[Medium, None]] = {}  # each image once
        for index in range(len(records)):
            try:
                record = records[index]
            except InputError:  # `isthmus data check` names them
                continue
            if record.turns and record.answer and len(record.images) == 1:
                found.setdefault(record.answer, {})[record.images[0]] = None
        self._classes = {name: list(own) for name, own in sorted(found.items()) if len(own) > 1}
        self._left_out: set[Medium] = set()
        if len(self._classes) < config.ways[0]:
            raise ConfigError(
                f"episodes of {config.ways[0]} ways need as many classes of two images or more, "
                f"got {len(self._classes)}: expected a folder for each class; or set "
                "data.episodes.ways"
            )

    def __len__(self) -> int:
        return self.config.count

    def media(self) -> Iterator[Medium]:
        """Each image once, in however many episodes it is."""
        for own in self._classes.values():
            yield from own

    def leave_out(self, image: Medium) -> bool:
        """From now on shows an image in no episode, as one that cannot be opened.

        Another of its class takes its place. Episodes without it stay as they are, and in what
        order images are left out changes nothing.

        Returns:
            Whether it was not left out before.
        """
        new = image not in self._left_out
        self._left_out.add(image)
        return new

    def record_at(self, index: int) -> Record:
        """The episode of a number.

        Raises:
            ConfigError: If too few of its images are left.
        """
        rng = np.random.default_rng([self.seed, 7, self.stream, index])
        odd = rng.random() < self.config.odd
        turns = self._odd(rng) if odd else self._names(rng)
        if not turns:
            raise ConfigError(
                f"episode {index}: too few of its images can be opened: expected two of a class "
                "and one of another; `isthmus data check` names those that cannot"
            )
        return Record(tuple(turns), origin=f"episode {index}")

    def _chosen(self, rng: np.random.Generator) -> list[str]:
        least, most = self.config.ways
        names = list(self._classes)
        count = int(rng.integers(least, min(most, len(names)) + 1))
        return [names[i] for i in rng.choice(len(names), count, replace=False)]

    def _names(self, rng: np.random.Generator) -> list[Example]:
        """Rounds in which each class is shown once, and one image more."""
        classes = self._chosen(rng)
        made_up = rng.random() < self.config.made_up
        said: dict[str, str] = {}
        for name in classes:
            taken = {*said.values(), *self._classes}
            said[name] = made_up_name(rng, taken) if made_up else name
        question = self.questions[int(rng.integers(len(self.questions)))]
        shots = int(rng.integers(self.config.shots[0], self.config.shots[1] + 1))
        rounds = [[classes[i] for i in rng.permutation(len(classes))] for _ in range(shots)]
        asked = classes[int(rng.integers(len(classes)))]
        images = {name: self._shuffled(rng, name) for name in classes}
        able = [name for name in classes if len(images[name]) > 1]
        if not able or sum(bool(own) for own in images.values()) < 2:
            return []
        asked = asked if asked in able else able[0]
        # as many of each class, so that how often one was shown does not tell which is asked
        shown = {n: own[: min(shots, len(self._classes[n]) - 1)] for n, own in images.items()}
        shown[asked] = shown[asked][: len(images[asked]) - 1]
        turns: list[Example] = []
        for number, order in enumerate(rounds):
            for name in (n for n in order if number < len(shown[n])):
                image = shown[name][number]
                learned = number > 0 or not made_up
                turns.append(Example((image,), question, said[name], learned=learned))
        last = images[asked][len(shown[asked])]
        return [*turns, Example((last,), question, said[asked])]

    def _odd(self, rng: np.random.Generator) -> list[Example]:
        """Several images of one class and one of another: which is it?"""
        names = list(self._classes)
        turns = []
        for _ in range(int(rng.integers(1, 4))):
            usual, other = (names[i] for i in rng.choice(len(names), 2, replace=False))
            several = self._shuffled(rng, usual)
            count = min(len(self._classes[usual]), int(rng.integers(2, len(PLACES))))
            place = int(rng.integers(count + 1))
            single = self._shuffled(rng, other)[:1]
            shown = several[:count]
            if len(shown) < 2 or not single:
                continue
            place = min(place, len(shown))
            shown[place:place] = single
            turns.append(Example(tuple(shown), ODD, PLACES[place]))
        return turns

    def _shuffled(self, rng: np.random.Generator, name: str) -> list[Medium]:
        """A class's images in some order, without those that are left out."""
        own = self._classes[name]
        order = [own[i] for i in rng.permutation(len(own))]
        return [image for image in order if image not in self._left_out]
