"""Answers in a form that a JSON schema gives: tokens that would break it cannot be drawn.

llguidance (Earley's parser over the schema's grammar, with a trie of the vocabulary) says which
tokens may follow; here they are the only ones whose logits stay.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isthmus.errors import InputError, MissingExtraError

MOST_CHARACTERS = 100_000
"""Of a schema."""
_COMPACT = {"whitespace_flexible": False}


class Constraint:
    """What one answer may still say.

    Args:
        matcher: llguidance's.
    """

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def masked(self, logits: Tensor) -> Tensor:
        """Logits (V,) in which tokens that may not follow are -inf."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool)
        mask = torch.zeros(len(logits), dtype=torch.bool)  # images' own tokens stand behind
        mask[: len(allowed)] = torch.from_numpy(allowed)
        return logits.masked_fill(~mask.to(logits.device), -torch.inf)

    def take(self, token: int) -> None:
        """A token was drawn.

        Raises:
            InputError: If the grammar is too hard to go on with.
        """
        self._matcher.consume_token(token)
        if self._matcher.is_error():  # its message quotes what was written
            raise InputError(
                "the schema is too hard to follow any further: expected one with fewer choices"
            )


class Constraints:
    """Makes constraints of schemas, for one tokenizer.

    Args:
        tokenizer: The language model's.

    Example:
        >>> import isthmus as im
        >>> tokenizer = im.load_language("tiny-lm").tokenizer
        >>> made = Constraints(tokenizer).of('{"enum": ["yes", "no"]}')
        >>> int(made.masked(torch.zeros(259)).isfinite().nonzero())  # the quotation mark
        34
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = Lock()
        self._known: Any = None

    def of(self, schema: str) -> Constraint:
        """A constraint for one answer.

        Args:
            schema: A JSON schema, as JSON.

        Raises:
            InputError: If it is none, is too long, or has what no grammar is known for.
            MissingExtraError: If llguidance is not installed.
        """
        try:
            import llguidance
            import llguidance.hf
        except ImportError as error:
            raise MissingExtraError("answers of a given form", "serve") from error
        if len(schema) > MOST_CHARACTERS:
            raise InputError(
                f"the schema has {len(schema)} characters, expected at most {MOST_CHARACTERS}"
            )
        with self._lock:
            if self._known is None:
                self._known = llguidance.hf.from_tokenizer(self._tokenizer)
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, defaults=_COMPACT)
            wrong = llguidance.LLMatcher.validate_grammar(grammar, self._known)
        except ValueError as error:
            wrong = str(error)
        if wrong:
            said = " ".join(wrong.split())[:300]
            raise InputError(f"the schema cannot be followed: {said}; expected a JSON schema")
        # its own log would quote what clients send
        return Constraint(llguidance.LLMatcher(self._known, grammar, log_level=0))
