"""Closed answers as one token tree: what they have in common is computed once, in few passes.

A node is a token with what came before it in some answer. Only nodes that something follows go
through the language model: an answer's last token needs no logits behind it, and answers of one
token need no pass at all, since the prompt's own last logits hold them.

The tree's mask is that of speculative decoding with token trees (Miao et al. 2024, SpecInfer,
section 4.2): each node sees the prompt, its ancestors and itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isthmus.generation.rows import Rows
from isthmus.model.backbones.span_tokens import SpanTokenizer, pieces
from isthmus.prompts.prompt import END_TAG, IMAGE_TAG, Prompt, Span, joined, skip

_TO_LAST_TAG = re.compile(f".*(?:{re.escape(IMAGE_TAG)}|{re.escape(END_TAG)})", re.DOTALL)
NODES_AT_ONCE = 256
"""Most nodes of one forward pass: their logits over the vocabulary are what memory goes to."""


def unfinished(prompt: Prompt) -> tuple[Prompt, tuple[Span, ...], str]:
    """What closed answers are put behind.

    Args:
        prompt: The prompt. White space at the end of a text, or of what leads an answer in, belongs
            to the answer, as tokenizers have it; before an open answer it is the template's.

    Returns:
        The prompt without that white space, the spans at its end that an answer is tokenized
        together with, and the white space.
    """
    *_, (piece, learned) = pieces(prompt.spans)
    text = joined(piece) if learned else prompt.text
    lost = len(text) - len(text.rstrip(" \n\t"))
    before = prompt.beginning(len(prompt.text) - lost) if lost else prompt
    *_, (piece, _) = pieces(before.spans or (Span(""),))
    tagged = None if learned else _TO_LAST_TAG.match(joined(piece))
    tail = skip(piece, tagged.end() if tagged else 0)
    return before, tuple(s for s in tail if s.text), prompt.text[len(prompt.text) - lost :]


def continuations(
    tokenizer: SpanTokenizer, tail: Sequence[Span], answers: Sequence[str]
) -> list[list[int]]:
    """Tokens of each answer behind spans, tokenized together with them."""
    learned = bool(tail) and tail[-1].learned
    before = len(tokenizer.encode(tail, goes_on=True))
    own = [Span(answer, "assistant", learned) for answer in answers]
    return [
        tokenizer.encode([*tail, answer], goes_on=True)[before:]
        or tokenizer.encode([answer], goes_on=True)
        for answer in own
    ]


@dataclass(frozen=True)
class Tree:
    """Answers as a tree, parents before children.

    Attributes:
        tokens: Token of each inner node.
        parents: Number of its parent, -1 behind the prompt.
        depths: How far behind the prompt it stands, from 0.
        paths: For each answer its tokens, each with the inner node it follows (-1: the prompt).
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    depths: tuple[int, ...]
    paths: tuple[tuple[tuple[int, int], ...], ...]


def tree_of(answers: Sequence[Sequence[int]]) -> Tree:
    """The tree of some token sequences.

    Example:
        >>> tree = tree_of([[5, 6], [5, 7], [8]])
        >>> tree.tokens, tree.paths
        ((5,), (((-1, 5), (0, 6)), ((-1, 5), (0, 7)), ((-1, 8),)))
    """
    number: dict[tuple[int, ...], int] = {(): -1}
    tokens: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    for answer in answers:
        for end in range(1, len(answer)):
            path = tuple(answer[:end])
            if path not in number:
                number[path] = len(tokens)
                tokens.append(path[-1])
                parents.append(number[path[:-1]])
                depths.append(end - 1)
    paths = tuple(
        tuple((number[tuple(answer[:i])], token) for i, token in enumerate(answer))
        for answer in answers
    )
    return Tree(tuple(tokens), tuple(parents), tuple(depths), paths)


def ancestors(tree: Tree) -> Tensor:
    """(N, N) bool, which nodes each node sees: its ancestors and itself."""
    sees = torch.eye(len(tree.tokens), dtype=torch.bool)
    for node, parent in enumerate(tree.parents):
        if parent >= 0:
            sees[node] |= sees[parent]
    return sees


def score_trees(
    rows: Rows, last: Tensor, trees: Sequence[Tree], at_once: int = NODES_AT_ONCE
) -> list[list[float]]:
    """Log-probabilities of each row's answers.

    Args:
        rows: Rows behind their prompts; the trees are appended to their states.
        last: (B, V) logits after the prompts.
        trees: Each row's answers.
        at_once: Most nodes of a pass.
    """
    scores = [[0.0] * len(tree.paths) for tree in trees]
    most = max(len(tree.tokens) for tree in trees)
    device = last.device
    ids = torch.zeros(len(trees), most, dtype=torch.long)
    depths = torch.zeros_like(ids)
    sees = torch.eye(most, dtype=torch.bool).repeat(len(trees), 1, 1)  # filling sees itself
    # what is asked of a node: (node, token) pairs and the answers they belong to
    asked: list[dict[int, list[tuple[int, int]]]] = []
    for row, tree in enumerate(trees):
        count = len(tree.tokens)
        if count:
            ids[row, :count] = torch.tensor(tree.tokens)
            depths[row, :count] = torch.tensor(tree.depths)
            sees[row, :count, :count] = ancestors(tree)
        of: dict[int, list[tuple[int, int]]] = {}
        for answer, path in enumerate(tree.paths):
            for node, token in path:
                of.setdefault(node, []).append((token, answer))
        asked.append(of)

    def add(start: int, logits: Tensor) -> None:
        """Scores what follows nodes start, start + 1, ..., whose logits (B, K, V) these are."""
        known = logits.float().log_softmax(dim=-1)
        for row, of in enumerate(asked):
            places = [
                (node - start, token, answer)
                for node in range(start, start + logits.shape[1])
                for token, answer in of.get(node, ())
            ]
            if places:
                node, token, answer = zip(*places, strict=True)
                found = known[row, list(node), list(token)].tolist()
                for which, value in zip(answer, found, strict=True):
                    scores[row][which] += value

    add(-1, last[:, None])
    ids, depths, sees = ids.to(device), depths.to(device), sees.to(device)
    for start in range(0, most, at_once):
        end = min(start + at_once, most)
        add(start, rows.append(ids[:, start:end], depths[:, start:end], sees[:, start:end, :end]))
    return scores


def score_one_by_one(
    rows: Rows, last: Tensor, answers: Sequence[Sequence[Sequence[int]]], batch_size: int
) -> list[list[float]]:
    """As `score_trees`, each answer a row of its own, for families that take no trees.

    Args:
        rows: Rows behind their prompts.
        last: (B, V) logits after the prompts.
        answers: Each row's answers.
        batch_size: Most rows of a pass.
    """
    scores = []
    for row, own in enumerate(answers):
        values: list[float] = []
        for i in range(0, len(own), batch_size):
            part = own[i : i + batch_size]
            branch = rows.branch(row, len(part))
            logits = last[row].expand(len(part), -1)
            sums = torch.zeros(len(part), device=last.device)
            longest = max(len(a) for a in part)
            for place in range(longest):
                here = [a[place] if place < len(a) else None for a in part]
                ids = torch.tensor([0 if t is None else t for t in here], device=last.device)
                there = torch.tensor([t is not None for t in here], device=last.device)
                known = logits.float().log_softmax(dim=-1)
                sums += known.gather(1, ids[:, None]).squeeze(1) * there
                if place + 1 < longest:
                    logits = branch.step(ids)
            values.extend(sums.tolist())
        scores.append(values)
    return scores
