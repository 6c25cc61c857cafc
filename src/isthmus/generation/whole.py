"""Generating and scoring with a model in whole, by the `generate` of its own class.

`generate` knows what its class wants from step to step (masks that grow, states of an encoder), so
closed answers are scored by it too: their tokens are forced, and their log-probabilities read off
the logits.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from random import Random, SystemRandom
from typing import Any

import torch
from torch import Tensor

from isthmus.errors import ConfigError, PromptError
from isthmus.generation.requests import Delta, Finished, GenerationRequest, Usage
from isthmus.generation.results import ChoiceScores, Completion, Statistics
from isthmus.generation.sampling import Draw, choose, penalized
from isthmus.generation.score import continuations, unfinished
from isthmus.generation.text_stream import TextStream
from isthmus.model.whole import WholeModel
from isthmus.prompts.prompt import Prompt

_Choice = Callable[[Tensor], int]


def _forced(ids: Sequence[int]) -> _Choice:
    """A choice that takes one token after the other, whatever the logits."""
    left = iter(ids)
    return lambda scores: next(left)


class _Told:
    """Makes `generate` take the tokens that it is told, and end when it is told.

    It stands last among the logits processors, and is the stopping criterion.

    Args:
        choice: The next token from logits (1, V).
        over: Whether the last token was the last one.
    """

    def __init__(self, choice: _Choice, over: Callable[[], bool] = lambda: False) -> None:
        self.choice, self.over = choice, over
        self.ids: list[int] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        token = self.choice(scores)
        self.ids.append(token)
        told = torch.full_like(scores, -math.inf)
        told[:, token] = 0
        return told

    def stop(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """Whether to stop, for each row."""
        return torch.full((len(input_ids),), self.over(), device=input_ids.device)


class WholeEngine:
    """What `Engine` does with a `WholeModel`: one prompt at a time, and nothing is kept.

    Args:
        model: The model.
    """

    def __init__(self, model: WholeModel) -> None:
        self.model = model
        self._prefilled = self._decoded = self._scored = self._ended = 0
        self._seconds = 0.0

    @property
    def statistics(self) -> Statistics:
        """What has been done so far."""
        return Statistics(
            completed=self._ended,
            prefill_tokens=self._prefilled,
            decoded_tokens=self._decoded,
            scored_tokens=self._scored,
            steps=self._decoded,
            seconds=self._seconds,
        )

    # --- generating -------------------------------------------------------------------------------

    @torch.inference_mode()
    def run(self, requests: Sequence[GenerationRequest]) -> list[Completion]:
        """See `Engine.run`."""
        started = time.perf_counter()
        for request in requests:
            if request.json_schema is not None or request.logprobs is not None:
                raise ConfigError(
                    f"{self.model.config.language.name} is a model in whole, which follows no JSON "
                    "schema and tells no log-probabilities of single tokens: leave them out"
                )
        known: dict[int, dict[str, Any]] = {}
        for request in requests:  # what is wrong with one is said before any is run
            if id(request.prompt) not in known:
                known[id(request.prompt)] = self._inputs(request.prompt, 1)
        found = [self._complete(request, known[id(request.prompt)]) for request in requests]
        self._seconds += time.perf_counter() - started
        return found

    def stream(self, request: GenerationRequest) -> Iterator[Delta | Finished]:
        """See `Engine.stream`; the text comes in one piece."""
        started = time.perf_counter()
        [made] = self.run([request])
        took = time.perf_counter() - started
        if made.text:
            yield Delta(made.text)
        usage = Usage(made.prompt_tokens, made.new_tokens, 0)
        yield Finished(made.reason, usage, took if made.ids else None, took)

    def _complete(self, request: GenerationRequest, inputs: dict[str, Any]) -> Completion:
        model, length = self.model, self._length(inputs)
        text = TextStream(self._decode, request.stop, whole=True)
        seed = SystemRandom().getrandbits(64) if request.seed is None else request.seed
        chance, counts, piece = Random(seed), dict[int, int](), ""

        def choice(scores: Tensor) -> int:
            nonlocal piece
            penalties = [request.presence_penalty], [request.frequency_penalty]
            less = penalized(scores.float(), [counts], *penalties)
            drawn = chance.random() if request.temperature else 0.0
            draw = Draw(request.temperature, request.top_p, request.top_k, drawn)
            [token] = choose(less, [draw])
            counts[token] = counts.get(token, 0) + 1
            if token not in model.ends:
                piece += text.push(token)[0]
            return token

        most = request.max_new_tokens
        if not model.decodes_apart:
            most = min(most, model.limit - length)
        told = _Told(choice, lambda: text.stopped)
        logits = self._generate(inputs, told, most)
        chosen = zip(logits, told.ids, strict=True)
        logprob = sum(float(row.log_softmax(dim=-1)[token]) for row, token in chosen)
        piece += text.finish()[0]
        over = text.stopped or bool(told.ids and told.ids[-1] in model.ends)
        self._decoded += len(told.ids)
        self._ended += 1
        return Completion(
            text=piece.strip(),
            ids=tuple(told.ids),
            reason="stop" if over else "length",
            prompt_tokens=length,
            logprob=logprob,
        )

    def _decode(self, ids: list[int]) -> str:
        return str(self.model.language.tokenizer.decode(ids, skip_special_tokens=True))

    def _length(self, inputs: dict[str, Any]) -> int:
        return int(inputs["input_ids"].shape[1])

    def _inputs(self, prompt: Prompt, answer: int) -> dict[str, Any]:
        inputs = self.model.inputs(prompt)
        length = self._length(inputs)
        room = 0 if self.model.decodes_apart else answer
        if length + room > self.model.limit:
            raise PromptError(
                f"the prompt has {length} tokens and the model's context {self.model.limit}: "
                "shorten it, so that an answer has room"
            )
        self._prefilled += length
        return inputs

    def _generate(self, inputs: dict[str, Any], told: _Told, most: int) -> list[Tensor]:
        """The model's own logits (V,) before each token that was taken."""
        if most < 1:
            return []
        model = self.model.model
        settings = copy.deepcopy(model.generation_config)
        settings.update(
            do_sample=False,
            num_beams=1,
            num_return_sequences=1,
            temperature=None,
            top_p=None,
            top_k=None,
            early_stopping=None,
            length_penalty=None,
            max_length=None,
            max_new_tokens=most,
            return_dict_in_generate=True,
            output_logits=True,
        )
        made = model.generate(
            **inputs,
            generation_config=settings,
            logits_processor=[told],
            stopping_criteria=[told.stop],
        )
        return [row[0].float() for row in made.logits]

    # --- scoring ----------------------------------------------------------------------------------

    @torch.inference_mode()
    def score(
        self, prompts: Sequence[Prompt], choices: Sequence[str] | Sequence[Sequence[str]]
    ) -> list[ChoiceScores]:
        """See `Engine.score`; each answer in a pass of its own.

        Where a decoder writes apart from the prompt, an answer is its text from the beginning,
        without the white space that would lead it in.
        """
        started = time.perf_counter()
        shared = all(isinstance(c, str) for c in choices)
        found = []
        for number, prompt in enumerate(prompts):
            texts = [str(text) for text in (choices if shared else choices[number])]
            if not texts or "" in texts:
                raise PromptError(f"got {texts[:5]} as closed answers: expected one or more texts")
            before, tail, lost = unfinished(prompt)
            if self.model.decodes_apart:
                texts = [text.strip() for text in texts]
                before, answers = prompt, [self.model.language.encode(text) for text in texts]
            else:
                answers = continuations(self.model.spans, tail, [lost + text for text in texts])
            inputs = self._inputs(before, max(map(len, answers)))
            logprobs = self._scores(inputs, answers)
            found.append(
                ChoiceScores(
                    logprobs=tuple(logprobs),
                    tokens=tuple(len(a) for a in answers),
                    bytes=tuple(len(text.encode()) for text in texts),
                    prompt_tokens=self._length(inputs),
                    cached_tokens=0,
                )
            )
        self._seconds += time.perf_counter() - started
        return found

    def _scores(self, inputs: dict[str, Any], answers: Sequence[Sequence[int]]) -> list[float]:
        """Log-probabilities of answers; what one has shown of another is not computed twice."""
        known: dict[tuple[int, ...], Tensor] = {}
        begun = self._begun()
        for answer in answers:
            if all(tuple(answer[:end]) in known for end in range(len(answer))):
                continue
            told = _Told(_forced([*begun, *answer]))
            logits = self._generate(inputs, told, len(begun) + len(answer))
            for end, row in enumerate(logits[len(begun) :]):
                known[tuple(answer[:end])] = row.log_softmax(dim=-1)
            self._scored += len(answer)
        return [
            sum(float(known[tuple(answer[:end])][token]) for end, token in enumerate(answer))
            for answer in answers
        ]

    def _begun(self) -> list[int]:
        """What every text of the model begins with, by its generation settings."""
        first = getattr(self.model.model.generation_config, "forced_bos_token_id", None)
        return [] if first is None else [int(first)]
