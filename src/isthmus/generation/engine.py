"""The engine: prompts in, texts or scores of closed answers out, in the caller's own thread.

It is the core that also serves (`batch.RunningBatch`): requests are submitted all at once and
drained. It never computes the same prefix twice: what `Prompt.shared` says several prompts have in
common is prefilled once and reused by every one of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random, SystemRandom
from typing import Any

import torch

from isthmus.errors import ConfigError, PromptError
from isthmus.generation.batch import RunningBatch
from isthmus.generation.constraints import Constraints
from isthmus.generation.encode import PromptEncoder
from isthmus.generation.job import Job
from isthmus.generation.prefill import Prefiller
from isthmus.generation.prefix import can_be_cut
from isthmus.generation.requests import Delta, Finished, GenerationRequest, sample_seed
from isthmus.generation.results import ChoiceScores, Completion, Generation, Statistics
from isthmus.generation.rows import Encoded
from isthmus.generation.score import (
    continuations,
    score_one_by_one,
    score_trees,
    tree_of,
    unfinished,
)
from isthmus.generation.structure import takes_trees
from isthmus.generation.text_stream import TextStream
from isthmus.generation.ticket import Mailbox
from isthmus.generation.whole import WholeEngine
from isthmus.model.vlm import VisionLanguageModel
from isthmus.model.whole import WholeModel
from isthmus.prompts.prompt import Prompt

__all__ = ["ChoiceScores", "Completion", "Engine", "Generation", "Statistics"]

_log = logging.getLogger(__name__)

_Encoded = tuple[Encoded, dict[str, Any]]


class Engine:
    """Generates and scores with one model.

    Args:
        model: The model, put into evaluation mode. One in whole (`WholeModel`) shares nothing
            between prompts and computes them one by one.
        memory: Most bytes that prefixes and visual tokens may keep, half of it each; the least
            recently used go first.
        batch_size: Most prompts that are computed together.

    Example:
        >>> import isthmus as im
        >>> engine = Engine(im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline()))
        >>> engine.generate([Prompt("Hello")], max_new_tokens=2)[0].prompt_tokens
        5
    """

    def __init__(
        self,
        model: VisionLanguageModel | WholeModel,
        *,
        memory: int = 1 << 30,
        batch_size: int = 8,
    ) -> None:
        # Walking 800 modules takes 16 ms, so a model that is in evaluation mode stays as it is
        model = model.eval() if model.training else model
        self.model: VisionLanguageModel | WholeModel = model
        self.batch_size = batch_size
        self._whole = None
        if isinstance(model, WholeModel):
            self._whole = WholeEngine(model)
            return
        self._encode = PromptEncoder(model)
        self._constraints = Constraints(model.language.tokenizer)
        self._core = RunningBatch(
            model,
            max_batch=batch_size,
            memory=memory,
            prefill_tokens=self._encode.context_length,
            keeps=False,
        )
        self._prefiller = self._core.prefiller
        self._scorer = self._prefiller  # llama.cpp reads no trees of answers
        if self._core.elsewhere:
            self._scorer = Prefiller(model, memory)
        self._trees: bool | None = None
        self._scored = 0
        self._seconds = 0.0

    @property
    def statistics(self) -> Statistics:
        """What has been done so far."""
        if self._whole is not None:
            return self._whole.statistics
        found = self._core.statistics()
        if self._scorer is not self._prefiller:
            both = found.prefill_tokens + self._scorer.computed
            found = replace(found, prefill_tokens=both)
        return replace(found, scored_tokens=self._scored, seconds=self._seconds)

    # --- generating -----------------------------------------------------------------------------

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
            max_new_tokens: Most tokens of a continuation, fewer where the context ends earlier; 0
                generates nothing.
            stop: Strings that end one.
            samples: Continuations of each prompt.
            temperature: 0 takes the likeliest token, always.
            top_p: Draw from the likeliest tokens that hold this share.
            top_k: Draw from so many of the likeliest tokens; 0 for all.
            seed: Of the drawing.

        Raises:
            PromptError: If tags and images do not match, a stop string is empty, or the model's
                context has no room for a prompt.
            ConfigError: If options contradict each other, or one is out of range.
        """
        if samples < 1:
            raise ConfigError(f"samples is {samples}: expected at least 1")
        if samples > 1 and temperature <= 0:
            raise ConfigError(
                f"{samples} samples at temperature 0 would all be the same: set temperature above 0"
            )
        requests = [
            GenerationRequest(
                prompt=prompt,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=sample_seed(seed, number),
                stop=tuple(stop),
            )
            for prompt in prompts
            for number in range(samples)
        ]
        made = self.run(requests)
        found = []
        for number, prompt in enumerate(prompts):
            own = tuple(made[number * samples : (number + 1) * samples])
            found.append(Generation(prompt, own, own[0].prompt_tokens, own[0].cached_tokens))
        return found

    @torch.inference_mode()
    def run(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """Continues prompts, each as its request says.

        Requests of one prompt share its computation.

        Returns:
            Their completions, in the requests' order.

        Raises:
            PromptError: If a prompt is empty, too long, or does not fit its images.
            ImageError: If an image cannot be read.
        """
        if self._whole is not None:
            return self._whole.run(requests)
        started = time.perf_counter()
        prompts, which = self._encode_all(requests)
        jobs = [self._job(r, *prompts[n]) for r, n in zip(requests, which, strict=True)]
        asked: dict[int, list[Job]] = {}
        for job, number in zip(jobs, which, strict=True):
            if job.most:
                asked.setdefault(number, []).append(job)
            else:
                self._core.end(job, "length")
        needed = list(asked)
        try:
            for numbers, rows, past in self._prefiller.together(
                [prompts[n] for n in needed],
                self.batch_size,
                [self._core.needs(prompts[n][0], [j.most for j in asked[n]]) for n in needed],
                self._core.free,
            ):
                own = [asked[needed[n]] for n in numbers]
                for job in (job for of_prompt in own for job in of_prompt):
                    job.cached = past
                self._core.enter(
                    [job for of_prompt in own for job in of_prompt],
                    rows,
                    rows.prefill(),
                    [row for row, of_prompt in enumerate(own) for _ in of_prompt],
                )
                del rows  # which hold cells that the next batch needs
                while any(job.ended is None for of_prompt in own for job in of_prompt):
                    self._step()
        except BaseException:  # what is half done would go on in the next call
            self._core.clear()
            raise
        self._seconds += time.perf_counter() - started
        return [_completion(job) for job in jobs]

    def stream(self, request: GenerationRequest) -> Iterator[Delta | Finished]:
        """Continues one prompt, piece by piece: texts as they come, then how it ended.

        Whoever stops reading ends it.

        Raises:
            PromptError: If the prompt is empty, too long, or does not fit its images.
            ImageError: If an image cannot be read.
        """
        if self._whole is not None:
            yield from self._whole.stream(request)
            return
        [prompt], _ = self._encode_all([request])
        job = self._job(request, *prompt, whole=False)
        sink = job.sink
        assert isinstance(sink, Mailbox)
        try:
            if not job.most:
                self._core.end(job, "length")
            else:
                with torch.inference_mode():
                    for _, rows, past in self._prefiller.together([prompt], 1):
                        job.cached = past
                        self._core.enter([job], rows, rows.prefill())
            while True:
                while sink.events:
                    yield sink.events.popleft()
                if job.ended is not None:
                    return
                with torch.inference_mode():
                    self._step()
        finally:
            if job.ended is None:
                sink.cancel()
                with torch.inference_mode():
                    self._core.sweep()

    def _step(self) -> None:
        self._core.sweep()
        if self._core.running:
            self._core.step()

    def _encode_all(
        self, requests: Sequence[GenerationRequest]
    ) -> tuple[list[_Encoded], list[int]]:
        """Each prompt once, and the number of each request's prompt."""
        known: dict[int, tuple[str, Any]] = {}
        encoded: dict[int, _Encoded] = {}
        prompts: list[_Encoded] = []
        numbers: dict[Encoded, int] = {}
        which = []
        for request in requests:
            if id(request.prompt) not in encoded:
                room = min(1, request.max_new_tokens)
                encoded[id(request.prompt)] = self._encode(request.prompt, known, answer=room)
            own = encoded[id(request.prompt)]
            if own[0] not in numbers:
                numbers[own[0]] = len(prompts)
                prompts.append(own)
            which.append(numbers[own[0]])
        return prompts, which

    def _job(
        self,
        request: GenerationRequest,
        prompt: Encoded,
        images: dict[str, Any],
        whole: bool = True,
    ) -> Job:
        seed = SystemRandom().getrandbits(64) if request.seed is None else request.seed
        schema = request.json_schema
        decode = self._core.model.special_tokens.decode
        return Job(
            request=request,
            sink=Mailbox(),
            prompt=prompt,
            images=images,
            most=min(request.max_new_tokens, self._encode.context_length - len(prompt.ids)),
            text=TextStream(decode, request.stop, whole=whole),
            chance=Random(seed),
            submitted=time.perf_counter(),
            scores=True,
            constraint=None if schema is None else self._constraints.of(schema),
        )

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
            PromptError: If there are no answers, one is empty, or the model's context has no room.
        """
        if self._whole is not None:
            return self._whole.score(prompts, choices)
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
            own_texts = [lost + str(t) for t in texts]
            found_ids = continuations(self._core.model.special_tokens.spans, tail, own_texts)
            answers.append(found_ids)
            encoded.append(self._encode(before, known, answer=max(map(len, found_ids))))
        if self._trees is None:
            self._trees = takes_trees(self._core.model.language)
        found: dict[int, ChoiceScores] = {}
        if self._core.elsewhere and not self._scored:
            _log.warning("engine llama: scores of closed answers are computed by PyTorch")
        for numbers, rows, past in self._scorer.together(encoded, self.batch_size):
            last = rows.prefill()
            here = [answers[n] for n in numbers]
            if self._trees and can_be_cut(rows.states):  # sliding windows have masks of their own
                trees = [tree_of(a) for a in here]
                scores = score_trees(rows, last, trees)
                self._scored += sum(len(t.tokens) for t in trees)
            else:
                scores = score_one_by_one(rows, last, here, self.batch_size)
                self._scored += sum(len(a) for of_prompt in here for a in of_prompt)
            for n, values in zip(numbers, scores, strict=True):
                found[n] = ChoiceScores(
                    logprobs=tuple(values),
                    tokens=tuple(len(a) for a in answers[n]),
                    bytes=tuple(len(str(t).encode()) for t in own[n]),
                    prompt_tokens=len(encoded[n][0].ids),
                    cached_tokens=past,
                )
        self._seconds += time.perf_counter() - started
        return [found[n] for n in range(len(prompts))]


def _completion(job: Job) -> Completion:
    """What has become of a request that has ended."""
    assert isinstance(job.sink, Mailbox)
    assert job.ended is not None
    said = [event for event in job.sink.events if isinstance(event, Delta)]
    return Completion(
        text="".join(piece.text for piece in said).strip(),
        ids=tuple(job.ids),
        reason=job.ended,
        prompt_tokens=len(job.prompt.ids),
        cached_tokens=job.cached,
        logprob=job.logprob,
        tokens=tuple(token for piece in said for token in piece.tokens),
    )
