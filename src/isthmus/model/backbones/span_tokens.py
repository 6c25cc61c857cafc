"""Tokens of spans: the one tokenization of training, prompting, scoring and serving.

Tokenizers merge across boundaries, so it matters where a text is cut before it is tokenized. It is
cut

- at `<image>` and `<|endofchunk|>`, where they are no text to the tokenizer;
- where an answer begins and where it ends, so that the tokens of an answer do not depend on
  whether it is trained, shown in a demonstration, scored or generated;
- nowhere else: a question and the words around it are one text.

Where the tokenizer itself knows a token for an image, the tag is written as that token, and the
text around it is tokenized as the model's own processor does.

In somebody's words (`Span.role` of "system", "user" and "assistant") a special token such as
`<|im_end|>` is spelled out in ordinary tokens and never becomes the control token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from isthmus.errors import PromptError
from isthmus.prompts.prompt import END_TAG, IMAGE_TAG, Span, lone_surrogate

_TAGS = re.compile(f"({re.escape(IMAGE_TAG)}|{re.escape(END_TAG)})")
_OWN = ("template", "image", "end")
"""Roles in which special tokens and tags have their power."""
_ANCHOR = "\n"
"""Stands before a text that goes on, for tokenizers that begin every text with a space."""


def pieces(spans: Iterable[Span]) -> Iterator[tuple[list[Span], bool]]:
    """The groups of spans that are tokenized together, and whether each is learned.

    Example:
        >>> from isthmus.prompts.templates import plain
        >>> from isthmus.prompts.prompt import Example, joined
        >>> turn = Example((), "1 + 1?", "2")
        >>> [(joined(piece), learned) for piece, learned in pieces(plain.conversation([turn]))]
        [('Question: 1 + 1? Answer:', False), (' 2', True), ('<|endofchunk|>', True)]
    """
    for (learned, _), group in groupby(spans, lambda s: (s.learned, s.role == "end")):
        yield list(group), learned


class SpanTokenizer:
    """Token ids of spans.

    Args:
        tokenizer: A Transformers tokenizer, fast or slow.
        image_id: Id of `<image>`.
        end_id: Id of `<|endofchunk|>`.
        written: What the tags are to the tokenizer, where it has tokens of its own for them.

    Example:
        >>> from isthmus.model.backbones.tiny import byte_tokenizer
        >>> spans = SpanTokenizer(byte_tokenizer(), 300, 301)
        >>> spans.encode([Span("</s>"), Span("</s>", "user")])
        [258, 60, 47, 115, 62]
    """

    def __init__(
        self, tokenizer: Any, image_id: int, end_id: int, written: Mapping[str, str] | None = None
    ) -> None:
        self.tokenizer, self.image_id, self.end_id = tokenizer, image_id, end_id
        self.written = dict(written or {})
        self._size = -1
        self._special: dict[str, Any] = {}
        self._pattern: re.Pattern[str] | None = None
        self._prefixes: tuple[int, ...] | None = None

    def encode(self, spans: Iterable[Span], *, goes_on: bool = False) -> list[int]:
        """Token ids of spans, without special tokens at the ends.

        Args:
            spans: The spans.
            goes_on: Whether they stand behind others.

        Raises:
            PromptError: If a text is no Unicode, or a special token cannot be spelled out.
        """
        return [i for ids, _ in self.encode_pieces(spans, goes_on=goes_on) for i in ids]

    def encode_pieces(
        self, spans: Iterable[Span], *, goes_on: bool = False
    ) -> list[tuple[list[int], bool]]:
        """Token ids of the groups that are tokenized together, and whether each is learned.

        Args:
            spans: The spans.
            goes_on: As for `encode`.

        Raises:
            PromptError: As for `encode`.
        """
        spans = list(spans)
        for span in spans:
            _refuse_surrogates(span)
        self._learn_special()
        found: list[tuple[list[int], bool]] = []
        first = not goes_on
        for piece, learned in pieces(spans):
            ids: list[int] = []
            for run in _runs(piece, self.written):
                if isinstance(run, str):
                    ids.append(self.image_id if run == IMAGE_TAG else self.end_id)
                else:
                    ids += self._encode_run(run, first)
                first = False
            found.append((ids, learned))
        return found

    def _learn_special(self) -> None:
        """Looks the tokenizer's special tokens up, again where tokens were added."""
        if len(self.tokenizer) == self._size:
            return
        self._size = len(self.tokenizer)
        known = getattr(self.tokenizer, "added_tokens_decoder", {})
        self._special = {t.content: t for t in known.values() if t.special and t.content}
        for text in getattr(self.tokenizer, "all_special_tokens", ()):
            self._special.setdefault(text, None)
        added = {t.content: t for t in known.values()}
        for text in self.written.values():  # which a tokenizer may not call special
            self._special.setdefault(text, added.get(text))
        longest_first = sorted(self._special, key=len, reverse=True)
        self._pattern = (
            re.compile("|".join(map(re.escape, longest_first))) if self._special else None
        )
        bare = list(self.tokenizer.encode("a", add_special_tokens=False))
        behind = list(self.tokenizer.encode(f"{_ANCHOR}a", add_special_tokens=False))
        anchor = list(self.tokenizer.encode(_ANCHOR, add_special_tokens=False))
        adds_space = behind[: len(anchor)] == anchor and behind[len(anchor) :] != bare
        self._prefixes = tuple(anchor) if adds_space else None

    def _encode_run(self, run: list[tuple[str, bool]], first: bool) -> list[int]:
        """Token ids of a text whose fragments say whether special tokens have their power."""
        text = "".join(fragment for fragment, _ in run)
        if self._pattern is None or not self._pattern.search(text):
            return self._native(text, first)
        own: list[tuple[int, int]] = []  # where the template's special tokens stand
        at = 0
        for fragment, powerful in run:
            if powerful:
                own += [(at + m.start(), at + m.end()) for m in self._pattern.finditer(fragment)]
            at += len(fragment)
        if [m.span() for m in self._pattern.finditer(text)] == own:
            return self._native(text, first)
        ids: list[int] = []
        at = 0
        for start, end in [*own, (len(text), len(text))]:
            between, mark = text[at:start], text[start:end]
            token = self._special.get(mark)
            if getattr(token, "lstrip", False):
                between = between.rstrip()
            if between:
                ids += self._spelled_out(between, first and not ids)
            if mark:
                ids.append(int(self.tokenizer.convert_tokens_to_ids(mark)))
            at = end
            if getattr(token, "rstrip", False):
                at += len(text[at:]) - len(text[at:].lstrip())
        return ids

    def _spelled_out(self, text: str, first: bool) -> list[int]:
        """Token ids of a text in which special tokens are text."""
        assert self._pattern is not None
        match = self._pattern.search(text)
        if match is None:
            return self._native(text, first)
        ids = self._native(text, first, split_special_tokens=True)
        named = {self.tokenizer.convert_tokens_to_ids(m) for m in self._pattern.findall(text)}
        if not named & set(ids):
            return ids
        # a tokenizer that always sees them sees no halves
        middle = (match.start() + match.end() + 1) // 2
        if len(match.group()) < 2:
            raise PromptError(
                f"the language model's tokenizer has no other way to write {match.group()!r} than "
                f"its special token: leave it out of {text[:60]!r}"
            )
        halves = (text[:middle], text[middle:])
        return [
            *self._spelled_out(halves[0], first),
            *self._spelled_out(halves[1], False),
        ]

    def _native(self, text: str, first: bool, **options: Any) -> list[int]:
        """The tokenizer's own ids of a text, which is the first or goes on after something."""
        if first or self._prefixes is None:
            return list(self.tokenizer.encode(text, add_special_tokens=False, **options))
        whole = self.tokenizer.encode(_ANCHOR + text, add_special_tokens=False, **options)
        if tuple(whole[: len(self._prefixes)]) != self._prefixes:  # the anchor was merged
            return list(self.tokenizer.encode(text, add_special_tokens=False, **options))
        return list(whole[len(self._prefixes) :])


def _runs(
    piece: Sequence[Span], written: Mapping[str, str]
) -> Iterator[str | list[tuple[str, bool]]]:
    """Tags, and between them texts in fragments with whether special tokens have their power.

    A tag that is a token of the tokenizer's is text.
    """
    run: list[tuple[str, bool]] = []
    for span in piece:
        powerful = span.role in _OWN
        for text in _TAGS.split(span.text) if powerful else [span.text]:
            is_tag = powerful and text in (IMAGE_TAG, END_TAG)
            if is_tag and text in written:
                text, is_tag = written[text], False
            if is_tag:
                if run:
                    yield run
                run = []
                yield text
            elif text and run and run[-1][1] == powerful:
                run[-1] = (run[-1][0] + text, powerful)
            elif text:
                run.append((text, powerful))
    if run:
        yield run


def _refuse_surrogates(span: Span) -> None:
    """Refuses a text that cannot be written as Unicode.

    Raises:
        PromptError: If there is a lone surrogate in it.
    """
    if wrong := lone_surrogate(span.text, f"the {span.role}'s text"):
        mend = "Replace it, or repair where the text comes from"
        raise PromptError(f"{wrong}; expected the whole character. {mend}")
