"""A fusion of a user's own, in one file, works wherever a built-in one does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import isthmus as im
from isthmus import testing
from isthmus.config.model import TrainConfig
from isthmus.errors import ConfigError
from isthmus.generation.engine import Engine
from isthmus.model.backbones.language import LanguageModel
from isthmus.model.fusion import Fusion, Visual, build_fusion
from isthmus.model.fusion.sight import Sight, follow, sight_of
from isthmus.model.layout import IMAGE, Layout
from isthmus.model.vlm import VisionLanguageModel
from isthmus.training.memory import Load, memory

SRC = Path(im.__file__).parent


class Mean(nn.Module):
    """Adds the mean of an image's tokens, mapped and gated, to the tokens that see it."""

    def __init__(self, width: int, visual_width: int) -> None:
        super().__init__()
        self.map = nn.Linear(visual_width, width, bias=False)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor, sight: Sight) -> Tensor:
        assert sight.seen is not None
        told = self.map(sight.visual.mean(dim=1))[sight.seen.clamp(min=0)]
        changed = hidden + (self.gate.tanh() * told).to(hidden.dtype)
        return torch.where((sight.seen < 0)[..., None], hidden, changed)


class MeanFusion(nn.Module):
    """One such block before a decoder layer."""

    in_text = False
    sees: Literal["nothing", "last", "previous"] = "last"
    adapter = None

    def __init__(self, language: LanguageModel, visual_width: int, layer: int) -> None:
        super().__init__()
        self.visual_width = visual_width
        self.blocks = nn.ModuleDict({str(layer): Mean(language.width, visual_width)})

    def layout(self, tokens: int) -> Layout:
        return Layout((IMAGE,))

    def embed(self, embeddings: Tensor, is_image: Tensor, visual: Visual) -> Tensor:
        return embeddings

    def look(self, visual: Visual, seen: Tensor, begin: Tensor, *, keep: bool) -> Sight | None:
        return sight_of(visual, seen, begin, keep=keep)

    def hook(self, language: LanguageModel, sight: Sight) -> list[RemovableHandle]:
        before = partial(follow, sight, narrow=True)
        handles = [language.model.register_forward_pre_hook(before, with_kwargs=True)]
        for name, block in self.blocks.items():
            run = partial(self._run, block, sight)
            layer = language.layers[int(name)]
            handles.append(layer.register_forward_pre_hook(run, with_kwargs=True))
        return handles

    @staticmethod
    def _run(block: nn.Module, sight: Sight, module: nn.Module, args: Any, kwargs: Any) -> Any:
        return (block(args[0], sight), *args[1:]), kwargs

    def project(self, visual: Tensor) -> object:
        return [block.map(visual.mean(dim=1)) for block in self.blocks.values()]

    def gates(self) -> dict[str, dict[str, nn.Parameter]]:
        return {name: {"only": block.gate} for name, block in self.blocks.items()}

    def activation_bytes(self, tokens: int, visual_tokens: int, value: int) -> int:
        return value * tokens


@dataclass(frozen=True, kw_only=True)
class OfMeans:
    """Its configuration."""

    layer: int = 1

    def width(self, language_width: int, vision_width: int) -> int:
        return vision_width

    def build(self, language: LanguageModel, visual_width: int) -> MeanFusion:
        return MeanFusion(language, visual_width, self.layer)


def made() -> VisionLanguageModel:
    torch.manual_seed(0)
    connector = im.Resampler(latents=3, depth=1, heads=2, head_dim=8)
    return im.compose("tiny-vit", "tiny-lm", connector, OfMeans())


CHECKS = (
    *(testing.check_evaluation_mode, testing.check_text_is_untouched, testing.check_closed_gates),
    *(testing.check_sight, testing.check_padding, testing.check_packing, testing.check_decoding),
    *(testing.check_gradient_checkpointing, testing.check_training_step),
    *(testing.check_copies, testing.check_language_model_is_free, testing.check_save_and_load),
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_passes_the_conformance_suite(check: Any) -> None:
    check(made())


def test_it_is_a_fusion_and_says_what_it_costs() -> None:
    model = made()
    assert isinstance(model.fusion, Fusion)
    summary = model.summary()
    assert (summary.visual_tokens, summary.text_positions) == (3, 1)
    assert summary.flops["fusion"] == 2 * 32 * 64
    items = memory(
        model, TrainConfig(precision="fp32"), Load(rows=1, tokens=8, images=1, labelled=4)
    )
    assert items["gated blocks' activations"] == 4 * 8


def test_it_answers_and_learns(tmp_path: Path) -> None:
    model = made()
    image = Image.new("RGB", (40, 40), (200, 30, 30))
    image.save(tmp_path / "red.png")
    answer = im.ask(model, image, "What colour?", max_new_tokens=3)
    assert isinstance(answer.text, str)
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"image": "red.png", "question": "What colour?", "answer": "red"}\n' * 4)
    records = im.read_records(path)
    before = model.fusion.gates()["1"]["only"].detach().clone()
    config = TrainConfig(steps=3, batch_size=2, warmup=0, precision="fp32", log_every=1)
    im.train(model, records, config, tmp_path / "run", quiet=True)
    assert not torch.equal(model.fusion.gates()["1"]["only"], before)
    assert '"gates"' in (tmp_path / "run" / "log.jsonl").read_text()


def test_the_engine_with_a_shared_prefix_says_what_the_model_says() -> None:
    model = made()
    testing.open_gates(model)
    image = torch.randn(3, 32, 32)
    text = "<image>A: a<|endofchunk|><image>B"
    prompt = im.Prompt(text, (image, image + 1), shared=len("<image>A: a"))
    [scores] = Engine(model).score([prompt], [" x", " y"])
    for answer, got in zip((" x", " y"), scores.logprobs, strict=True):
        batch = model.prepare([text + answer], [[image, image + 1]])
        with torch.no_grad():
            logits = model(batch).logits.log_softmax(dim=-1)
        own = batch.input_ids[0, -2:]
        expected = logits[0, [-3, -2], own].sum()
        assert got == pytest.approx(float(expected), abs=1e-4)


def test_what_is_no_fusion_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not a fusion: expected its configuration"):
        im.compose("tiny-vit", "tiny-lm", im.Linear(), nn.Linear(2, 2))

    @dataclass(frozen=True)
    class Nothing:
        def width(self, language_width: int, vision_width: int) -> int:
            return language_width

        def build(self, language: LanguageModel, visual_width: int) -> nn.Module:
            return nn.Identity()

    language = im.load_language("tiny-lm")
    with pytest.raises(ConfigError, match="Identity is not a fusion: it lacks visual_width, in"):
        build_fusion(Nothing(), language, 64)


def test_nothing_outside_of_the_fusions_asks_which_fusion_it_is() -> None:
    """Neither by its class, nor by the class of its configuration."""
    kinds = re.compile(
        r"InlineFusion|CrossAttentionFusion|GatedCrossAttentionBlock"
        r"|isinstance\([^()]*(fusion|Inline\b|CrossAttention\b)"
    )
    found = [
        f"{path.relative_to(SRC)}: {line.strip()}"
        for path in sorted(SRC.rglob("*.py"))
        if path.parent.name != "fusion"
        for line in path.read_text(encoding="utf-8").splitlines()
        if kinds.search(line)
    ]
    assert found == []
    assert kinds.search("if isinstance(model.fusion, Thing):")
