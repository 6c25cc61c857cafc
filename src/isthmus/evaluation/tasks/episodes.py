"""Generated episodes: each question can be answered from its own demonstrations alone.

Fast binding gives made-up names to made-up things (Tsimpoukelis et al. 2021, arXiv 2106.13884);
operator induction hides the operator between two pictured numbers (VL-ICL Bench, Zong et al. 2024,
arXiv 2403.13164). Without demonstrations both can only be guessed.
"""

from __future__ import annotations

from functools import partial

from isthmus.data.made_up import TESTED as NAMES
from isthmus.errors import ConfigError
from isthmus.evaluation.task import Generated, Item, Known, Task
from isthmus.evaluation.tasks.drawing import Creature, chosen, draw_text, generator
from isthmus.prompts.prompt import Example

OPERATORS = {"+": "plus", "-": "minus", "*": "times"}
MOST_SHOTS = 40
"""Demonstrations that each episode is given."""


def fast_binding(
    seed: int = 0, n: int = 500, *, ways: int = 2, size: int = 96, shots: int = MOST_SHOTS
) -> Task:
    """Which of a few made-up names a made-up thing has, told by images of each with its name.

    Demonstrations go round the names in turn, in an order of their own each round, so any multiple
    of the ways is balanced.

    Args:
        seed: Seed of all items.
        n: Test items.
        ways: Names to choose from.
        size: Pixels a side.
        shots: Demonstrations per item.

    Raises:
        ConfigError: If there are fewer than 2 ways, or more than there are names.

    Example:
        >>> item = fast_binding().items[0]
        >>> sorted(shot.answer for shot in item.shots[:2]) == sorted(item.choices)
        True
    """
    if not 2 <= ways <= len(NAMES):
        raise ConfigError(f"ways is {ways}: expected 2 to {len(NAMES)}")

    def make(number: int) -> Item:
        rng = generator(seed, number)
        names = chosen(rng, NAMES, ways)
        things = [Creature(rng) for _ in range(ways)]

        def shown(which: int) -> Example:
            return Example(things[which].draw(rng, size), "What is this?", names[which])

        query = shown(int(rng.integers(ways)))
        rounds = [rng.permutation(ways) for _ in range(-(-shots // ways))]
        own = tuple(shown(int(w)) for turn in rounds for w in turn)[:shots]
        return Item(f"test-{number}", query, choices=tuple(sorted(names)), shots=own)

    return Task(
        name=f"fast-binding-{ways}",
        kind="label",
        items=Generated(n, make),
        chance=1 / ways,
        max_new_tokens=8,
        episodic=True,
    )


def operator_induction(
    seed: int = 0, n: int = 500, *, size: int = 96, shots: int = MOST_SHOTS
) -> Task:
    """Two pictured digits with a question mark between them; demonstrations show the operator.

    Digits for which two operators agree (2 ? 2, 0 ? 0) are left out, so one demonstration is
    enough for who can read it.

    Args:
        seed: Seed of all items.
        n: Test items.
        size: Width in pixels; the height is half of it.
        shots: Demonstrations per item.

    Example:
        >>> item = operator_induction().items[0]
        >>> len(item.shots), item.shots[0].question
        (40, 'What is the result?')
    """
    pairs = [(a, b) for a in range(10) for b in range(10) if len({a + b, a - b, a * b}) == 3]

    def make(number: int) -> Item:
        rng = generator(seed, number)
        sign = list(OPERATORS)[int(rng.integers(len(OPERATORS)))]

        def shown(a: int, b: int) -> Example:
            result = {"+": a + b, "-": a - b, "*": a * b}[sign]
            image = draw_text(f"{a} ? {b}", (size, size // 2), size // 3)
            why = f"The operator is {OPERATORS[sign]}. {a} {sign} {b} = {result}."
            return Example(image, "What is the result?", str(result), why)

        order = rng.permutation(len(pairs))[: shots + 1]
        query, *own = (shown(*pairs[i]) for i in order)
        return Item(f"test-{number}", query, shots=tuple(own))

    answers = {r for a, b in pairs for r in (a + b, a - b, a * b)}
    return Task(
        name="operator-induction",
        kind="number",
        items=Generated(n, make),
        chance=1 / len(answers),
        max_new_tokens=8,
        max_rationale_tokens=64,
        episodic=True,
    )


TASKS = {
    "fast-binding-2": Known("two made-up names for made-up things", generate=fast_binding),
    "fast-binding-5": Known("five made-up names", generate=partial(fast_binding, ways=5)),
    "operator-induction": Known(
        "a hidden operator between two pictured numbers", generate=operator_induction
    ),
}
