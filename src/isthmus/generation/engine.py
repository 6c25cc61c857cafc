"""The engine: prompts in, texts or scores out; what `Prompt.shared` names is computed once."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from random import Random
from typing import Any

import torch

from isthmus.errors import ConfigError, PromptError
from isthmus.generation.encode import PromptEncoder
from isthmus.generation.pictures import VisualTokens
from isthmus.generation.prefix import (
    Prefix,
    PrefixStore,
    Symbols,
    boundary,
    can_be_cut,
    fork,
)
from isthmus.generation.requests import (
    Delta,
    Finished,
    GenerationRequest,
    Usage,
    sample_seed,
)
from isthmus.generation.results import ChoiceScores, Completion, Generation, Statistics
from isthmus.generation.rows import Encoded, Rows, seen_after
from isthmus.generation.sampling import Draw, choose
from isthmus.generation.score import (
    continuations,
    score_one_by_one,
    score_trees,
    takes_trees,
    tree_of,
    unfinished,
)
from isthmus.generation.text_stream import TextStream
from isthmus.model import VisionLanguageModel
from isthmus.prompt import Prompt

_NO_PROMPT = Prompt("")
__all__ = ["ChoiceScores", "Completion", "Engine", "Generation", "Statistics"]


class Engine:
    """Generates and scores with one model.

    Args:
        model: The model, put into evaluation mode.
        memory: Most bytes that prefixes and visual tokens may keep, half of it each; the least
            recently used go first.
        batch_size: Most rows of one forward pass.

    Example:
        >>> import isthmus as im
        >>> engine = Engine(im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline()))
        >>> engine.generate([Prompt("Hello")], max_new_tokens=2)[0].prompt_tokens
        5
    """

    def __init__(
        self, model: VisionLanguageModel, *, memory: int = 1 << 30, batch_size: int = 8
    ) -> None:
        self.model = model.eval()
        self.batch_size = batch_size
        self._prefixes = PrefixStore(memory // 2)
        self._visual = VisualTokens(model, memory // 2)
        self._statistics = Statistics()
        self._trees: bool | None = None
        self._encode = PromptEncoder(self.model)

    @property
    def statistics(self) -> Statistics:
        """What has been done so far; a copy."""
        return replace(
            self._statistics,
            pictures_encoded=self._visual.encoded,
            pictures_found=self._visual.found,
            prefix_hits=self._prefixes.hits,
            prefix_misses=self._prefixes.misses,
            evictions=self._prefixes.evictions,
            bytes=self._prefixes.bytes + self._visual.bytes,
        )

    # --- from prompts to rows behind their prefix ----------------------------------------------

    def _prefix(self, prompt: Encoded, pictures: Mapping[str, Any]) -> Prefix | None:
        """The states of what a prompt shares, computed if they are not there."""
        symbols = prompt.symbols[: prompt.shared]
        if not symbols:
            return None
        prefix = self._prefixes.get(symbols)
        if prefix is not None:
            return prefix
        near = self._prefixes.nearest(symbols)
        states, past = None, 0
        if near is not None:
            kept, start = near
            start = boundary(symbols, min(start, len(symbols) - 1), prompt.layouts)
            if start and (start == len(kept.symbols) or can_be_cut(kept.states)):
                states, past = fork(kept.states, start), start
        part = prompt.first(prompt.shared)
        visual = self._visual.of([(h, pictures[h]) for h in part.pictures])
        rows = Rows(self.model, [part], visual, states, past)
        rows.prefill()
        self._statistics.prefill_tokens += len(symbols) - past
        return self._prefixes.put(symbols, rows.states)

    def _rows(
        self, prompts: Sequence[tuple[Encoded, dict[str, Any]]]
    ) -> Iterator[tuple[list[int], Rows, int]]:
        """Batches of prompts that share a prefix: their numbers, their rows, the prefix' length."""
        groups: dict[Symbols, list[int]] = {}
        for number, (prompt, _) in enumerate(prompts):
            groups.setdefault(prompt.symbols[: prompt.shared], []).append(number)
        for members in groups.values():
            # held here: the store may have no room for it
            prefix = self._prefix(*prompts[members[0]])
            for numbers in self._batches(prompts, members, prefix):
                chosen = [prompts[n] for n in numbers]
                past, states = 0, None
                if prefix is not None:
                    past = len(prefix.symbols)
                    states = fork(prefix.states, past, len(chosen))
                wanted = {h: d[h] for p, d in chosen for h in seen_after(self.model, p, past)}
                visual = self._visual.of(list(wanted.items()))
                rows = Rows(self.model, [p for p, _ in chosen], visual, states, past)
                computed = sum(len(p.ids) - past for p, _ in chosen)
                self._statistics.prefill_tokens += computed
                self._statistics.cached_tokens += past * len(chosen)
                yield numbers, rows, past

    def _batches(
        self,
        prompts: Sequence[tuple[Encoded, dict[str, Any]]],
        members: Sequence[int],
        prefix: Prefix | None,
    ) -> Iterator[list[int]]:
        """Prompts of one prefix in batches, those of like length together: less padding.

        Padding stands between a prefix and what is a row's own. A sliding window would count it, so
        that there only rows of the same length stand together.
        """
        padded = prefix is None or can_be_cut(prefix.states)
        ordered = sorted(members, key=lambda n: len(prompts[n][0].ids))
        runs = [ordered]
        if not padded:
            runs = [list(g) for _, g in groupby(ordered, key=lambda n: len(prompts[n][0].ids))]
        for run in runs:
            for i in range(0, len(run), self.batch_size):
                yield run[i : i + self.batch_size]

    # --- generating -----------------------------------------------------------------------------

    def run(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Continues prompts, each as its request says; completions in the requests' order.

        Requests that differ in prompt and seed alone are computed together, and the prompt that
        several of them share, as one object, once.

        Raises:
            PromptError: If tags and pictures do not match.
        """
        alike: dict[GenerationRequest, dict[int, list[int]]] = {}
        for number, asked in enumerate(requests):
            members = alike.setdefault(replace(asked, prompt=_NO_PROMPT, seed=None), {})
            members.setdefault(id(asked.prompt), []).append(number)
        found: dict[int, Completion] = {}
        for asked, members in alike.items():
            numbers = list(members.values())
            prompts = [requests[own[0]].prompt for own in numbers]
            seeds = [[requests[n].seed or 0 for n in own] for own in numbers]
            for own, one in zip(numbers, self._continued(prompts, seeds, asked), strict=True):
                for n, completion in zip(own, one.completions, strict=True):
                    found[n] = replace(
                        completion,
                        prompt_tokens=one.prompt_tokens,
                        cached_tokens=one.cached_tokens,
                    )
        return [found[n] for n in range(len(requests))]

    @torch.inference_mode()
    def stream(self, request: GenerationRequest) -> Iterator[Delta | Finished]:
        """Continues one prompt, piece by piece: texts as they come, then how it ended."""
        started = time.perf_counter()
        encoded = [self._encode(request.prompt, {})]
        for _, rows, past in self._rows(encoded):
            [made] = yield from self._decode(rows, [[request.seed or 0]], request)
            usage = Usage(len(encoded[0][0].ids), len(made.ids), past)
            seconds = time.perf_counter() - started
            self._statistics.seconds += seconds
            yield Finished(made.reason, usage, None, seconds)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 64,
        stop: Sequence[str] = (),
        samples: int = 1,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> list[Generation]:
        """Continues each prompt.

        Every sample has random numbers of its own, made from the seed and the sample's number: a
        prompt under a seed has the same samples whatever else is in the batch, and on a server.

        Args:
            prompts: The prompts.
            max_new_tokens: Most tokens of a continuation.
            stop: Strings that end one.
            samples: Continuations of each prompt.
            temperature: 0 takes the likeliest token, always.
            top_p: Draw from the likeliest tokens that hold this share.
            top_k: Draw from so many of the likeliest tokens; 0 for all.
            seed: Of the first sample; the others have seeds made of it.

        Raises:
            PromptError: If tags and pictures do not match, or a stop string is empty.
            ConfigError: If options contradict each other.
        """
        if samples > 1 and temperature <= 0:
            raise ConfigError(
                f"{samples} samples at temperature 0 would all be the same: set temperature above 0"
            )
        asked = GenerationRequest(
            prompt=_NO_PROMPT,
            max_new_tokens=max_new_tokens,
            stop=tuple(stop),
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
        )
        seeds = [sample_seed(seed, number) for number in range(samples)]
        return self._continued(prompts, [seeds] * len(prompts), asked)

    @torch.inference_mode()
    def _continued(
        self, prompts: Sequence[Prompt], seeds: Sequence[Sequence[int]], asked: GenerationRequest
    ) -> list[Generation]:
        """Each prompt's continuations, one for each of its seeds."""
        started = time.perf_counter()
        known: dict[int, tuple[str, Any]] = {}
        encoded = [self._encode(p, known) for p in prompts]
        found: dict[int, Generation] = {}
        for numbers, rows, past in self._rows(encoded):
            steps = self._decode(rows, [seeds[n] for n in numbers], asked)
            texts = iter(_returned(steps))
            for n in numbers:
                own = tuple(next(texts) for _ in seeds[n])
                found[n] = Generation(prompts[n], own, len(encoded[n][0].ids), past)
        self._statistics.seconds += time.perf_counter() - started
        return [found[n] for n in range(len(prompts))]

    def _decode(
        self, rows: Rows, seeds: Sequence[Sequence[int]], asked: GenerationRequest
    ) -> Generator[Delta, None, list[Completion]]:
        """Continues rows token by token; a row that is done leaves. Yields the first row's text."""
        logits = rows.prefill()
        if any(len(own) > 1 for own in seeds):
            counts = torch.tensor([len(own) for own in seeds], device=logits.device)
            again = torch.arange(len(logits), device=logits.device).repeat_interleave(counts)
            rows.select(again)
            logits = logits[again]
        ends = {*self.model.language.end_ids(), self.model.special_tokens.end_id}
        how = (asked.temperature, asked.top_p, asked.top_k)
        chances = [Random(seed) for own in seeds for seed in own]
        streams = [TextStream(self.model.special_tokens.decode, asked.stop) for _ in chances]
        texts = [""] * len(chances)
        ids: list[list[int]] = [[] for _ in chances]
        scores = [0.0] * len(chances)
        finished = [False] * len(chances)
        live = list(range(len(chances))) if asked.max_new_tokens > 0 else []
        while live:
            logits = logits.float()
            drawn = [Draw(*how, chances[n].random() if asked.temperature else 0.0) for n in live]
            new = torch.tensor(choose(logits, drawn), device=logits.device)
            known = logits.log_softmax(dim=-1)
            gained = known.gather(1, new[:, None]).squeeze(1).tolist()
            self._statistics.decoded_tokens += len(live)
            kept = []
            for place, n in enumerate(live):
                ids[n].append(int(new[place]))
                scores[n] += gained[place]
                finished[n] = ids[n][-1] in ends
                piece = "" if finished[n] else streams[n].push(ids[n][-1])[0]
                finished[n] = finished[n] or streams[n].stopped
                if finished[n] or len(ids[n]) == asked.max_new_tokens:
                    piece += streams[n].finish()[0]
                    finished[n] = finished[n] or streams[n].stopped
                else:
                    kept.append(place)
                texts[n] += piece
                if n == 0:
                    yield Delta(piece)
            if len(kept) < len(live):
                live = [live[place] for place in kept]
                if not live:
                    break
                places = torch.tensor(kept, device=new.device)
                rows.select(places)
                new = new[places]
            logits = rows.step(new)
        return [
            Completion(text.strip(), tuple(own), "stop" if done else "length", logprob=score)
            for text, own, done, score in zip(texts, ids, finished, scores, strict=True)
        ]

    # --- scoring --------------------------------------------------------------------------------

    @torch.inference_mode()
    def score(
        self, prompts: Sequence[Prompt], choices: Sequence[str] | Sequence[Sequence[str]]
    ) -> list[ChoiceScores]:
        """Scores closed answers after each prompt, all answers of a prompt as one token tree.

        An answer is read as it is trained: behind a template's prompt by itself, with what leads
        it in. A prompt that is a text of the caller's own and an answer are read as one text. White
        space at the end belongs to the answer, as tokenizers have it.

        Args:
            prompts: The prompts; an answer follows with its own leading space, if any.
            choices: The answers of all prompts, or those of each.

        Raises:
            PromptError: If there are no answers, or one is empty.
        """
        started = time.perf_counter()
        shared = all(isinstance(c, str) for c in choices)
        own = [list(choices) if shared else list(choices[n]) for n in range(len(prompts))]
        answers: list[list[list[int]]] = []
        encoded = []
        known: dict[int, tuple[str, Any]] = {}
        for prompt, texts in zip(prompts, own, strict=True):
            if not texts or "" in texts:
                raise PromptError(f"got {texts[:5]} as closed answers: expected one or more texts")
            before, tail, lost = unfinished(prompt)
            encoded.append(self._encode(before, known))
            own_texts = [lost + str(t) for t in texts]
            answers.append(continuations(self.model.special_tokens.spans, tail, own_texts))
        if self._trees is None:
            self._trees = takes_trees(self.model.language)
        found: dict[int, ChoiceScores] = {}
        for numbers, rows, past in self._rows(encoded):
            last = rows.prefill()
            if self._trees and can_be_cut(rows.states):  # sliding windows have masks of their own
                trees = [tree_of(answers[n]) for n in numbers]
                scores = score_trees(rows, last, trees)
                self._statistics.scored_tokens += sum(len(t.tokens) for t in trees)
            else:
                own_answers = [answers[n] for n in numbers]
                scores = score_one_by_one(rows, last, own_answers, self.batch_size)
                self._statistics.scored_tokens += sum(len(a) for o in own_answers for a in o)
            for n, values in zip(numbers, scores, strict=True):
                found[n] = ChoiceScores(
                    logprobs=tuple(values),
                    tokens=tuple(len(a) for a in answers[n]),
                    bytes=tuple(len(str(t).encode()) for t in own[n]),
                    prompt_tokens=len(encoded[n][0].ids),
                    cached_tokens=past,
                )
        self._statistics.seconds += time.perf_counter() - started
        return [found[n] for n in range(len(prompts))]


def _returned(steps: Generator[object, None, list[Completion]]) -> list[Completion]:
    """What a generator returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            made: list[Completion] = end.value
            return made
