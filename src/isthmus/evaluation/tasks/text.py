"""Generated questions in text: the parity of digits, arithmetic modulo a prime.

Both are known to need steps: without them a transformer of fixed depth learns parity of many digits
only from exponentially many samples (Wen et al. 2024, arXiv 2410.05459), and arithmetic with many
operators hardly at all (Feng et al. 2023, arXiv 2305.15408).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isthmus.errors import ConfigError
from isthmus.evaluation.task import Generated, Item, Known, Task
from isthmus.evaluation.tasks.drawing import generator
from isthmus.prompts.prompt import Example

TEST, SUPPORT = 0, 1
WORDS = ("even", "odd")
OPERATORS = ("+", "-", "*")


def parity(seed: int = 0, n: int = 500, support: int = 64, *, digits: int = 10) -> Task:
    """Whether the sum of some digits is odd or even; the rationale keeps the parity so far.

    Args:
        seed: Seed of all items.
        n: Test items.
        support: Items that demonstrations are chosen from.
        digits: How many digits.

    Raises:
        ConfigError: If there are no digits.

    Example:
        >>> parity(digits=3).items[0].example.question.endswith("odd or even?")
        True
    """
    if digits < 1:
        raise ConfigError(f"digits is {digits}: expected at least 1")

    def make(rng: np.random.Generator) -> Example:
        drawn = [int(d) for d in rng.integers(0, 10, size=digits)]
        steps, odd = [], 0
        for digit in drawn:
            odd = (odd + digit) % 2
            steps.append(f"{digit} {WORDS[odd]}")
        listed = " ".join(map(str, drawn))
        question = f"Digits: {listed}. Is their sum odd or even?"
        return Example((), question, WORDS[odd], f"{', '.join(steps)}.")

    def items(stream: int, count: int) -> Generated:
        name = "test" if stream == TEST else "support"
        return Generated(
            count,
            lambda i: Item(f"{name}-{i}", make(generator(seed, stream, i)), choices=WORDS),
        )

    return Task(
        name="parity",
        kind="label",
        items=items(TEST, n),
        support=items(SUPPORT, support),
        chance=0.5,
        max_new_tokens=8,
        max_rationale_tokens=12 * digits + 32,
    )


@dataclass(frozen=True)
class Node:
    """An expression: a number, or two expressions and an operator."""

    value: int = 0
    operator: str = ""
    left: Node | None = None
    right: Node | None = None

    def __str__(self) -> str:
        return f"({self.left}{self.operator}{self.right})" if self.operator else str(self.value)


def _random(rng: np.random.Generator, operators: int, modulus: int) -> Node:
    """A random expression with so many operators."""
    if operators == 0:
        return Node(int(rng.integers(0, modulus)))
    before = int(rng.integers(0, operators))
    sign = OPERATORS[int(rng.integers(len(OPERATORS)))]
    left = _random(rng, before, modulus)
    return Node(0, sign, left, _random(rng, operators - 1 - before, modulus))


def _combined(left: int, operator: str, right: int, modulus: int) -> int:
    """One operation modulo a number."""
    return {"+": left + right, "-": left - right, "*": left * right}[operator] % modulus


def _reduced(node: Node, modulus: int) -> tuple[str, Node]:
    """The first pair of bare numbers, from the left, worked out; the expression with its value."""
    assert node.left is not None
    assert node.right is not None
    if node.left.operator:
        told, left = _reduced(node.left, modulus)
        return told, Node(0, node.operator, left, node.right)
    if node.right.operator:
        told, right = _reduced(node.right, modulus)
        return told, Node(0, node.operator, node.left, right)
    value = _combined(node.left.value, node.operator, node.right.value, modulus)
    return f"{node.left}{node.operator}{node.right}={value}", Node(value)


def steps(node: Node, modulus: int) -> list[str]:
    """The pair that each step works out, and the expression after it, down to a number.

    A pair is written before its value, so that finding it and working it out are two steps.

    Example:
        >>> four = Node(0, "+", Node(3), Node(1))
        >>> steps(Node(0, "*", four, Node(5)), 7)
        ['3+1=4: (4*5)', '4*5=6: 6']
    """
    found = []
    while node.operator:
        told, node = _reduced(node, modulus)
        found.append(f"{told}: {node}")
    return found


def arithmetic(
    seed: int = 0, n: int = 500, support: int = 64, *, operators: int = 4, modulus: int = 7
) -> Task:
    """An expression of several operators modulo a prime; the rationale works it out step by step.

    As the arithmetic of Feng et al. 2023 (section 4), without division.

    Args:
        seed: Seed of all items.
        n: Test items.
        support: Items that demonstrations are chosen from.
        operators: How many operators.
        modulus: Numbers are 0 to one less.

    Raises:
        ConfigError: If there is no operator, or the modulus is below 2.

    Example:
        >>> arithmetic(operators=1).items[0].example.question.startswith("Modulo 7: (")
        True
    """
    if operators < 1 or modulus < 2:
        raise ConfigError(
            f"{operators} operators modulo {modulus}: expected at least 1 operator and modulo 2"
        )

    def make(rng: np.random.Generator) -> Example:
        node = _random(rng, operators, modulus)
        found = steps(node, modulus)
        answer = found[-1].rpartition(" ")[2]
        return Example((), f"Modulo {modulus}: {node} = ?", answer, f"{', '.join(found)}.")

    def items(stream: int, count: int) -> Generated:
        name = "test" if stream == TEST else "support"
        return Generated(count, lambda i: Item(f"{name}-{i}", make(generator(seed, stream, i))))

    return Task(
        name="arithmetic",
        kind="number",
        items=items(TEST, n),
        support=items(SUPPORT, support),
        chance=1 / modulus,
        max_new_tokens=8,
        max_rationale_tokens=4 * operators * (operators + 5) + 32,
    )


TASKS = {
    "parity": Known("whether the sum of digits is odd or even (text)", generate=parity),
    "arithmetic": Known("four operators modulo 7, with steps (text)", generate=arithmetic),
}
