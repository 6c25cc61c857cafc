"""From tokens to text, piece by piece: never half a character, never part of a stop string."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

from isthmus.generation.requests import TokenLogprob

BROKEN = "\ufffd"
"""What decoders put for bytes that are no character, or not yet."""


class TextStream:
    """The text of one row of tokens as it grows.

    A token's text depends on what stands before it (a space, the bytes of a character), so a few
    tokens are decoded together: those of the last piece and those behind it.

    Args:
        decode: Token ids to text, special tokens left out.
        stop: Strings that end the text.
        whole: Whether nothing is handed out before `finish`, which costs less where nobody reads
            along and there is no stop string.

    Attributes:
        stopped: Whether a stop string was met; nothing comes after it.

    Example:
        >>> stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"), ["END"])
        >>> [stream.push(byte)[0] for byte in "aé EN.".encode()]
        ['a', '', 'é', ' ', '', '', 'EN.']
    """

    def __init__(
        self, decode: Callable[[list[int]], str], stop: Sequence[str] = (), *, whole: bool = False
    ) -> None:
        self.stopped = False
        self._whole = whole and not stop
        self._decode = decode
        self._stop = tuple(stop)
        self._window: list[int] = []
        self._known = 0  # tokens of the window whose text has been taken
        self._known_text = ""
        self._held = ""  # taken, and maybe the beginning of a stop string
        self._given = 0  # characters handed out
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()

    def push(
        self, token: int, scored: TokenLogprob | None = None
    ) -> tuple[str, tuple[TokenLogprob, ...]]:
        """Text that is certain after one more token, and the tokens that it is of.

        Args:
            token: Its id.
            scored: What is handed out along with its text.
        """
        if scored is not None:
            self._waiting.append((self._given + len(self._held), scored))
        self._window.append(token)
        if self._whole:
            return "", ()
        text = self._decode(self._window)
        if len(text) <= len(self._known_text) or text.endswith(BROKEN):
            return "", ()
        piece = text[len(self._known_text) :]
        self._window = self._window[self._known :]
        self._known = len(self._window)
        self._known_text = self._decode(self._window)
        return self._take(piece)

    def finish(self) -> tuple[str, tuple[TokenLogprob, ...]]:
        """What is left when no more tokens come; half a character is dropped."""
        if self.stopped:
            return "", ()
        left = self._decode(self._window)[len(self._known_text) :].rstrip(BROKEN)
        text, tokens = self._take(left)  # which may stop it after all
        text, self._held = text + self._held, ""
        rest = tuple(scored for _, scored in self._waiting)
        self._waiting.clear()
        return text, (*tokens, *rest)

    def _take(self, piece: str) -> tuple[str, tuple[TokenLogprob, ...]]:
        """What can be handed out now that a piece has been added."""
        held = self._held + piece
        cuts = [place for place in (held.find(s) for s in self._stop) if place >= 0]
        if cuts:
            self.stopped = True
            text, self._held = held[: min(cuts)], ""
        else:
            keep = max((_overlap(held, s) for s in self._stop), default=0)
            text, self._held = held[: len(held) - keep], held[len(held) - keep :]
        self._given += len(text)
        tokens = []
        while self._waiting and self._waiting[0][0] < self._given:
            tokens.append(self._waiting.popleft()[1])
        if self.stopped:
            self._waiting.clear()
        return text, tuple(tokens)


def read(
    decode: Callable[[list[int]], str], ids: Iterable[int], stop: Sequence[str] = ()
) -> tuple[str, bool]:
    r"""The text of tokens up to a stop string, and whether one was met.

    Args:
        decode: As for `TextStream`.
        ids: The tokens.
        stop: Strings that end the text.

    Example:
        >>> read(lambda ids: bytes(ids).decode(errors="replace"), b"one\ntwo", ["\n"])
        ('one', True)
    """
    stream = TextStream(decode, stop, whole=True)
    text = ""
    for token in ids:
        text += stream.push(token)[0]
        if stream.stopped:
            break
    text += stream.finish()[0]
    return text, stream.stopped


def _overlap(text: str, stop: str) -> int:
    """How many characters at a text's end may be the beginning of a stop string."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


class TokenTexts:
    """Text and bytes of single tokens.

    Args:
        tokenizer: A Transformers tokenizer.
        own: Names of the ids above its last one, from `first_own` on.
        first_own: The first id that is not the tokenizer's.

    Example:
        >>> from isthmus.model.backbones.tiny import byte_tokenizer
        >>> TokenTexts(byte_tokenizer(), ("<image>",), 259)(226)
        ('�', (226,))
    """

    def __init__(self, tokenizer: Any, own: Sequence[str], first_own: int) -> None:
        self._tokenizer = tokenizer
        self._own, self._first_own = tuple(own), first_own
        self._special = set(tokenizer.all_special_ids)
        self._of_symbol = _byte_of_symbol() if _is_byte_level(tokenizer) else {}
        self._find = lru_cache(maxsize=8192)(self._found)

    def __call__(self, token: int) -> tuple[str, tuple[int, ...]]:
        """Text and UTF-8 bytes of a token; a special token's are those of its name."""
        return self._find(token)

    def _found(self, token: int) -> tuple[str, tuple[int, ...]]:
        if token >= self._first_own:
            name = self._own[token - self._first_own]
            return name, tuple(name.encode())
        symbols = self._tokenizer.convert_ids_to_tokens(token)
        if symbols is None:  # a row of the embedding that no token has
            return "", ()
        if token in self._special:
            return symbols, tuple(symbols.encode())
        if self._of_symbol and all(s in self._of_symbol for s in symbols):
            raw = bytes(self._of_symbol[s] for s in symbols)
        elif len(symbols) == 6 and symbols.startswith("<0x") and symbols.endswith(">"):
            raw = bytes([int(symbols[3:5], 16)])  # SentencePiece's byte fallback
        elif "▁" in symbols:  # SentencePiece's space, which decoding drops at the beginning
            raw = symbols.replace("▁", " ").encode()
        else:
            raw = str(self._tokenizer.decode([token])).encode()
        return raw.decode(errors="replace"), tuple(raw)


def _is_byte_level(tokenizer: Any) -> bool:
    """Whether a tokenizer's symbols stand for bytes, as GPT-2's do."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return "ByteLevel" in repr(getattr(backend, "decoder", None))


def _byte_of_symbol() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for what lies above 255."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain}
    return table | {chr(256 + place): byte for place, byte in enumerate(others)}
