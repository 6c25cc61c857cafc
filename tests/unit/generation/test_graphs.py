"""The step that is recorded as a CUDA graph gives the eager step's logits, and reads nothing back.

The step is computed and not replayed here, but for the last tests, which need a CUDA device.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import isthmus as im
from isthmus import testing
from isthmus.generation.engine import Engine
from isthmus.generation.graph_lanes import GraphLanes
from isthmus.generation.graphs import (
    Block,
    Bucket,
    Graphs,
    StaticStep,
    bucket_for,
    can_be_recorded,
    graphs_for,
)
from isthmus.generation.lanes import Lanes
from isthmus.generation.rows import Encoded, Rows
from isthmus.generation.server import ServingEngine
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model
from isthmus.model.fusion.adapter import Adapter
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import Prompt

ROOMS = (8, 16, 32)
FAMILIES = ["llama", "qwen3", "gemma", "phi", "olmo2"]


def model_of(family: str = "llama", fusion: Any = None) -> VisionLanguageModel:
    torch.manual_seed(0)
    language = tiny_language_model(family)
    fusion = fusion or im.Inline(adapter=Adapter(rank=2, start=1))
    made = im.compose("tiny-vit", language, im.MLP(), fusion, tokenizer=byte_tokenizer())
    testing.open_gates(made)
    with torch.no_grad():
        for parameter in made.fusion.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    return made.eval()


def exact(model: VisionLanguageModel) -> VisionLanguageModel:
    """In float64: rounding does not grow over steps, and a wrong mask stays wrong."""
    return model.double()


def prefilled(model: VisionLanguageModel, ids: list[int], image: bool) -> Rows:
    """One prompt, with an image's 16 visual tokens before it or without."""
    if not image:
        rows = Rows(model, [Encoded(tuple(ids), tuple(ids), (), ())], {})
    else:
        layout = model.layout
        tokens = [model.special_tokens.image_id] * len(layout)
        symbols = ("a",) * len(layout) + tuple(ids)
        chance = torch.Generator().manual_seed(1)
        visual = torch.randn(16, model.language.width, generator=chance)
        visual = visual.to(model.language.input_embedding.weight)
        encoded = Encoded((*tokens, *ids), symbols, ("a",), (layout,))
        rows = Rows(model, [encoded], {"a": visual})
    rows.prefill()
    return rows


def assert_same(logits: torch.Tensor, expected: torch.Tensor) -> None:
    words = min(logits.shape[1], expected.shape[1])
    assert bool((logits[:, words:] == -torch.inf).all())
    assert bool((expected[:, words:] == -torch.inf).all())
    torch.testing.assert_close(logits[:, :words], expected[:, :words], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("family", "when"),
    [*((f, "after") for f in FAMILIES), ("llama", "image"), ("llama", "sample")],
)
def test_the_static_step_is_the_eager_step(family: str, when: Any) -> None:
    """Rows with an image and without join, grow through all rooms and beyond, and leave."""
    model = exact(model_of(family, im.Inline(adapter=Adapter(rank=2, start=1, when=when))))
    graphs = Graphs(model, 4, rooms=ROOMS, records=False)
    static, eager = GraphLanes(graphs), Lanes(model)
    joins = {
        0: [([1, 2, 3], False)],
        3: [([4], False), ([5, 6], False)],
        13: [([7], True), ([8, 9, 9], False)],
        16: [([7, 7], True)],
    }
    leaves = {6: 0, 14: 1, 20: 1}
    chance = torch.Generator().manual_seed(0)
    for number in range(30):
        for ids, image in joins.get(number, []):
            for lanes in (static, eager):
                lanes.join(prefilled(model, ids, image), [0])
        if number in leaves:
            for lanes in (static, eager):
                lanes.leave(leaves[number])
        assert static.lengths == eager.lengths
        ids = torch.randint(0, 256, (len(static.lengths),), generator=chance).tolist()
        assert_same(static.step(ids), eager.step(ids))
    assert {bucket.room for bucket in graphs._steps} == set(ROOMS)
    assert max(static.lengths) > ROOMS[-1]
    for row in range(len(static.lengths)):
        one, other = static.states(row), eager.states(row)
        for mine, theirs in zip(one.layers, other.layers, strict=True):
            torch.testing.assert_close(mine.keys, theirs.keys, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_more_rows_than_recorded_steps_have() -> None:
    model = exact(model_of())
    static, eager = GraphLanes(Graphs(model, 2, rooms=ROOMS, records=False)), Lanes(model)
    for start in range(5):
        for lanes in (static, eager):
            lanes.join(prefilled(model, [start + 1] * (start + 2), start == 3), [0])
        ids = list(range(start + 1))
        assert_same(static.step(ids), eager.step(ids))
    for lanes in (static, eager):
        for _ in range(5):
            lanes.leave(0)
    assert static.lengths == [] and static.bytes == 0  # noqa: PT018


class _Reads(TorchDispatchMode):
    """Notes operators whose result Python reads, or whose shapes values decide."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(n in name for n in ("_local_scalar_dense", "nonzero", "unique", "masked_select")):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@torch.inference_mode()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("images", [False, True])
def test_a_step_reads_nothing_back(family: str, images: bool) -> None:
    """What a graph cannot record, on any device."""
    model = model_of(family)
    rows = prefilled(model, [1, 2], images)
    block = Block(rows.keys_values(0), 4, 32)
    step = StaticStep(model, block, Bucket(4, 32, images))
    step.fill([[1, 2], [3, 4], [3, 4], [1, 0]])
    with step.shown(), _Reads() as reads:
        before = step.compute()
    assert reads.found == []
    addresses = [t.data_ptr() for pair in block.layers for t in pair]
    with step.shown():
        again = step.compute()  # the same inputs write the same keys and values
    assert torch.equal(before, again)
    assert addresses == [t.data_ptr() for pair in block.layers for t in pair]


def test_reading_back_is_noticed() -> None:
    model = model_of(fusion=im.CrossAttention(every=2))
    with _Reads() as reads:
        int(torch.ones(1).sum())
    assert reads.found
    assert not can_be_recorded(model)


@pytest.mark.parametrize(
    ("rows", "length", "expected"),
    [(1, 1, (1, 8)), (3, 8, (4, 8)), (5, 9, (6, 16)), (6, 32, (6, 32)), (2, 33, (2, 32))],
)
def test_the_smallest_bucket_is_taken(rows: int, length: int, expected: tuple[int, int]) -> None:
    assert bucket_for(rows, length, 6, ROOMS, False) == Bucket(*expected, False)


def test_nothing_is_recorded_on_a_cpu() -> None:
    model = model_of().to("cpu")
    assert graphs_for(model, 4) is None
    assert Engine(model)._core.graphs is None


def prompts() -> list[Prompt]:
    picture = Image.effect_noise((32, 32), 90).convert("RGB")
    start = "Names: a, b, c. "
    texts = [f"{start}What is {n}{'?' * n}" for n in range(3)]
    return [
        *(Prompt(text, (), len(start)) for text in texts),
        Prompt("<image>What is it?", (picture,)),
        Prompt("<image>Say more.", (picture,)),
    ]


@pytest.mark.parametrize("batch", [2, 5])
def test_an_engine_says_the_same(batch: int) -> None:
    """Shared prefixes, images beside texts, rows that end at different times."""
    model, asked = model_of(), prompts()
    eager, static = Engine(model, batch_size=batch), Engine(model, batch_size=batch)
    static._core.graphs = Graphs(model, batch, rooms=(16, 64), records=False)
    for found, expected in zip(
        static.generate(asked, max_new_tokens=20),
        eager.generate(asked, max_new_tokens=20),
        strict=True,
    ):
        one, other = found.completions[0], expected.completions[0]
        assert one.ids == other.ids
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    assert static._core.graphs._steps


@torch.inference_mode()
def test_every_bucket_is_there_before_a_request() -> None:
    model = model_of()
    graphs = Graphs(model, 6, rooms=(8, 16), records=False)
    graphs.warm_up()
    rows, rooms = {1, 2, 4, 6}, {8, 16}
    assert set(graphs._steps) == {
        Bucket(r, room, images) for r in rows for room in rooms for images in (False, True)
    }


# --- with a CUDA device ---------------------------------------------------------------------------

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_cuda
@torch.inference_mode()
def test_a_replayed_graph_is_the_eager_step() -> None:
    model = exact(model_of()).to("cuda")
    graphs = Graphs(model, 4, rooms=ROOMS)
    graphs.warm_up()
    assert graphs.records, "a step could not be recorded"
    static, eager = GraphLanes(graphs), Lanes(model)
    for start in range(3):
        for lanes in (static, eager):
            lanes.join(prefilled(model, [start + 1] * (start + 2), False), [0])
    for number in range(20):
        ids = [number, number + 1, number + 2]
        assert_same(static.step(ids), eager.step(ids))


@needs_cuda
def test_a_server_records_before_it_is_ready() -> None:
    model = model_of().to("cuda")
    with ServingEngine(model, max_batch=4) as engine:
        graphs = engine._batch.graphs
        assert graphs is not None
        assert graphs.records
        assert all(step._graph is not None for step in graphs._steps.values())
