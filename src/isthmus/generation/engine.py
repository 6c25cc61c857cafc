"""The engine: prompts in, texts or scores out; what `Prompt.shared` names is computed once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from isthmus.batch import Batch
from isthmus.errors import ConfigError, PromptError
from isthmus.generation.choose import Chooser
from isthmus.generation.decode import generate, text_of
from isthmus.generation.pictures import VisualTokens, content_of
from isthmus.generation.prefix import (
    Prefix,
    PrefixStore,
    Symbols,
    boundary,
    can_be_cut,
    fork,
)
from isthmus.generation.results import ChoiceScores, Completion, Generation, Statistics
from isthmus.generation.rows import Encoded, Rows, encode_prompt, seen_after
from isthmus.generation.score import continuations, score_trees, takes_trees, tree_of, unfinished
from isthmus.medium import stacked
from isthmus.model import VisionLanguageModel
from isthmus.prompt import Prompt

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

    def _encode(
        self, prompt: Prompt, known: dict[int, tuple[str, Any]]
    ) -> tuple[Encoded, dict[str, Any]]:
        """A prompt's tokens, and its pictures by their hashes.

        Args:
            prompt: The prompt.
            known: Contents by the identity of what a prompt gives as picture: demonstrations are
                hashed once, not once for each prompt.
        """
        for picture in prompt.pictures:
            if id(picture) not in known:
                known[id(picture)] = content_of(picture)
        contents = [known[id(p)] for p in prompt.pictures]
        return encode_prompt(self.model, prompt, contents), dict(contents)

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

    @torch.inference_mode()
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
        num_beams: int = 1,
    ) -> list[Generation]:
        """Continues each prompt.

        Every sample has a random generator of its own, made from the seed and the sample's number:
        a prompt under a seed has the same samples whatever else is in the batch.

        Args:
            prompts: The prompts.
            max_new_tokens: Most tokens of a continuation.
            stop: Strings that end one.
            samples: Continuations of each prompt.
            temperature: 0 takes the likeliest token, always.
            top_p: Draw from the likeliest tokens that hold this share.
            top_k: Draw from so many of the likeliest tokens; 0 for all.
            seed: Of the drawing.
            num_beams: More than 1 searches with beams, on Transformers' own generation, which
                computes the whole prompt; pictures are still encoded once.

        Raises:
            PromptError: If tags and pictures do not match, or a stop string is empty.
            ConfigError: If options contradict each other.
        """
        if "" in stop:
            raise PromptError('an empty stop string would end every answer at once: leave "" out')
        if samples > 1 and temperature <= 0:
            raise ConfigError(
                f"{samples} samples at temperature 0 would all be the same: set temperature above 0"
            )
        if num_beams > 1 and (samples > 1 or temperature > 0):
            raise ConfigError("beams are not sampled: leave samples and temperature, or num_beams")
        started = time.perf_counter()
        known: dict[int, tuple[str, Any]] = {}
        encoded = [self._encode(p, known) for p in prompts]
        found: dict[int, Generation] = {}
        if num_beams > 1:
            for n, (prompt, _) in enumerate(encoded):
                completion = self._beams(*encoded[n], max_new_tokens, stop, num_beams)
                found[n] = Generation(prompts[n], (completion,), len(prompt.ids), 0)
        else:
            choose = Chooser(temperature, top_p, top_k, seed)
            for numbers, rows, past in self._rows(encoded):
                texts = self._decode(rows, samples, choose, max_new_tokens, stop)
                for place, n in enumerate(numbers):
                    own = tuple(texts[place * samples : (place + 1) * samples])
                    found[n] = Generation(prompts[n], own, len(encoded[n][0].ids), past)
        self._statistics.seconds += time.perf_counter() - started
        return [found[n] for n in range(len(prompts))]

    def _decode(
        self, rows: Rows, samples: int, choose: Chooser, most: int, stop: Sequence[str]
    ) -> list[Completion]:
        """Continues rows token by token; a row that is done leaves."""
        logits = rows.prefill()
        if samples > 1:
            again = torch.arange(len(logits), device=logits.device).repeat_interleave(samples)
            rows.select(again)
            logits = logits[again]
        ends = {*self.model.language.end_ids(), self.model.special_tokens.end_id}
        draws = [choose.generator(n % samples) for n in range(len(logits))]
        ids: list[list[int]] = [[] for _ in draws]
        scores = [0.0] * len(draws)
        finished = [False] * len(draws)
        live = list(range(len(draws))) if most > 0 else []
        while live:
            known = logits.float().log_softmax(dim=-1)
            new = choose(logits, [draws[n] for n in live])
            gained = known.gather(1, new[:, None]).squeeze(1).tolist()
            kept = []
            for place, n in enumerate(live):
                ids[n].append(int(new[place]))
                scores[n] += gained[place]
                finished[n] = ids[n][-1] in ends or self._stopped(ids[n], stop)
                if not finished[n] and len(ids[n]) < most:
                    kept.append(place)
            self._statistics.decoded_tokens += len(live)
            if len(kept) < len(live):
                live = [live[place] for place in kept]
                if not live:
                    break
                places = torch.tensor(kept, device=new.device)
                rows.select(places)
                new = new[places]
            logits = rows.step(new)
        return [
            self._completion(i, stop, s, f) for i, s, f in zip(ids, scores, finished, strict=True)
        ]

    def _stopped(self, ids: Sequence[int], stop: Sequence[str]) -> bool:
        text = self.model.special_tokens.decode(list(ids)) if stop else ""
        return any(s in text for s in stop)

    def _completion(
        self, ids: Sequence[int], stop: Sequence[str], logprob: float, finished: bool
    ) -> Completion:
        return Completion(
            text=text_of(self.model, torch.tensor(ids), stop),
            ids=tuple(ids),
            logprob=logprob,
            finished=finished,
        )

    def _beams(
        self,
        prompt: Encoded,
        pictures: Mapping[str, Any],
        most: int,
        stop: Sequence[str],
        num_beams: int,
    ) -> Completion:
        """The best beam, found by Transformers."""
        visual = None
        if prompt.pictures:
            known = self._visual.of([(h, pictures[h]) for h in prompt.pictures])
            visual = stacked([known[h] for h in prompt.pictures])
        device = self.model.device
        ids = torch.tensor([prompt.ids], device=device)
        batch = Batch(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            visual=visual,
            layouts=prompt.layouts,
        )
        options = {"num_beams": num_beams, "do_sample": False}
        new = generate(self.model, batch, max_new_tokens=most, stop=stop, **options)[0]
        whole = torch.cat([ids, new[None]], dim=1)
        mask = torch.ones_like(whole)
        labels = whole.masked_fill(
            torch.arange(whole.shape[1], device=device) < len(prompt.ids), -100
        )
        out = self.model(replace(batch, input_ids=whole, attention_mask=mask, labels=labels))
        assert out.token_losses is not None
        ends = {*self.model.language.end_ids(), self.model.special_tokens.end_id}
        finished = len(new) < most or int(new[-1]) in ends or self._stopped(new.tolist(), stop)
        self._statistics.prefill_tokens += len(prompt.ids)
        self._statistics.decoded_tokens += len(new)
        return self._completion(new.tolist(), stop, -float(out.token_losses.sum()), finished)

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
                scores = self._score_one_by_one(rows, last, [answers[n] for n in numbers])
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

    def _score_one_by_one(
        self, rows: Rows, last: Tensor, answers: Sequence[Sequence[Sequence[int]]]
    ) -> list[list[float]]:
        """As `score_trees`, each answer a row of its own, for families that take no trees."""
        scores = []
        for row, own in enumerate(answers):
            values: list[float] = []
            for i in range(0, len(own), self.batch_size):
                part = own[i : i + self.batch_size]
                branch = rows.branch(row, len(part))
                logits = last[row].expand(len(part), -1)
                sums = torch.zeros(len(part), device=last.device)
                for place in range(max(len(a) for a in part)):
                    here = [a[place] if place < len(a) else None for a in part]
                    ids = torch.tensor([0 if t is None else t for t in here], device=last.device)
                    there = torch.tensor([t is not None for t in here], device=last.device)
                    known = logits.float().log_softmax(dim=-1)
                    sums += known.gather(1, ids[:, None]).squeeze(1) * there
                    self._statistics.scored_tokens += int(there.sum())
                    if place + 1 < max(len(a) for a in part):
                        logits = branch.step(ids)
                values.extend(sums.tolist())
            scores.append(values)
        return scores
