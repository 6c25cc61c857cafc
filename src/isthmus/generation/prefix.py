"""Prefixes that many prompts share, computed once and never changed.

A prefix is known by its symbols: the token ids of its text, and for each token of an image's
layout the hash of that image's content. The states of a prefix, what the language model's
layers keep of it, are shared by all that continue it: a continuation appends to a fork, whose
tensors are views of the prefix's own until something is appended, which makes new ones.

A new prefix starts from the kept one that it has most symbols in common with, so that a tree of
prefixes is computed without any part of it computed twice.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from threading import RLock
from typing import Any, Protocol, runtime_checkable
from weakref import WeakSet

from transformers.cache_utils import DynamicLayer

from isthmus.model.layout import Layout, whole_images

Symbols = tuple[int | str, ...]


@dataclass(eq=False)
class Prefix:
    """The states of some symbols.

    Attributes:
        symbols: What it is the prefix of a prompt's symbols.
        states: The language model's own cache after them, one row; never to be written to.
        bytes: What the states take.
        used: When it was used last, by its room's clock.
    """

    symbols: Symbols
    states: Any
    bytes: int
    used: int = 0


@runtime_checkable
class KeptElsewhere(Protocol):
    """States that another engine keeps, all keys and values one by one."""

    @property
    def bytes(self) -> int:
        """What they take."""
        ...

    def fork(self, length: int, rows: int) -> KeptElsewhere:
        """As the function `fork`."""
        ...


def can_be_cut(states: Any) -> bool:
    """Whether states can be cut short: each layer keeps all keys and values, one by one.

    A sliding window has forgotten its beginning, and a recurrent state cannot go back.
    """
    if isinstance(states, KeptElsewhere):
        return True
    # a subclass may keep something else besides
    return all(type(layer) is DynamicLayer and layer.is_initialized for layer in states.layers)


def fork(states: Any, length: int, rows: int = 1) -> Any:
    """States of the first tokens, ready to be appended to, the given ones left as they are.

    Args:
        states: A language model's cache with one row.
        length: How many tokens to keep; fewer than there are only where `can_be_cut`.
        rows: How many rows will continue it.
    """
    if isinstance(states, KeptElsewhere):
        return states.fork(length, rows)
    if not can_be_cut(states):
        own = copy.deepcopy(states)
        own.batch_repeat_interleave(rows)
        return own
    own = copy.copy(states)
    own.layers = [copy.copy(layer) for layer in states.layers]
    for layer in own.layers:
        # views: appending concatenates, which leaves what they are views of alone
        layer.keys = layer.keys[:, :, :length].expand(rows, -1, -1, -1)
        layer.values = layer.values[:, :, :length].expand(rows, -1, -1, -1)
    return own


def bytes_of(states: Any) -> int:
    """Bytes of all tensors of a language model's cache."""
    if isinstance(states, KeptElsewhere):
        return states.bytes
    tensors = [t for layer in states.layers for t in vars(layer).values() if hasattr(t, "numel")]
    return sum(t.numel() * t.element_size() for t in tensors)


def common(a: Sequence[int | str], b: Sequence[int | str]) -> int:
    """How many symbols two sequences begin with in common.

    Example:
        >>> common([1, 2, 3], [1, 2, 4, 5])
        2
    """
    low, high = 0, min(len(a), len(b))
    while low < high:  # slices are compared much faster than their members in a loop
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def boundary(
    symbols: Sequence[int | str], place: int, layouts: Sequence[Layout], *, down: bool = True
) -> int:
    """The place itself, or an end of the image whose layout it would cut in two.

    The tokens of an image enter the language model together, so no prefix and no piece of a prompt
    ends between them.

    Args:
        symbols: The symbols of a prompt.
        place: How many of them a prefix would hold.
        layouts: The layouts of the prompt's images.
        down: Whether the place before the image is taken, or the one behind it.

    Example:
        >>> from isthmus.model.layout import HOLE, Layout
        >>> symbols, layouts = [7, "a", "a", "a", 8], [Layout((HOLE,) * 3)]
        >>> boundary(symbols, 2, layouts), boundary(symbols, 2, layouts, down=False)
        (1, 4)
    """
    passed = sum(isinstance(s, str) for s in symbols[:place])
    whole = whole_images(passed, layouts)
    inside = passed - sum(len(layout) for layout in layouts[:whole])
    if not inside:
        return place
    return place - inside if down else place - inside + len(layouts[whole])


class Room:
    """Memory that several stores share: what was used least recently goes first, whosever it is.

    Args:
        memory: Most bytes of all stores together.
        lock: Held by whoever reads or changes a store: another thread may make room in it.
    """

    def __init__(self, memory: int, lock: Any = None) -> None:
        self.memory = memory
        self.lock = RLock() if lock is None else lock
        self.clock = count()
        self.stores: WeakSet[PrefixStore] = WeakSet()

    def evict(self) -> bool:
        """Lets a prefix go; False if there is none."""
        with self.lock:
            stores = [store for store in self.stores if len(store)]
            if stores:
                min(stores, key=lambda store: store.oldest).evict()
            return bool(stores)

    def keep_within(self) -> None:
        """Lets prefixes go until the rest is no more than there may be."""
        with self.lock:
            while sum(store.bytes for store in self.stores) > self.memory and self.evict():
                pass


class PrefixStore:
    """Prefixes within a bound of memory; the least recently used go first.

    Args:
        memory: Most bytes.
        room: What it shares with other stores; None for nothing.

    Attributes:
        memory: Most bytes of a prefix.
        bytes: Bytes kept.
        evictions: How many had to go.
    """

    def __init__(self, memory: int, room: Room | None = None) -> None:
        self._room = Room(memory) if room is None else room
        self._room.stores.add(self)
        self.memory = min(memory, self._room.memory)
        self.bytes = self.evictions = 0
        self._kept: OrderedDict[Symbols, Prefix] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, symbols: Symbols) -> bool:
        return symbols in self._kept

    @property
    def oldest(self) -> int:
        """When the prefix that goes first was used."""
        return next(iter(self._kept.values())).used

    def get(self, symbols: Symbols) -> Prefix | None:
        """The prefix of exactly these symbols."""
        with self._room.lock:
            prefix = self._kept.get(symbols)
            if prefix is not None:
                self._use(prefix)
            return prefix

    def nearest(self, symbols: Symbols) -> tuple[Prefix, int] | None:
        """The kept prefix that helps most with these symbols, and how many it helps with."""
        best: tuple[Prefix, int] | None = None
        with self._room.lock:
            for prefix in self._kept.values():
                shared = common(prefix.symbols, symbols)
                if shared < len(prefix.symbols) and not can_be_cut(prefix.states):
                    continue
                if shared and (best is None or shared > best[1]):
                    best = (prefix, shared)
            if best is not None:
                self._use(best[0])
        return best

    def _use(self, prefix: Prefix) -> None:
        prefix.used = next(self._room.clock)
        self._kept.move_to_end(prefix.symbols)

    def drop(self, symbols: Symbols) -> None:
        """Forgets a prefix, such as one that a longer one holds."""
        with self._room.lock:
            prefix = self._kept.pop(symbols, None)
            if prefix is not None:
                self.bytes -= prefix.bytes

    def evict(self) -> None:
        """Lets the prefix go that was used least recently."""
        with self._room.lock:
            _, gone = self._kept.popitem(last=False)
            self.bytes -= gone.bytes
            self.evictions += 1

    def put(self, symbols: Symbols, states: Any) -> Prefix:
        """Keeps states that nobody else will write to, and makes room for them."""
        with self._room.lock:
            self.drop(symbols)
            prefix = Prefix(symbols, states, bytes_of(states))
            self._kept[symbols] = prefix
            self._use(prefix)
            self.bytes += prefix.bytes
            while self.bytes > self.memory and self._kept:
                self.evict()
            self._room.keep_within()
        return prefix
