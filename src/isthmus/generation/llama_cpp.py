"""The language model in llama.cpp: embeddings and tokens in, logits out, sequences of its cache.

The binding is `llama-cpp-python`, whose module `llama_cpp.llama_cpp` declares llama.cpp's C
interface. A batch of it may hold embeddings in place of tokens (`llama_batch.embd`), so whatever
stands before the language model here stands before it there.

The weights are written to a GGUF file for the time of loading (`llama_file`). Adapters that act in
sight of images are a LoRA of llama.cpp's, which is switched on for the tokens that they act on.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import logging
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from threading import RLock
from typing import Any
from weakref import WeakKeyDictionary, finalize

import numpy
import torch
from torch import Tensor

from isthmus.errors import ConfigError, MissingExtraError, PromptError
from isthmus.generation.llama_file import write_adapter, write_model
from isthmus.generation.prefix import Room
from isthmus.model.backbones.llama_cpp import lacking
from isthmus.model.vlm import VisionLanguageModel

_log = logging.getLogger(__name__)

CELLS = 8192
"""Tokens that the cache has room for, of all sequences together, where a model reads as many."""
SEQUENCES = 255
"""Sequences that a unified cache of llama.cpp's tells apart, less one."""
BATCH = 512
"""Most tokens of one call."""
_CLASSES = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
_NO_SLOT = 1


class CacheFull(PromptError):
    """The cache has no room for more tokens, and holds no prefix that could go."""


def is_installed() -> bool:
    """Whether the binding is.

    Example:
        >>> is_installed() in (True, False)
        True
    """
    return importlib.util.find_spec("llama_cpp") is not None


def unfit(model: VisionLanguageModel) -> str:
    """Why llama.cpp cannot decode for a model; empty if it can.

    Example:
        >>> import isthmus as im
        >>> unfit(im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline()))
        ''
        >>> unfit(im.compose("tiny-vit", "tiny-lm", im.Linear(), im.CrossAttention(every=2)))
        'its images are seen through blocks of its own between the layers'
    """
    language, fusion = model.language, model.fusion
    if fusion.sees != "nothing" or fusion.blocks:
        return "its images are seen through blocks of its own between the layers"
    if getattr(fusion, "deepstack", 0):
        return "features of images are added behind layers"
    if language.axes > 1 or language.reading.sees != "none" or language.reading.first:
        return "its tokens have other positions or masks than those of a text"
    if type(language.model).__name__ not in _CLASSES:
        return f"its language model is a {type(language.model).__name__}"
    if found := lacking(language):
        return f"its language model {found[0]}"
    if any(kind != "full_attention" for kind in _kinds_of_layers(language.model.config)):
        return "its language model sees no further than a window"
    if language.config.lora_rank:
        return "its language model has LoRA of its own"
    if language.placed:
        return "its language model is laid over devices"
    if not language.input_embedding.weight.is_floating_point() or language.computes_in == "int8":
        return "its language model is quantised already: load it in float32"
    return ""


_READ: WeakKeyDictionary[VisionLanguageModel, LlamaCpp] = WeakKeyDictionary()


def decoder_of(model: VisionLanguageModel) -> LlamaCpp | None:
    """llama.cpp for a model that was loaded with `engine="llama"`; None where PyTorch decodes.

    Where llama.cpp cannot, a warning says why. The language model is read at the first call, so
    that what is trained later changes nothing.

    Raises:
        MissingExtraError: If the binding is not installed.
    """
    if getattr(model, "engine", "torch") != "llama":
        return None
    if reason := unfit(model):
        _log.warning("engine llama: %s, so PyTorch decodes", reason)
        return None
    if model not in _READ:
        _READ[model] = LlamaCpp(model)
    return _READ[model]


class LlamaCpp:
    """A language model in llama.cpp, and the sequences that it keeps keys and values of.

    A token's keys and values lie in a cell. Sequences that begin alike share cells, so that a copy
    costs nothing. Threads take turns.

    Args:
        model: The model; its language model is read once, and not kept.
        cells: Tokens that there is room for; None for what the model reads, `CELLS` at most.
        exact: Whether weights, keys and values stay in float32, for comparisons.

    Attributes:
        cells: As above.
        cell_bytes: Bytes of a token's keys and values.
        least: Cells that a sequence counts for at least, since sequences are counted too.
        prefixes: Room for prefixes, half of the cells, whoever keeps them. They go when it is full.
        columns: Logits of a token.

    Raises:
        ConfigError: If llama.cpp cannot decode for it (`unfit`), or refuses the file.
        MissingExtraError: If the binding is not installed.
    """

    def __init__(
        self, model: VisionLanguageModel, *, cells: int | None = None, exact: bool = False
    ) -> None:
        if reason := unfit(model):
            raise ConfigError(f'engine "llama": {reason}; expected another model, or no engine')
        if not is_installed():
            raise MissingExtraError('engine "llama"', "llama")
        self._c = _binding()
        config = model.language.model.config
        self.width = int(config.hidden_size)
        self.cells = min(int(config.max_position_embeddings), CELLS) if cells is None else cells
        with tempfile.TemporaryDirectory(prefix="isthmus-") as folder, torch.no_grad():
            self._load(model, Path(folder), exact)
        self.columns = int(self._c.llama_vocab_n_tokens(self._c.llama_model_get_vocab(self._model)))
        self.cell_bytes = self._bytes_of_cell(config, 4 if exact else 2)
        self._memory = self._c.llama_get_memory(self._context)
        self._most = int(self._c.llama_n_batch(self._context))  # more would end the process
        self._embeddings = self._c.llama_batch_init(self._most, self.width, 1)
        self._tokens = self._c.llama_batch_init(self._most, 0, 1)
        self._turn = RLock()
        self.least = self.cells // SEQUENCES + 1
        self.prefixes = Room(self.cells * self.cell_bytes // 2, self._turn)
        self._free = deque(range(SEQUENCES))
        self._dropped: deque[int] = deque()
        self._adapted = False
        batches = (self._embeddings, self._tokens)
        finalize(self, _close, self._turn, self._c, self._context, self._model, *batches)

    # --- loading ----------------------------------------------------------------------------------

    def _load(self, model: VisionLanguageModel, folder: Path, exact: bool) -> None:
        path = folder / "model.gguf"
        write_model(model, path, exact=exact)
        options = self._c.llama_model_default_params()
        options.n_gpu_layers, options.use_mmap = 0, False  # the file is gone soon
        self._model = self._c.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise ConfigError(f"llama.cpp cannot read what was written of {_name(model)}")
        self._adapter: Any = None
        if model.fusion.adapter is not None:
            path = folder / "adapter.gguf"
            write_adapter(model, path)
            self._adapter = self._c.llama_adapter_lora_init(self._model, str(path).encode())
            if not self._adapter:
                raise ConfigError(f"llama.cpp cannot read the adapters of {_name(model)}")
        told = self._c.llama_context_default_params()
        told.n_ctx, told.n_batch, told.n_ubatch = self.cells, BATCH, BATCH
        told.n_seq_max, told.kv_unified, told.no_perf = SEQUENCES + 1, True, True
        told.n_threads = told.n_threads_batch = torch.get_num_threads()
        if exact:
            told.type_k = told.type_v = self._c.GGML_TYPE_F32
            told.flash_attn_type = self._c.LLAMA_FLASH_ATTN_TYPE_DISABLED  # which rounds to f16
        self._context = self._c.llama_init_from_model(self._model, told)
        if not self._context:
            raise ConfigError(f"llama.cpp has no room for {self.cells} tokens of {_name(model)}")

    def _bytes_of_cell(self, config: Any, size: int) -> int:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head = getattr(config, "head_dim", None) or self.width // config.num_attention_heads
        return int(2 * size * heads * head * config.num_hidden_layers)

    # --- sequences --------------------------------------------------------------------------------

    def take(self, count: int = 1) -> list[int]:
        """Sequences that are empty: all of them or none.

        Raises:
            PromptError: If there would be more than can be told apart.
        """
        with self._turn:
            self._sweep()
            while len(self._free) < count and self.prefixes.evict():
                self._sweep()
            if len(self._free) < count:
                raise PromptError(
                    f"llama.cpp keeps {SEQUENCES - len(self._free)} sequences and has no more than "
                    f"{SEQUENCES}, and {count} are wanted: ask for fewer at a time"
                )
            return [self._free.popleft() for _ in range(count)]

    def drop(self, sequences: Sequence[int]) -> None:
        """Lets sequences go, without waiting for a turn: whoever collects garbage calls it."""
        self._dropped.extend(sequences)

    def _sweep(self) -> None:
        """Empties what was let go."""
        while self._dropped:
            number = self._dropped.popleft()
            self._c.llama_memory_seq_rm(self._memory, number, -1, -1)
            self._free.append(number)

    def copy(self, sequence: int, length: int, count: int = 1) -> list[int]:
        """New sequences that begin as another one does, so many tokens long.

        Raises:
            PromptError: As `take`.
        """
        with self._turn:
            found = self.take(count)
            for own in found:
                self._c.llama_memory_seq_cp(self._memory, sequence, own, 0, length)
            return found

    def cut(self, sequence: int, length: int) -> None:
        """Takes back what stands behind the first tokens of a sequence."""
        with self._turn:
            self._c.llama_memory_seq_rm(self._memory, sequence, length, -1)

    # --- computing --------------------------------------------------------------------------------

    def read(self, sequence: int, past: int, embeddings: Tensor, adapted: Sequence[bool]) -> Tensor:
        """Logits (columns,) behind embeddings (N, D) that continue a sequence of `past` tokens.

        Args:
            sequence: The sequence.
            past: Its tokens so far.
            embeddings: What comes behind them, N at least 1.
            adapted: (N,), on which of them the adapters act.

        Raises:
            CacheFull: If there is no room for them.
        """
        values = embeddings.detach().to("cpu", torch.float32).contiguous()
        last, batch = len(values) - 1, self._embeddings
        with self._turn:
            for start, end, acts in _pieces(adapted, self._most):
                here = values[start:end]
                ctypes.memmove(batch.embd, here.data_ptr(), here.numel() * here.element_size())
                places = [(sequence, past + start + n) for n in range(end - start)]
                self._compute(batch, places, acts, wanted=[last - start] if end > last else [])
            return self._logits(last - start)

    def step(
        self, ids: Sequence[int], places: Sequence[tuple[int, int]], adapted: bool
    ) -> list[Tensor]:
        """Logits (columns,) of each of some sequences after one more token.

        Args:
            ids: The tokens.
            places: Sequence and position of each.
            adapted: Whether the adapters act on them.

        Raises:
            CacheFull: If there is no room for them.
        """
        found: list[Tensor] = []
        for start in range(0, len(ids), self._most):
            end = start + self._most
            part, there = ids[start:end], places[start:end]
            every = list(range(len(part)))
            with self._turn:
                for n, token in enumerate(part):
                    self._tokens.token[n] = token
                self._compute(self._tokens, there, adapted, wanted=every)
                found += [self._logits(n) for n in every]
        return found

    def _compute(
        self,
        batch: Any,
        places: Sequence[tuple[int, int]],
        adapted: bool,
        wanted: Sequence[int],
    ) -> None:
        self._sweep()
        self._adapt(adapted)
        batch.n_tokens = len(places)
        for n, (sequence, position) in enumerate(places):
            batch.pos[n], batch.n_seq_id[n], batch.logits[n] = position, 1, 0
            batch.seq_id[n][0] = sequence
        for n in wanted:
            batch.logits[n] = 1
        code = self._c.llama_decode(self._context, batch)
        while code == _NO_SLOT and self.prefixes.evict():  # which leaves the cache as it was
            self._sweep()
            code = self._c.llama_decode(self._context, batch)
        if code == _NO_SLOT:
            raise CacheFull(
                f"llama.cpp's cache has {self.cells} tokens and no room for {len(places)} more: "
                "shorten the prompts, or ask for fewer at a time"
            )
        if code:
            raise RuntimeError(f"llama.cpp could not compute a batch (llama_decode: {code})")

    def _adapt(self, adapted: bool) -> None:
        """Switches the adapters."""
        if self._adapter is None or adapted == self._adapted:
            return
        number = int(adapted)
        adapters = (self._c.llama_adapter_lora_p_ctypes * 1)(self._adapter)
        self._c.llama_set_adapters_lora(self._context, adapters, number, (ctypes.c_float * 1)(1.0))
        self._adapted = adapted

    def _logits(self, number: int) -> Tensor:
        found = self._c.llama_get_logits_ith(self._context, number)
        return torch.from_numpy(numpy.ctypeslib.as_array(found, (self.columns,)).copy())


@cache
def _binding() -> Any:
    """The binding's module, made ready; llama.cpp writes nothing to the terminal."""
    c: Any = importlib.import_module("llama_cpp.llama_cpp")
    _KEPT.append(c.llama_log_callback(lambda level, text, data: None))
    c.llama_log_set(_KEPT[-1], None)
    c.llama_backend_init()
    return c


_KEPT: list[Any] = []
"""Functions that llama.cpp may call for as long as the process lives."""


def _kinds_of_layers(config: Any) -> Sequence[str]:
    """How each layer attends, where a configuration says so."""
    if getattr(config, "layer_types", None):
        return list(config.layer_types)
    slides = getattr(config, "use_sliding_window", True) and getattr(config, "sliding_window", None)
    return ["sliding_attention"] if slides else []


def _close(turn: Any, c: Any, context: Any, model: Any, *batches: Any) -> None:
    """Frees everything; the turn is nobody's afterwards, such as a server's thread at the end."""
    if not turn.acquire(timeout=5):
        return
    for batch in batches:
        c.llama_batch_free(batch)
    c.llama_free(context)
    c.llama_model_free(model)


def _pieces(adapted: Sequence[bool], most: int) -> Iterator[tuple[int, int, bool]]:
    """Runs of tokens on which adapters act or do not, cut where one has `most`: from, to, which.

    Example:
        >>> list(_pieces([False, True, True], most=4))
        [(0, 1, False), (1, 3, True)]
    """
    start = 0
    for n in range(1, len(adapted) + 1):
        if n == len(adapted) or adapted[n] != adapted[start] or n - start == most:
            yield start, n, adapted[start]
            start = n


def _name(model: VisionLanguageModel) -> str:
    return model.language.config.name
