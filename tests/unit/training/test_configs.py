from __future__ import annotations

import importlib.util
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from isthmus.config.file import read_run, run_from_mapping
from isthmus.config.model import ModelConfig, RunConfig
from isthmus.data.records import Medium, Record
from isthmus.media.file_ref import FileRef
from isthmus.model.fusion.cross_attention import CrossAttention
from isthmus.model.fusion.inline import Inline
from isthmus.model.join import compose
from isthmus.model.vlm import IGNORED, Batch, VisionLanguageModel, pad
from isthmus.prompts.prompt import END_TAG, Example
from isthmus.prompts.templates import plain
from isthmus.training.smoke import smoke

FOLDER = Path(__file__).parents[3] / "configs"
NAMES = sorted(p.stem for p in FOLDER.glob("*.toml") if isinstance(read_run(p).model, ModelConfig))


def read(name: str) -> RunConfig:
    return read_run(FOLDER / f"{name}.toml")


def test_every_published_design_has_a_file() -> None:
    expected = "blip2 flamingo-3b flamingo-9b honeybee idefics2 llava-1.5 mllama nanovlm tiny"
    assert set(expected.split()) <= set(NAMES)


# --- The published figures ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "every", "heads"), [("flamingo-3b", 1, 16), ("flamingo-9b", 4, 32)]
)
def test_flamingo_has_the_papers_figures(name: str, every: int, heads: int) -> None:
    run = read(name)
    resampler, fusion, train = run.model.connector, run.model.fusion, run.train
    assert (resampler.latents, resampler.depth, resampler.heads, resampler.head_dim) == (
        64,
        6,
        16,
        96,
    )
    assert (resampler.activation, resampler.max_frames) == ("squared_relu", 8)
    assert (fusion.every, fusion.offset, fusion.heads, fusion.head_dim) == (every, 0, heads, 128)
    assert (fusion.gate, fusion.sees) == (0.0, "last")
    assert [d.loss_weight for d in run.data] == [1.0, 0.2, 0.2, 0.03]
    assert [d.weight * train.batch_size for d in run.data] == [256, 512, 512, 64]
    assert [d.next_image for d in run.data] == [0.5, 0, 0, 0]
    assert (train.lr, train.warmup, train.schedule) == (1e-4, 5000, "constant")
    assert (train.mixture, train.steps, train.clip) == ("accumulate", 500_000, 1.0)


def test_llava_has_its_two_stages() -> None:
    first, second = read("llava-1.5"), read("llava-1.5-stage2")
    assert first.model.vision.feature_layer == second.model.vision.feature_layer == -2
    assert (first.train.batch_size, first.train.lr, first.train.weight_decay) == (256, 1e-3, 0)
    assert first.train.steps * 256 <= 558_128 < (first.train.steps + 1) * 256  # one epoch
    assert second.train.steps * 128 <= 665_298 < (second.train.steps + 1) * 128
    assert (second.train.lr_lora, second.train.lr_connector) == (2e-4, 2e-5)
    assert (first.model.language.lora_rank, second.model.language.lora_rank) == (0, 128)
    assert second.train.init == "runs/llava-1.5"
    for run in (first, second):
        assert abs(run.train.warmup / run.train.steps - 0.03) < 5e-4
        assert (run.train.schedule, run.train.final_lr) == ("cosine", 0.0)


def test_the_others_have_their_papers_figures() -> None:
    blip2, honeybee, nanovlm = read("blip2"), read("honeybee"), read("nanovlm")
    assert (blip2.model.connector.queries, blip2.model.connector.cross_every) == (32, 2)
    assert (blip2.train.steps, blip2.train.batch_size, blip2.train.lr) == (80_000, 1920, 1e-4)
    assert blip2.train.lr * blip2.train.final_lr == 5e-5
    assert (honeybee.model.connector.tokens, honeybee.model.connector.hidden) == (144, 1024)
    assert (honeybee.train.steps, honeybee.train.lr, honeybee.train.warmup) == (50_000, 1e-4, 2000)
    assert nanovlm.model.connector.factor == 4
    assert (nanovlm.train.lr, nanovlm.train.pack) == (0.00512, 4096)
    idefics2 = read("idefics2").model.connector
    assert (idefics2.latents, idefics2.depth, idefics2.heads) == (64, 3, 16)
    assert read("idefics2-stage2").model.connector == idefics2
    assert read("idefics2-stage2").model.language.lora_rank > 0


def test_mllama_places_blocks_where_the_release_does() -> None:
    """Before layers 3, 7, ... of the 32 that there were: 3, 8, ... with the blocks counted."""
    fusion = read("mllama").model.fusion
    before = [i for i in range(32) if (i + fusion.offset) % fusion.every == 0]
    assert [i + n for n, i in enumerate(before)] == [3, 8, 13, 18, 23, 28, 33, 38]


def test_tiny_goes_on_from_the_run_that_was_shipped() -> None:
    shipped, own = read_run(FOLDER.parent / "recipes" / "tiny" / "tiny.toml"), read("tiny")
    assert own.model == shipped.model
    for key in ("batch_size", "pack", "freeze", "weight_decay", "precision"):
        assert getattr(own.train, key) == getattr(shipped.train, key)
    assert own.train.init == "tiny"
    assert own.train.lr < shipped.train.lr
    episodes = [d.episodes for d in shipped.data if d.episodes is not None]
    assert own.data[-1].episodes == episodes[0]


# --- The same at toy size -----------------------------------------------------------------------


def frames(medium: Medium) -> tuple[FileRef, ...]:
    return (medium,) if isinstance(medium, FileRef) else medium


def pixels(model: VisionLanguageModel, medium: Medium) -> Tensor:
    opened = [Image.open(io.BytesIO(p.read())).convert("RGB") for p in frames(medium)]
    stack = torch.stack([model.vision.preprocess(p) for p in opened])
    return stack[0] if isinstance(medium, FileRef) else stack


def text_of(record: Record) -> str:
    if record.text is not None:
        return record.text
    *shots, last = record.turns
    return f"{plain(shots, Example(last.images, last.question)).text} {last.answer}{END_TAG}"


def batch_of(model: VisionLanguageModel, records: list[Record]) -> Batch:
    rows = [model.encode_text(text_of(r), len(r.images)) for r in records]
    ids, mask = pad(rows, model.pad_id, "right")
    labels = ids.masked_fill((mask == 0) | (ids == model.special_tokens.image_id), IGNORED)
    media = [pixels(model, m) for r in records for m in r.images]
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        pixels=torch.stack(media) if media else None,
        labels=labels,
    )


def is_clip(record: Record) -> bool:
    return any(not isinstance(m, FileRef) for m in record.images)


@pytest.mark.parametrize("name", NAMES)
def test_its_smoke_variant_trains_every_parameter(name: str) -> None:
    run = read(name)
    small, records = smoke(run)
    assert type(small.model.connector) is type(run.model.connector)
    assert type(small.model.fusion) is type(run.model.fusion)
    parts = small.model
    torch.manual_seed(0)
    model = compose(parts.vision, parts.language, parts.connector, parts.fusion)
    for key, parameter in model.named_parameters():
        if small.train.freeze and key.startswith(small.train.freeze):
            parameter.requires_grad_(False)
    assert len(records) == 12
    for batch in (
        batch_of(model, [r for r in records if not is_clip(r)]),
        batch_of(model, [r for r in records if is_clip(r)] or records[:1]),
    ):
        assert batch.input_ids.shape[1] <= 256
        loss = model(batch).loss
        assert torch.isfinite(loss)
        loss.backward()
    for key, parameter in model.trained_parameters().items():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    assert model.connector.num_tokens <= 16
    learning = [p for p in model.trained_parameters().values() if p.grad.abs().max() > 0]  # type: ignore[union-attr]
    assert learning


@pytest.mark.parametrize("name", NAMES)
def test_its_smoke_variant_keeps_the_shape_of_the_run(name: str) -> None:
    run = read(name)
    small, _ = smoke(run)
    for key in ("mixture", "schedule", "clip", "lr", "freeze", "sharding"):
        assert getattr(small.train, key) == getattr(run.train, key)
    assert (small.train.steps, small.train.batch_size, small.train.precision) == (3, 4, "fp32")
    assert bool(small.train.pack) == bool(run.train.pack)
    assert bool(small.model.language.lora_rank) == bool(run.model.language.lora_rank)
    for ours, theirs in zip(small.data, run.data, strict=True):
        for key in ("path", "weight", "loss_weight", "questions", "next_image"):
            assert getattr(ours, key) == getattr(theirs, key)
        assert bool(ours.held_out) == bool(theirs.held_out)
        assert ours.held_out == 0 or 2 <= ours.held_out * 12 <= 6
    assert small.train.init is None


@pytest.mark.parametrize(("every", "kept"), [(1, 1), (2, 2), (4, 4), (7, 7), (40, 40)])
def test_every_stays_where_a_block_is_left(every: int, kept: int) -> None:
    small, _ = smoke(_run({"type": "cross_attention", "every": every}))
    assert small.model.fusion.every == kept


def test_every_gives_way_where_no_block_would_be_left() -> None:
    small, _ = smoke(_run({"type": "cross_attention", "every": 7, "offset": 1}))
    assert small.model.fusion == CrossAttention(every=1, offset=1, heads=2, head_dim=8, ffw_mult=2)
    assert smoke(_run({"type": "inline"}))[0].model.fusion == Inline()


def test_records_are_of_every_kind_and_alike_each_time() -> None:
    run = read("flamingo-3b")
    _, records = smoke(run)
    assert sum(is_clip(r) for r in records) == 1
    assert sum(len(r.turns) == 2 for r in records) == 1
    assert sum(r.text is not None and len(r.images) == 2 for r in records) == 2
    assert sum(not r.images for r in records) == 1
    assert sum(bool(r.question) for r in records) >= 3
    assert records == smoke(run)[1]
    assert not any(is_clip(r) for r in smoke(read("llava-1.5"))[1])


def _run(fusion: dict[str, object]) -> RunConfig:
    return run_from_mapping(
        {
            "vision": {"name": "tiny-vit"},
            "language": {"name": "tiny-lm"},
            "connector": {"type": "linear"},
            "fusion": fusion,
        }
    )


# --- recipes/every ------------------------------------------------------------------------------

EVERY = FOLDER.parent / "recipes" / "every"


def table_module() -> Any:
    spec = importlib.util.spec_from_file_location("every_table", EVERY / "table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def made_up_run(folder: Path, every: int, lines: Sequence[dict[str, Any]]) -> Path:
    folder.mkdir()
    described = {
        "config": {"fusion": {"type": "cross_attention", "every": every}},
        "train": {"freeze": ["special_tokens.input_rows"]},
    }
    (folder / "isthmus.json").write_text(json.dumps(described))
    blocks = {f"fusion.blocks.{i}.ffw.1.weight": torch.zeros(10, 20) for i in range(0, 30, every)}
    rows = {"special_tokens.input_rows": torch.zeros(2, 5), "connector.latents": torch.zeros(7)}
    save_file({**blocks, **rows}, folder / "model.safetensors")
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 9')
    return folder


def test_every_is_a_run_whose_every_can_be_set() -> None:
    for every, blocks in ((1, 30), (4, 8), (7, 5)):
        run = read_run(EVERY / "run.toml", [f"fusion.every={every}"])
        fusion = run.model.fusion
        assert len(range(fusion.start, 30, fusion.every)) == blocks
        assert run.train.evaluate_every > 0
        assert all(d.held_out == 0.05 for d in run.data)


def test_the_table_reads_what_a_run_leaves(tmp_path: Path) -> None:
    table = table_module()
    lines = [
        {"step": 10, "loss": 5.0, "samples_per_second": 1.0},
        {"step": 20, "loss": 4.0, "samples_per_second": 90.0},
        {"step": 20, "evaluation": {"a": 9.0}, "held_out_loss": 9.0},
        {"step": 37, "broken": [{"image": "a.jpg", "why": "cut off"}]},
        {"step": 20, "loss": 4.1, "samples_per_second": 20.0},  # after a resume: this one counts
        {"step": 30, "loss": 3.0, "samples_per_second": 30.0},
        {"step": 30, "evaluation": {"a": 2.5}, "held_out_loss": 2.5},
    ]
    run = table.read_run(made_up_run(tmp_path / "four", 4, lines))
    assert run == table.Run(
        every=4, blocks=8, parameters=8 * 200 + 7, speed=25.0, step=30, held_out_loss=2.5
    )
    one = table.Run(
        every=1, blocks=30, parameters=6_000_000, speed=12.5, step=30, held_out_loss=2.4
    )
    rows = table.table([one, run]).splitlines()
    assert rows[2] == "| every layer | 30 | 6.0 M | 12.5 | 1.00x | 2.400 | 30 |"
    assert rows[3] == "| every 4th | 8 | 0.0 M | 25.0 | 2.00x | 2.500 | 30 |"
    assert "| every 4th | 2.3 B | 1.02 s | 1.71x | 68.8 |" in rows


def test_the_table_refuses_a_run_without_an_evaluation(tmp_path: Path) -> None:
    lines = [{"step": 10, "loss": 5.0, "samples_per_second": 1.0}]
    with pytest.raises(SystemExit, match="evaluate_every"):
        table_module().read_run(made_up_run(tmp_path / "one", 1, lines))
