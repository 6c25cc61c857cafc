"""The engine: prompts in, texts or scores of closed answers out.

It never computes the same prefix twice: what `Prompt.shared` says several prompts have in common is
prefilled once and reused by every one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import functional as F

from isthmus.batch import IGNORED, pad
from isthmus.generation.decode import generate, text_of
from isthmus.images import open_picture
from isthmus.model import VisionLanguageModel
from isthmus.prompt import Prompt


@dataclass(frozen=True)
class Completion:
    """One continuation of a prompt.

    Attributes:
        text: Its text, cut before the stop string and stripped.
        ids: Its tokens, stop included.
        logprob: Sum of the tokens' log-probabilities under the model, at temperature 1.
        finished: Whether it ended by itself, and not because there was no room for more.
    """

    text: str
    ids: tuple[int, ...]
    logprob: float
    finished: bool


@dataclass(frozen=True)
class Generation:
    """What became of one prompt.

    Attributes:
        prompt: The exact prompt.
        completions: As many as samples were asked for.
        prompt_tokens: Tokens of the prompt, visual tokens in the text included.
        cached_tokens: How many of these were not computed anew.
    """

    prompt: Prompt
    completions: tuple[Completion, ...]
    prompt_tokens: int
    cached_tokens: int


@dataclass(frozen=True)
class ChoiceScores:
    """How likely each of some closed answers is after a prompt.

    Attributes:
        logprobs: (K,) sum of each answer's token log-probabilities.
        tokens: (K,) tokens of each answer.
        bytes: (K,) UTF-8 bytes of each answer.
        prompt_tokens: Tokens of the prompt.
        cached_tokens: How many of these were not computed anew.
    """

    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]
    bytes: tuple[int, ...]
    prompt_tokens: int
    cached_tokens: int

    def by(self, norm: Literal["sum", "token", "byte"] = "sum") -> tuple[float, ...]:
        """Scores under a norm: the sum, or the mean over tokens or bytes."""
        if norm == "sum":
            return self.logprobs
        lengths = self.tokens if norm == "token" else self.bytes
        return tuple(s / max(1, n) for s, n in zip(self.logprobs, lengths, strict=True))

    def best(self, norm: Literal["sum", "token", "byte"] = "sum") -> int:
        """Index of the likeliest answer, the first of equals."""
        scores = self.by(norm)
        return max(range(len(scores)), key=lambda i: scores[i])


class Engine:
    """Generates and scores with one model.

    Args:
        model: The model, put into evaluation mode.
        memory: Most bytes that prefixes may keep; the least recently used go first.
        batch_size: Most rows of one forward pass.
    """

    def __init__(
        self, model: VisionLanguageModel, *, memory: int = 1 << 30, batch_size: int = 8
    ) -> None:
        self.model = model.eval()
        self.memory = memory
        self.batch_size = batch_size

    def _batch(self, prompt: Prompt) -> Any:
        return self.model.prepare([prompt.text], [[open_picture(p) for p in prompt.pictures]])

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
        """Continues each prompt; temperature 0 is greedy.

        The same prompt under the same seed has the same samples whatever else is in the batch.
        """
        results = []
        for prompt in prompts:
            batch = self._batch(prompt)
            completions = []
            for sample in range(samples):
                torch.manual_seed(seed + sample)
                options: dict[str, Any] = {"num_beams": num_beams, "do_sample": temperature > 0}
                if temperature > 0:
                    options |= {"temperature": temperature, "top_p": top_p, "top_k": top_k}
                ids = generate(
                    self.model, batch, max_new_tokens=max_new_tokens, stop=stop, **options
                )[0]
                completions.append(
                    Completion(
                        text=text_of(self.model, ids, stop),
                        ids=tuple(ids.tolist()),
                        logprob=0.0,
                        finished=len(ids) < max_new_tokens,
                    )
                )
            results.append(
                Generation(prompt, tuple(completions), batch.input_ids.shape[1], cached_tokens=0)
            )
        return results

    @torch.inference_mode()
    def score(
        self, prompts: Sequence[Prompt], choices: Sequence[str] | Sequence[Sequence[str]]
    ) -> list[ChoiceScores]:
        """Scores closed answers after each prompt.

        Args:
            prompts: The prompts; an answer follows with its own leading space, if any.
            choices: The answers of all prompts, or those of each.
        """
        results = []
        for number, prompt in enumerate(prompts):
            own = choices if isinstance(choices[0], str) else choices[number]
            batch = self._batch(prompt)
            start = batch.input_ids.shape[1]
            scores, lengths = [], []
            for choice in own:
                answer = self.model.special_tokens.encode(str(choice))
                ids, mask = pad([[*batch.input_ids[0].tolist(), *answer]], 0, "left")
                labels = ids.clone()
                labels[:, :start] = IGNORED
                both = type(batch)(ids, mask, pixels=batch.pixels)
                logits = self.model(both).logits[0, start - 1 : -1]
                losses = F.cross_entropy(logits.float(), ids[0, start:], reduction="none")
                scores.append(-float(losses.sum()))
                lengths.append(len(answer))
            sizes = tuple(len(str(c).encode()) for c in own)
            results.append(ChoiceScores(tuple(scores), tuple(lengths), sizes, start, 0))
        return results
