"""What a language model's structure allows: rows that share a pass, tokens that form a tree.

Neither may change any logits. Whether they do is a question of masks and positions: of how the
model's family is written, and not of its weights or of their precision. So it is tried on a twin,
a model of the same class and configuration with fewer layers, fewer heads and random weights, in
float32 on the CPU. There a wrong mask moves logits by far more than rounding does, and the twin
must show that it can tell the difference. Where no twin can be made, the model itself is tried, and
may be off by as much as its own states, kept in its own precision, make it.
"""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from isthmus.config.model import LanguageConfig
from isthmus.generation.lanes import Lanes
from isthmus.generation.prefix import can_be_cut
from isthmus.generation.rows import Encoded, Rows
from isthmus.model.backbones.language import LanguageModel
from isthmus.model.backbones.states import as_states, states_in
from isthmus.model.join import bare_language_model
from isthmus.model.vlm import VisionLanguageModel

_log = logging.getLogger(__name__)

_BOUND = 1e-3
"""Relative difference of float32 logits that rounding may make."""
_TELLING = 0.02
"""Relative difference that two swapped tokens must make to a twin's logits."""
_WORDS = 64
"""Rows of a twin's embedding."""
_LARGEST = 60_000_000
"""Most parameters of a twin."""
_INNER = re.compile(r"(intermediate|ffn|inner).*(size|dim)$|^n_inner$")
_VERDICTS: WeakKeyDictionary[nn.Module, dict[tuple[str, Any, Any], bool]] = WeakKeyDictionary()
_SWAPPED = ([1, 2, 3, 4], [2, 1, 3, 4])


# --- a twin ---------------------------------------------------------------------------------------


def twin_of(language: LanguageModel) -> LanguageModel | None:
    """A small float32 language model of the same structure, on the CPU; None if none can be made.

    It keeps the pattern of layers, the size of a head, the query heads to a key head, windows and
    positions. It must tell two prompts apart whose tokens are swapped.

    Example:
        >>> from isthmus.model.backbones.language import load_language
        >>> twin = twin_of(load_language("tiny-lm"))
        >>> twin.vocab_rows
        64
    """
    return _twin_of(language.model, language.tokenizer)


def _twin_of(model: nn.Module, tokenizer: Any) -> LanguageModel | None:
    for smaller in (True, False):
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(0)  # the same twin, whoever asks for it
                twin = _twin(model, tokenizer, smaller)
        except Exception as error:  # a foreign configuration may be anything
            _log.debug("no twin of %s: %r", type(model).__name__, error)
            continue
        if twin is not None:
            return twin
    return None


def _twin(original: Any, tokenizer: Any, smaller: bool) -> LanguageModel | None:
    make = type(original)
    config = copy.deepcopy(original.config)
    _shrink(config.get_text_config(decoder=True), smaller)
    for owner in {id(c): c for c in (config, config.get_text_config(decoder=True))}.values():
        owner.dtype = torch.float32
        owner.eos_token_id = owner.bos_token_id = owner.pad_token_id = 0
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        if sum(p.numel() for p in make(copy.deepcopy(config)).parameters()) > _LARGEST:
            return None
    model: nn.Module = make(config).float().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:  # of a spread that keeps what goes in and what comes out alike
            nn.init.normal_(parameter, std=1.5 / math.sqrt(parameter.shape[-1]))
    twin = LanguageModel(model, tokenizer, LanguageConfig(name="twin"))
    one, other = (_last_logits(twin, ids) for ids in _SWAPPED)
    return twin if _TELLING < _away(one, other) < math.inf else None


def _shrink(config: Any, smaller: bool) -> None:
    """Fewer words and layers, narrower inner layers; fewer heads and so a smaller width too."""
    layers = config.num_hidden_layers
    each = {n: v for n, v in vars(config).items() if isinstance(v, list) and len(v) == layers}
    needed = 8  # a pattern that is told by a number is seldom longer
    for values in each.values():
        kinds = [repr(value) for value in values]
        needed = max(needed, *(kinds.index(kind) + 1 for kind in set(kinds)))
    if needed < layers:
        config.num_hidden_layers = needed
        for name, values in each.items():
            setattr(config, name, values[:needed])
    config.vocab_size = min(config.vocab_size, _WORDS)
    for name, value in list(vars(config).items()):
        if _INNER.search(name) and isinstance(value, int):
            setattr(config, name, min(value, 64))
    heads = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or heads
    few = heads // keys * min(keys, 2)
    if not smaller or few == heads or config.hidden_size * few % heads:
        return
    width = config.hidden_size
    for name, value in list(vars(config).items()):
        if value == width and re.search(r"(hidden|embed|embd|model|proj)", name):
            setattr(config, name, width * few // heads)
    if getattr(config, "num_key_value_heads", None) is not None:
        config.num_key_value_heads = min(keys, 2)
    config.num_attention_heads = few


def _last_logits(language: LanguageModel, ids: Sequence[int]) -> Tensor:
    """Logits (V,) behind tokens, in one pass that keeps nothing."""
    device = language.input_embedding.weight.device
    given = torch.tensor([list(ids)], device=device)
    logits: Tensor = language.model(input_ids=given, use_cache=False).logits
    return logits[0, -1]


def _away(one: Tensor, other: Tensor) -> float:
    """The relative difference of two rows of logits."""
    away = float((one.float() - other.float()).norm() / one.float().norm())
    return math.inf if math.isnan(away) else away


# --- what is tried --------------------------------------------------------------------------------

_Trial = Callable[[LanguageModel], Iterator[tuple[Tensor, list[int]]]]
"""Computes logits in the way that is tried; yields them with the tokens they stand behind."""


def _allows(language: LanguageModel, trial: _Trial, what: str) -> bool:
    """Whether what is tried leaves logits as they are; tried once for a model as it is."""
    weight = language.input_embedding.weight
    known = _VERDICTS.setdefault(language.model, {})
    key = (what, weight.dtype, weight.device)
    if key not in known:
        with torch.random.fork_rng(devices=[]):  # a twin's parts are random
            known[key] = _try(language, trial, what)
    return known[key]


def _try(language: LanguageModel, trial: _Trial, what: str) -> bool:
    try:
        for _ in trial(language):  # the model itself must take it, whatever comes out
            pass
    except Exception as error:  # whatever a foreign model raises, the answer is no
        _log.debug("%s: %r", what, error)
        return False
    twin = twin_of(language)
    tried, bound = language, 0.0
    if twin is not None:
        tried, bound = twin, _BOUND
    else:
        bound = max(_BOUND, 2 * _noise(language))
    worst = 0.0
    try:
        for logits, ids in trial(tried):
            worst = max(worst, _away(_last_logits(tried, ids), logits))
    except Exception as error:
        _log.debug("%s, of a twin: %r", what, error)
        return False
    return worst <= bound


def _noise(language: LanguageModel) -> float:
    """How far logits move for being computed token by token, from states that are kept."""
    device = language.input_embedding.weight.device
    worst, states = 0.0, None
    for end in range(1, 10):
        out = language.model(
            input_ids=torch.tensor([[end]], device=device),
            use_cache=True,
            **(as_states(language.model, states) if states is not None else {}),
        )
        states = states_in(out)
        alone = _last_logits(language, range(1, end + 1))
        worst = max(worst, _away(alone, out.logits[0, -1]))
    return worst


@torch.no_grad()
def takes_lanes(model: VisionLanguageModel) -> bool:
    """Whether rows that share a pass get the logits that they get alone.

    Families whose positions are no argument, whose attention looks at distances on its own (ALiBi),
    or whose states slide or recur, do not.

    Example:
        >>> import isthmus as im
        >>> takes_lanes(im.compose("tiny-vit", "tiny-lm", im.Linear()))
        True
    """
    own = model.language

    def trial(language: LanguageModel) -> Iterator[tuple[Tensor, list[int]]]:
        yield from _in_lanes(model if language is own else bare_language_model(language))

    return _allows(own, trial, "rows in one pass")


class _NoLanes(Exception):
    """The states cannot be cut."""


def _in_lanes(model: VisionLanguageModel) -> Iterator[tuple[Tensor, list[int]]]:
    """Rows that join, are decoded together, and leave."""
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9], [3, 2]]
    further = [[5, 6], [1, 3], [7, 4]]
    lanes = Lanes(model)
    for prompt in prompts:
        ids = tuple(prompt)
        rows = Rows(model, [Encoded(ids, ids, (), ())], {})
        rows.prefill()
        if not can_be_cut(rows.states):
            raise _NoLanes
        lanes.join(rows, [0])
    for n in range(2):
        logits = lanes.step([own[n] for own in further])
        for row, prompt in enumerate(prompts):
            yield logits[row], [*prompt, *further[row][: n + 1]]
    lanes.leave(0)
    logits = lanes.step([7, 7])
    yield logits[0], [*prompts[2], *further[2], 7]
    yield logits[1], [*prompts[1], *further[1], 7]


@torch.no_grad()
def takes_trees(language: LanguageModel) -> bool:
    """Whether a language model reads a token tree as it reads each path alone.

    Families whose positions are no argument, or whose attention looks at distances on its own
    (ALiBi, sliding windows, recurrent states), may not.
    """
    return _allows(language, _in_a_tree, "a tree of tokens")


def _in_a_tree(language: LanguageModel) -> Iterator[tuple[Tensor, list[int]]]:
    """1 2, and behind it the paths 3 4, 3 5 and 6."""
    device = language.input_embedding.weight.device
    ids = torch.tensor([[1, 2, 3, 4, 5, 6]], device=device)
    positions = torch.tensor([[0, 1, 2, 3, 3, 2]], device=device)
    sees = torch.tensor(
        [
            [1, 0, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 0, 0],
            [1, 1, 1, 0, 1, 0],
            [1, 1, 0, 0, 0, 1],
        ],
        device=device,
    ).bool()
    dtype = language.input_embedding.weight.dtype
    mask = torch.zeros(6, 6, dtype=dtype, device=device)
    mask = mask.masked_fill(~sees, torch.finfo(dtype).min)[None, None]
    first = language.model(
        input_ids=ids[:, :2],
        attention_mask=mask[:, :, :2, :2],
        position_ids=positions[:, :2],
        use_cache=True,
    )
    tree = language.model(
        input_ids=ids[:, 2:],
        attention_mask=mask[:, :, 2:],
        position_ids=positions[:, 2:],
        use_cache=True,
        **as_states(language.model, states_in(first)),
    ).logits[0]
    for path, node in (([1, 2, 3, 4], 1), ([1, 2, 3, 5], 2), ([1, 2, 6], 3)):
        yield tree[node], path
