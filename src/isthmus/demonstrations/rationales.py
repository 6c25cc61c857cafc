"""Worked examples that nobody had to write.

`auto_cot` needs no answers (Zhang et al. 2022, "Automatic Chain of Thought Prompting", section 4):
questions are clustered, and of each cluster the question nearest to its centre whose zero-shot
chain passes simple tests becomes a demonstration. Different questions matter more than right
chains: demonstrations like the query would hand their mistakes on.

`bootstrap` needs answers (Zelikman et al. 2022, STaR, section 3.1): a chain is kept if it reaches
the known answer. A question that it misses may be tried again with samples, and at last with the
answer as a hint, which is marked as such: a chain that knew its end is weaker evidence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from isthmus.demonstrations.diversity import kmeans
from isthmus.demonstrations.embed import Embedder, embedded, on_questions
from isthmus.demonstrations.tfidf import TfIdf
from isthmus.errors import InputError
from isthmus.generation.engine import Engine
from isthmus.prompts.answers import AnswerKind, same_answer
from isthmus.prompts.prompt import Example
from isthmus.reasoning.answer import Answer
from isthmus.reasoning.drivers import solve
from isthmus.reasoning.method import TEMPERATURE, Reasoning
from isthmus.reasoning.question import Asked
from isthmus.reasoning.wording import ENGLISH, KOREAN, is_korean

MOST_QUESTION_WORDS, MOST_STEPS = 60, 5
"""Zhang et al. 2022, section 4: simple questions and short chains."""


@dataclass(frozen=True)
class Worked:
    """A demonstration with steps, and where they come from.

    Attributes:
        example: Question, images, rationale and answer.
        made: How it was made, in words and numbers for people: by, trigger, seed, cluster or
            attempt, number of the question, and why it was kept.
    """

    example: Example
    made: dict[str, str | int | float] = field(default_factory=dict)


def passes(question: str, answer: Answer, kind: AnswerKind) -> bool:
    """Whether a chain is fit to be shown, without knowing the answer (Zhang et al., section 4).

    A short question; a few lines that end like a sentence; an answer that parses and, where it is a
    number, stands in the chain's last sentence.
    """
    chain = (answer.rationale or "").strip()
    if answer.parsed is None or not chain or chain[-1] not in ".!?다요":
        return False
    lines = [line for line in chain.splitlines() if line.strip()]
    if len(question.split()) > MOST_QUESTION_WORDS or len(lines) > MOST_STEPS:
        return False
    if kind != "number":
        return True
    last = re.split(r"(?<=[.!?])\s+", chain)[-1].replace(",", "")
    return re.search(rf"(?<![\d.]){re.escape(answer.parsed)}(?!\.?\d)", last) is not None


def _each(asked: Asked | Sequence[Asked], count: int) -> list[Asked]:
    """What is asked, by each question."""
    return [asked] * count if isinstance(asked, Asked) else list(asked)


def _hint(labelled: Example) -> str:
    """The answer in a sentence, in the question's language."""
    wording = KOREAN if is_korean(labelled.question) else ENGLISH
    return wording.conclusion.format(answer=labelled.answer)


def auto_cot(
    engine: Engine,
    questions: Sequence[Example],
    k: int,
    reasoning: Reasoning,
    asked: Asked | Sequence[Asked],
    *,
    embed: Embedder | None = None,
    at_once: int = 8,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Worked]:
    """Demonstrations with steps from questions alone.

    Args:
        engine: Writes the chains.
        questions: Questions; answers that they may have are not looked at.
        k: How many demonstrations, one for each cluster; a cluster without a chain that passes
            gives none, as in the paper.
        reasoning: How chains are written, by "zero-cot" for example; its seed also clusters.
        asked: What is asked, by all questions or by each.
        embed: Vectors of questions; None takes TF-IDF over the questions.
        at_once: Questions of a cluster that are tried in one batch.
        progress: Told the number of clusters done so far.

    Raises:
        InputError: If there are fewer questions than demonstrations wanted.

    Example:
        >>> import isthmus as im
        >>> from isthmus.prompts.templates import qa
        >>> engine = Engine(im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline()))
        >>> how = Reasoning("zero-cot", max_rationale_tokens=2, max_new_tokens=2)
        >>> auto_cot(engine, [Example((), "2 + 3?")], 1, how, Asked(qa, "number"))
        []
    """
    if not 1 <= k <= len(questions):
        raise InputError(
            f"got {len(questions)} questions for {k} demonstrations, expected at least as many"
        )
    forms = _each(asked, len(questions))
    bare = [replace(q, answer=None, rationale=None) for q in questions]
    if embed is None:
        embed = on_questions(TfIdf([q.question for q in bare]))
    vectors = embedded(embed, bare)
    groups = min(k, len(np.unique(vectors, axis=0)))
    labels, centres = kmeans(vectors, groups, seed=reasoning.seed)
    distances = np.linalg.norm(vectors - np.asarray(centres)[labels], axis=1)
    found: list[Worked] = []
    for cluster in range(groups):
        members = np.flatnonzero(labels == cluster)
        ordered = [int(i) for i in members[np.argsort(distances[members], kind="stable")]]
        kept = None
        for start in range(0, len(ordered), at_once):
            part = ordered[start : start + at_once]
            own = [forms[i] for i in part]
            answers = solve(engine, [bare[i] for i in part], [[]] * len(part), reasoning, own)
            for i, answer in zip(part, answers, strict=True):
                if passes(bare[i].question, answer, forms[i].kind):
                    kept = (i, answer)
                    break
            if kept is not None:
                break
        progress(cluster + 1)
        if kept is None:
            continue
        number, answer = kept
        # as published, with the trigger: a query's chain then begins with it too
        trigger = reasoning.trigger_of(bare[number].question)
        begun = f"{trigger.text} {answer.rationale}"
        example = replace(bare[number], answer=answer.parsed, rationale=begun)
        found.append(
            Worked(
                example,
                {
                    "by": "auto-cot",
                    "trigger": trigger.text,
                    "seed": reasoning.seed,
                    "cluster": cluster,
                    "question": number,
                    "kept": "nearest to its cluster's centre that passed the filters",
                },
            )
        )
    return found


def bootstrap(
    engine: Engine,
    labelled: Sequence[Example],
    k: int,
    reasoning: Reasoning,
    asked: Asked | Sequence[Asked],
    *,
    shots: Sequence[Example] = (),
    attempts: int = 1,
    hint: bool = False,
    at_once: int = 8,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Worked]:
    """Demonstrations whose chains reach the known answers.

    Args:
        engine: Writes the chains.
        labelled: Questions with answers, tried in their order until there are enough.
        k: How many demonstrations.
        reasoning: How chains are written: "zero-cot", or "cot" behind `shots`.
        asked: What is asked, by all questions or by each.
        shots: Worked demonstrations to begin with.
        attempts: Chains for a question: the first as `reasoning` says, the others sampled.
        hint: Whether a question that all chains miss is asked once more with its answer in it.
        at_once: Questions of a batch.
        progress: Told the number of demonstrations so far.

    Raises:
        InputError: If a question has no answer.
    """
    for number, example in enumerate(labelled):
        if example.answer is None:
            raise InputError(
                f'question {number + 1} ("{example.question[:60]}") has no answer: bootstrapping '
                "keeps chains that reach the known one; without answers take auto-cot"
            )
    forms = _each(asked, len(labelled))
    found: list[Worked] = []
    for start in range(0, len(labelled), at_once):
        part = list(labelled[start : start + at_once])
        kept: dict[int, Worked] = {}
        for attempt in range(attempts + hint):
            left = [i for i in range(len(part)) if i not in kept]
            if not left:
                break
            hinted = attempt == attempts
            how = reasoning
            if 0 < attempt < attempts:  # each attempt draws anew
                how = replace(
                    reasoning,
                    seed=reasoning.seed + attempt,
                    temperature=reasoning.temperature or TEMPERATURE,
                )
            queries = [replace(part[i], answer=None, rationale=None) for i in left]
            if hinted:
                queries = [
                    replace(q, question=f"{q.question} {_hint(part[i])}")
                    for q, i in zip(queries, left, strict=True)
                ]
            own = [forms[start + i] for i in left]
            answers = solve(engine, queries, [shots] * len(queries), how, own)
            for i, answer in zip(left, answers, strict=True):
                right = part[i].answer or ""
                kind = forms[start + i].kind
                if not answer.rationale or not same_answer(answer.parsed, right, kind):
                    continue
                made: dict[str, str | int | float] = {
                    "by": "bootstrap with the answer as a hint" if hinted else "bootstrap",
                    "seed": how.seed,
                    "attempt": attempt + 1,
                    "question": start + i,
                    "kept": "reaches the known answer" + (", which it was told" if hinted else ""),
                }
                if reasoning.way != "cot":
                    made["trigger"] = reasoning.trigger_of(part[i].question).text
                kept[i] = Worked(replace(part[i], rationale=answer.rationale), made)
        found.extend(kept[i] for i in sorted(kept))
        progress(min(k, len(found)))
        if len(found) >= k:
            break
    return found[:k]
