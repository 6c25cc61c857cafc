"""A tokenizer as llama.cpp has it: its words, their kinds, its merges, how a text is cut first.

llama.cpp cuts texts by programs of its own, which it knows by name ("smollm", "llama-bpe"), so a
tokenizer is written only if its way of cutting is one of those, rule by rule. A tokenizer that was
made of sentencepiece's (Llama 2, Mistral) joins pieces by their scores there and by a list of
merges here; the place of a piece in that list is its score.
"""

from __future__ import annotations

import json
from typing import Any

from isthmus.errors import ExportError
from isthmus.exporting.language import INSTEAD
from isthmus.exporting.tokens import WrittenTokens
from isthmus.model.vlm import VisionLanguageModel

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BYTES = ("ByteLevel", False)
"""Bytes as letters, with no cutting of their own."""
CUTS: dict[tuple[tuple[Any, ...], ...], tuple[str, bool]] = {
    (("ByteLevel", True),): ("gpt-2", False),
    (("Digits", True), ("ByteLevel", True)): ("smollm", False),
    (
        ("Split", _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST),
        _BYTES,
    ): ("llama-bpe", True),
    (
        ("Split", _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST),
        _BYTES,
    ): ("qwen2", False),
    (
        (
            "Split",
            rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
            r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        _BYTES,
    ): ("tekken", True),
}
"""Ways to cut a text before merging: llama.cpp's name, and whether a word that is a token whole is
one before any merge."""
UNUSED_SCORE = -1e9


def refuse_others(model: VisionLanguageModel, added: WrittenTokens) -> None:
    """Refuses a tokenizer that llama.cpp has no like of.

    Raises:
        ExportError: If there is none.
    """
    name, start = model.language.config.name, model.language.start_ids
    _kind(added.tokenizer, name)
    if start not in ([], [added.tokenizer.bos_token_id]):
        raise _unknown(name, f"puts the tokens {start} before each text")


def cut_name(tokenizer: Any, name: str = "the language model") -> str:
    """How llama.cpp calls the way in which a tokenizer cuts texts; "" for sentencepiece's.

    Raises:
        ExportError: If it has no name for it.

    Example:
        >>> from isthmus.model.backbones.tiny import byte_tokenizer
        >>> cut_name(byte_tokenizer())
        'gpt-2'
    """
    return _kind(tokenizer, name)[1]


def write_tokenizer(
    writer: Any, model: VisionLanguageModel, added: WrittenTokens, template: str
) -> None:
    """Writes the keys of a tokenizer.

    Args:
        writer: A `gguf.GGUFWriter`.
        model: The model.
        added: The tokenizer with its tokens.
        template: The chat template.
    """
    from gguf import TokenType

    tokenizer, core = added.tokenizer, _core(added.tokenizer)
    family, cut = _kind(tokenizer, model.language.config.name)
    words = {i: word for word, i in tokenizer.get_vocab().items()}
    tokens = [words.get(i, f"[PAD{i}]") for i in range(added.rows)]
    kinds = [TokenType.NORMAL if i in words else TokenType.UNUSED for i in range(added.rows)]
    for i, token in tokenizer.added_tokens_decoder.items():
        if i < added.rows:
            kinds[i] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in core["merges"]]
    writer.add_tokenizer_model(family)
    writer.add_token_list(tokens)
    if family == "gpt2":
        writer.add_tokenizer_pre(cut)
        # without the key llama.cpp reads no tokenizer; a merge of what no text has does nothing
        writer.add_token_merges([f"{a} {b}" for a, b in merges] or ["\u0100 \u0100"])
    else:
        scores = _scores(tokens, merges)
        for i, word in enumerate(tokens):
            if core["byte_fallback"] and len(word) == 6 and word.startswith("<0x"):
                kinds[i] = TokenType.BYTE
            elif word == core["unk_token"]:
                kinds[i] = TokenType.UNKNOWN
        writer.add_token_scores(scores)
        # llama.cpp's own space would stand behind each image too: the chat template writes it
        writer.add_add_space_prefix(False)
    writer.add_token_types(kinds)
    ends = [i for i in model.language.end_ids() if i < added.rows]
    special = {
        "bos": tokenizer.bos_token_id,
        "eos": ends[0] if ends else added.end_id,
        "eot": added.end_id,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
    }
    for name, token in special.items():
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    writer.add_add_bos_token(bool(model.language.start_ids))
    writer.add_add_eos_token(False)
    writer.add_chat_template(template)


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """Of each token how early it is merged: what comes first has the highest."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks[word]) if word in ranks else UNUSED_SCORE for word in tokens]


def _core(tokenizer: Any) -> dict[str, Any]:
    """What the tokenizer merges by."""
    core: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return core


def _kind(tokenizer: Any, name: str) -> tuple[str, str]:
    """llama.cpp's family of a tokenizer, and the name of its cutting."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    told = {} if backend is None else json.loads(backend.to_str())
    core = told.get("model", {})
    if core.get("type") != "BPE" or core.get("continuing_subword_prefix"):
        raise _unknown(name, f"merges no pairs (it is {core.get('type', 'a slow tokenizer')!r})")
    if _is_sentencepiece(told):
        return "llama", ""
    steps = tuple(_step(step) for step in _flat(told.get("pre_tokenizer"), "pretokenizers"))
    normal = [step["type"] for step in _flat(told.get("normalizer"), "normalizers")]
    if steps not in CUTS or normal not in ([], ["NFC"]):
        rules = " then ".join(str(step[0]) for step in steps) or "nothing"
        raise _unknown(name, f"cuts texts by {rules} in another way")
    cut, whole = CUTS[steps]
    if bool(core.get("ignore_merges")) != whole:
        way = "before" if core.get("ignore_merges") else "only after"
        raise _unknown(name, f"takes whole words {way} merging, unlike llama.cpp's {cut!r}")
    return "gpt2", cut


def _is_sentencepiece(told: dict[str, Any]) -> bool:
    """Whether spaces are marks of words and nothing else is cut."""
    cuts = _flat(told.get("pre_tokenizer"), "pretokenizers")
    normal = _flat(told.get("normalizer"), "normalizers")
    if [c["type"] for c in cuts] == ["Metaspace"] and not normal:
        return True
    marks = [n for n in normal if n["type"] == "Replace" and n.get("content") == "\u2581"]
    return not cuts and bool(marks) and all(n["type"] in ("Prepend", "Replace") for n in normal)


def _flat(step: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return list(step[inner]) if step["type"] == "Sequence" else [step]


def _step(step: dict[str, Any]) -> tuple[Any, ...]:
    """A step of cutting, as `CUTS` writes it."""
    kind = step["type"]
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return kind, step["use_regex"]
    if kind == "Digits":
        return kind, step["individual_digits"]
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        return kind, step["pattern"].get("Regex", "")
    return (kind, json.dumps(step, sort_keys=True))


def _unknown(name: str, what: str) -> ExportError:
    return ExportError(
        f"the tokenizer of {name} {what}, which is not written for llama.cpp: expected one that "
        "cuts as GPT-2's, SmolLM's, Llama 2's, Llama 3's, Qwen 2's or Mistral's Tekken does; "
        f"{INSTEAD}"
    )
