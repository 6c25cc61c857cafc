"""Training on attachments of any medium: several in one sample, of any length, cached or not."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import isthmus as im
from isthmus import testing
from isthmus.config.base import Config
from isthmus.config.file import model_from_mapping, to_mapping
from isthmus.data.features import FeatureCache
from isthmus.data.json_lines import json_lines
from isthmus.data.mixture import SampleRef
from isthmus.data.records import Record
from isthmus.data.rows import to_record
from isthmus.data.samples import tokenize
from isthmus.data.tags import split_at_tags
from isthmus.errors import CheckpointError, ConfigError, ImageError, MediaError
from isthmus.media.file_ref import FileRef
from isthmus.media.kinds import KINDS, kinds
from isthmus.model.features import in_half
from isthmus.model.layout import Layout
from isthmus.model.media.base import Features, Parts
from isthmus.model.vlm import VisionLanguageModel
from isthmus.prompts.prompt import Example
from isthmus.training.feed import DataSet, Feed
from isthmus.training.loader import MediaLoader
from isthmus.training.losses.language import LanguageLoss
from isthmus.training.plan import plan
from isthmus.training.processes import Processes
from isthmus.training.run import build
from isthmus.training.vlm import filled_caches

BLOCK = 4


class NumbersKind:
    tag = "<numbers>"
    keys = ("numbers",)
    parts = ("numbers",)
    endings = (".f32",)

    @staticmethod
    def open(data: bytes) -> np.ndarray:
        if len(data) % 4:
            raise MediaError(f"got {len(data)} bytes: expected a multiple of 4")
        return np.frombuffer(data, np.float32)


class Numbers(nn.Module):
    """Numbers (S,): a frozen encoder reads blocks of four, a token for each; or all are alike."""

    name = "numbers"

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.length, self.varies = length, not length
        self.encoder = nn.Linear(BLOCK, 5).requires_grad_(False)
        self.connector = nn.Linear(5, width)
        self.encoded = 0

    def takes(self, source: Any) -> bool:
        if isinstance(source, FileRef):
            return source.kind == "numbers"
        return isinstance(source, Tensor) and source.ndim == 1

    def open(self, parts: Parts, source: Any) -> Tensor:
        if isinstance(source, Tensor):
            return source
        return torch.from_numpy(NumbersKind.open(source.read()).copy())

    def encoding(self, parts: Parts) -> Any:
        return Kept(self, parts) if self.length else None

    def features(self, parts: Parts, opened: Tensor) -> Tensor:
        self.encoded += len(opened)
        found: Tensor = self.encoder(opened.unflatten(1, (-1, BLOCK)))
        return found

    def connect(self, parts: Parts, features: Tensor) -> Tensor:
        tokens: Tensor = self.connector(features)
        return tokens

    def layout(self, parts: Parts, opened: Tensor | None) -> Layout:
        length = self.length if opened is None else len(opened)
        return parts.fusion.layout(length // BLOCK)


class Kept:
    """What a cache keeps of numbers."""

    def __init__(self, medium: Numbers, parts: Parts) -> None:
        self.medium, self.parts = medium, parts
        self.name = "numbers.f16"
        self.shape = (medium.length // BLOCK, 5)
        self.dtype: Any = np.float16
        self.takes_arrays = True

    def open(self, file: FileRef, data: bytes, key: str) -> Tensor:
        return self.medium.open(self.parts, file)

    def encode(self, opened: Tensor, files: Sequence[object]) -> Any:
        return in_half(self.medium.features(self.parts, opened), files)


@dataclass(frozen=True, kw_only=True)
class NumbersMedium(Config):
    length: int = 0

    def build(self, parts: Parts) -> Numbers:
        torch.manual_seed(5)
        return Numbers(parts.fusion.visual_width, self.length)


@pytest.fixture(autouse=True)
def numbers_are_a_kind() -> Iterator[None]:
    KINDS.built_in()
    KINDS.register("numbers")(NumbersKind)
    yield
    del KINDS._built_in["numbers"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    chance = np.random.default_rng(0)
    for name in "abc":
        pixels = chance.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    for number, blocks in enumerate((1, 2, 4)):
        values = chance.normal(size=blocks * BLOCK).astype(np.float32)
        (folder / f"{number}.f32").write_bytes(values.tobytes())
    return folder


FUSIONS: dict[str, Any] = {
    "inline": im.Inline(),
    "cross_attention": im.CrossAttention(every=2, heads=2, head_dim=8, ffw_mult=2),
    "hybrid": im.CrossAttention(every=2, heads=2, head_dim=8, ffw_mult=2, inline=True, gate=0.5),
}


def made(fusion: str = "inline", length: int = 0) -> VisionLanguageModel:
    torch.manual_seed(0)
    connector = im.Resampler(latents=3, depth=1, heads=2, head_dim=8, max_frames=2)
    media = [NumbersMedium(length=length)]
    model = im.compose("tiny-vit", "tiny-lm", connector, FUSIONS[fusion], media=media)
    testing.open_gates(model)
    return model


def mixed(folder: Path) -> list[Record]:
    """An image, a clip and numbers in one record, in every order; text alone; a document."""

    def record(**row: Any) -> Record:
        def find(name: str) -> FileRef:
            assert (folder / name).is_file()
            return FileRef(folder / name)

        return to_record(row, find, "here")

    def said(question: str, answer: str) -> list[dict[str, str]]:
        return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]

    return [
        record(numbers=["2.f32", "0.f32"], question="How many?", answer="two"),
        record(
            image="a.png",
            video=["b.png", "c.png"],
            numbers="1.f32",
            conversations=said("<numbers><image>What<video>?", "all of it"),
        ),
        record(question="No more?", answer="no"),
        record(
            text="So <numbers>it goes. <image>On. <numbers>And on.",
            images=["b.png"],
            numbers=["0.f32", "2.f32"],
        ),
    ]


def items_of(model: VisionLanguageModel, records: Sequence[Record], media: MediaLoader) -> Any:
    config = im.TrainConfig(batch_size=len(records), workers=2)
    feed = Feed(model, [DataSet(records)], config, media)
    items = list(feed.items([SampleRef(i, 0, i, 0) for i in range(len(records))]))
    assert [item.why_not for item in items] == [""] * len(records)
    return items


def test_a_tag_takes_the_first_of_its_kind() -> None:
    a, b, n = FileRef(Path("a")), FileRef(Path("b")), FileRef(Path("n"), kind="numbers")
    clip = (a, b)
    pieces, taken = split_at_tags("1<numbers>2<image>3<video>4", [a, clip, n])
    assert pieces == ["1", "2", "3", "4"]
    assert taken == [n, a, clip]
    # files of conversations about clips alone say <image>
    assert split_at_tags("<image>x", [clip]) == (["", "x"], [clip])
    with pytest.raises(ValueError, match="<numbers> stands 2 times"):
        split_at_tags("<numbers><numbers>", [n, a])
    assert split_at_tags("<numbers>", [a])[1] == []  # no tag where none is of the kind


def test_records_keep_what_each_tag_took(folder: Path) -> None:
    chat, document = mixed(folder)[1], mixed(folder)[3]
    kinds_of = [m if isinstance(m, tuple) else m.kind for m in chat.images]
    assert kinds_of[:2] == ["numbers", "image"]
    assert isinstance(kinds_of[2], tuple)
    assert chat.question == "What ?"
    assert document.text == "So <image>it goes. <image>On. <image>And on."
    assert [m.kind for m in document.images if isinstance(m, FileRef)] == [
        "numbers",
        "image",
        "numbers",
    ]


@pytest.mark.parametrize("pack", [0, 96])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_step_on_mixed_media_has_the_loss_of_each_sample_alone(
    folder: Path, fusion: str, pack: int
) -> None:
    model = made(fusion)
    records = mixed(folder)
    items = items_of(model, records, MediaLoader(model))
    weights = [1.0, 2.0, 3.0, 4.0]
    with torch.no_grad():
        loss = LanguageLoss(pack).loss(model, items, weights)
        total = 0.0
        for number, (item, record) in enumerate(zip(items, records, strict=True)):
            text = [item.sample.ids]
            opened = [m if isinstance(m, Tensor) else m.values for m in item.attachments]
            layouts = tuple(item.sample.layouts)
            ids = torch.tensor(text)
            learned = torch.tensor(item.sample.learned)
            labels = ids.masked_fill(~learned, -100)
            if not record.images:
                end = model.special_tokens.end_id
                labels = labels.masked_fill(labels == end, model.language.end_ids()[0])
            alone = model(
                im.Batch(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    pixels=opened or None,
                    layouts=layouts or None,
                    labels=labels,
                )
            )
            mine = loss.losses[loss.owner == number]
            torch.testing.assert_close(mine, alone.token_losses, atol=2e-5, rtol=0)
            total += weights[number] * float(alone.token_losses.sum())
        assert float(loss.total) == pytest.approx(total, abs=1e-3)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_trained_conversation_is_the_prompt_and_then_the_answer(
    folder: Path, fusion: str
) -> None:
    """Attachments of several lengths stand in training as they stand in a prompt."""
    model = made(fusion)
    for record in mixed(folder)[:2]:
        (item,) = items_of(model, [record], MediaLoader(model))
        opened = [m.values if isinstance(m, Features) else m for m in item.attachments]
        text = "<image>" * len(opened) + f"Question: {record.question} Answer:"
        prompt = model.prepare([text], [opened]).input_ids[0].tolist()
        answer = model.special_tokens.encode(f" {record.answer}")
        assert item.sample.ids == [*prompt, *answer, model.special_tokens.end_id]


def test_what_is_cut_takes_its_attachment_along(folder: Path) -> None:
    model = made()
    (item,) = items_of(model, [mixed(folder)[3]], MediaLoader(model))
    whole, layouts = item.sample, item.sample.layouts
    record = mixed(folder)[3]
    for limit in range(8, len(whole.ids)):
        sample = tokenize(model, record, layouts=layouts, max_length=limit)
        image = model.special_tokens.image_id
        assert sample.ids == whole.ids[: len(sample.ids)]
        assert sample.ids.count(image) == sum(own.places for own in sample.layouts)
        assert sample.layouts == layouts[: len(sample.layouts)]


def test_a_cache_keeps_the_features_of_every_medium_that_has_an_encoding(
    folder: Path, tmp_path: Path
) -> None:
    model = made(length=4 * BLOCK)
    medium = model.media[0]
    assert isinstance(medium, Numbers)
    four = FileRef(folder / "2.f32", kind="numbers")
    images = [FileRef(folder / f"{name}.png") for name in "abc"]
    records = [
        Record((Example((four, images[0]), "What?", "both"),)),
        Record((Example(((images[1], images[2]),), "And?", "a clip"),)),
    ]
    data, config = [DataSet(records)], im.TrainConfig(workers=0)
    caches = filled_caches(
        model, data, config, Processes(torch.device("cpu")), tmp_path, quiet=True
    )
    assert set(caches) == {"numbers", "clip", "image"}
    assert caches["clip"] is caches["image"]
    assert isinstance(caches["numbers"], FeatureCache)
    medium.encoded = 0
    known = items_of(model, records, MediaLoader(model, caches))
    fresh = items_of(model, records, MediaLoader(model))
    with torch.no_grad():
        cached = LanguageLoss().loss(model, known, [1.0, 1.0])
        assert medium.encoded == 0
        computed = LanguageLoss().loss(model, fresh, [1.0, 1.0])
    torch.testing.assert_close(cached.losses, computed.losses, atol=5e-3, rtol=0)


def test_a_plan_counts_what_each_medium_keeps(folder: Path) -> None:
    model = made(length=4 * BLOCK)
    four = FileRef(folder / "2.f32", kind="numbers")
    images = [FileRef(folder / f"{name}.png") for name in "abc"]
    records = [
        Record((Example((four, images[0]), "What?", "both"),)),
        Record((Example(((images[1], images[2]),), "And?", "a clip"),)),
    ] * 200
    config = im.TrainConfig(batch_size=2, workers=0)
    told = plan(model, [DataSet(records)], config)
    patches = model.vision.shape
    assert told.images == 200 + 200 + 400  # numbers, images, and frames one by one
    assert told.cache == 200 * 4 * 5 * 2 + 600 * patches.tokens * patches.width * 2
    bare = plan(made(length=4 * BLOCK), [DataSet(records)], replace(config, feature_cache=False))
    assert (bare.images, bare.cache) == (800, 0)
    varied = plan(made(), [DataSet(records)], config)  # what varies is not kept
    assert (varied.images, varied.cache) == (600, 600 * patches.tokens * patches.width * 2)


@pytest.mark.parametrize(
    ("kind", "length", "advice"),
    [
        ("image", 0, "set train.feature_cache = true and train.augment = false"),
        ("numbers", 4 * BLOCK, "set train.feature_cache = true and train.augment = false"),
        ("numbers", 0, 'the medium "numbers" reads none: expected what they are of'),
    ],
)
def test_a_file_of_features_says_what_its_medium_makes_of_one(
    tmp_path: Path, kind: str, length: int, advice: str
) -> None:
    loader = MediaLoader(made(length=length))
    with pytest.raises(MediaError, match=f"holds features.*{advice}"):
        loader.load([FileRef(tmp_path / "a.npy", kind=kind)], 0)


def test_a_medium_is_trained_saved_and_loaded(folder: Path, tmp_path: Path) -> None:
    model = made()
    before = {n: p.clone() for n, p in model.state_dict().items() if "numbers_medium" in n}
    config = im.TrainConfig(steps=2, batch_size=4, warmup=1, precision="fp32", workers=0)
    im.train(model, mixed(folder), config, tmp_path / "run", quiet=True)
    after = {n: p for n, p in model.state_dict().items() if "numbers_medium" in n}
    same = {n for n in before if torch.equal(before[n], after[n])}
    assert same == {"numbers_medium.encoder.weight", "numbers_medium.encoder.bias"}
    loaded = im.load(tmp_path / "run", device="cpu")
    prompt, given = "<image>How many? Answer:", [FileRef(folder / "1.f32", kind="numbers")]
    expected = model.prepare([prompt], [given])
    with torch.no_grad():
        got = loaded(loaded.prepare([prompt], [given])).logits
        torch.testing.assert_close(got, model(expected).logits)


def test_another_frozen_encoder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = im.save(made(), tmp_path / "model")
    build = NumbersMedium.build

    def other(self: NumbersMedium, parts: Parts) -> Numbers:
        medium = build(self, parts)
        with torch.no_grad():
            medium.encoder.weight.add_(1)
        return medium

    monkeypatch.setattr(NumbersMedium, "build", other)
    with pytest.raises(CheckpointError, match="was trained with the numbers model"):
        im.load(saved)


def test_media_are_named_in_a_configuration() -> None:
    config = made(length=8).config
    values = to_mapping(config)
    assert values["media"] == [{"type": f"{__name__}:NumbersMedium", "length": 8}]
    run = im.RunConfig(model=config, train=im.TrainConfig(), data=())
    assert [medium.name for medium in build(run).media] == ["numbers", "clip", "image"]
    with pytest.raises(ConfigError, match="media: expected a list of tables"):
        model_from_mapping({**values, "media": "numbers"})
    with pytest.raises(ConfigError, match='unknown medium "nubmers"'):
        model_from_mapping({**values, "media": [{"type": "nubmers"}]})


def test_bad_files_of_a_kind_are_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.f32").write_bytes(b"123")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"numbers": "x.f32", "text": "broken"}\n{"numbers": "gone.f32", "text": "missing"}\n'
    )
    assert len(list(json_lines(rows))) == 2
    report = im.check_data(rows)
    why = [trouble.why for trouble in report.broken_images]
    assert "got 3 bytes: expected a multiple of 4" in why[0]
    assert "No such file" in why[1]
    assert report.usable == 0
    assert "numbers" in kinds()


def test_what_is_cut_off_is_not_opened(folder: Path) -> None:
    """Where layouts are known before, an image beyond the end cannot spoil the record."""
    model = made(length=4 * BLOCK)
    there, gone = FileRef(folder / "a.png"), FileRef(folder / "gone.png")
    text = "<image>A cat. " + "word " * 20 + "<image>A dog."
    record = Record(text=text, images_in_text=(there, gone))
    config = im.TrainConfig(batch_size=1, workers=0, max_length=60)
    feed = Feed(model, [DataSet([record])], config, MediaLoader(model))
    (item,) = feed.items([SampleRef(0, 0, 0, 0)])
    assert item.why_not == ""
    assert len(item.attachments) == len(item.sample.layouts) == 1


def test_rows_of_tables_lose_the_keys_of_other_rows() -> None:
    def find(name: str) -> FileRef:
        return FileRef(Path(name))

    row = {"image": "a.jpg", "text": "x", "video": None, "frames": None, "numbers": None}
    assert to_record(row, find, "here").extra == {}
    everything = {"numbers": "n.f32", "video": ["1.jpg"], "image": "i.jpg", "text": "t"}
    media = to_record(everything, find, "here").images
    assert [m if isinstance(m, tuple) else m.kind for m in media][::2] == ["image", "numbers"]
    alone = to_record({"numbers": "n.f32", "text": "so <numbers> it is"}, find, "here")
    assert alone.text == "so <image> it is"
    parts = [{"type": "numbers"}, {"type": "image"}, {"type": "text", "text": "What?"}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": "a"}]
    asked = to_record({"messages": chat, "image": "i.jpg", "numbers": "n.f32"}, find, "here")
    assert [m.kind for m in asked.images if isinstance(m, FileRef)] == ["numbers", "image"]
    with pytest.raises(ConfigError, match='what is called "numbers" must be a path, got 3'):
        to_record({"numbers": 3, "text": "x"}, find, "here")


def test_a_frozen_encoder_stays_frozen_and_in_evaluation_mode() -> None:
    model = made().train()
    assert "numbers_medium.connector.weight" in model.trained_parameters()
    assert "numbers_medium.encoder.weight" not in model.trained_parameters()
    medium = model.media[0]
    assert isinstance(medium, Numbers)
    assert not medium.encoder.training
    assert medium.connector.training


def test_what_was_added_later_is_not_saved(tmp_path: Path) -> None:
    model = im.compose("tiny-vit", "tiny-lm", im.Linear())
    model.add_medium(Numbers(model.fusion.visual_width, 0))
    loaded = im.load(im.save(model, tmp_path / "model"))
    assert [medium.name for medium in loaded.media] == ["clip", "image"]


def test_a_clip_without_frames_is_refused() -> None:
    model = im.compose("tiny-vit", "tiny-lm", im.Linear())
    with pytest.raises(ImageError, match="an empty list as an image"):
        im.ask(model, [[]], "What?")


def test_a_shard_keeps_the_image_that_its_text_names(tmp_path: Path) -> None:
    members = {
        "l.f32": bytes(16),
        "l.json": b'{"image": "a.png", "numbers": "/old/l.f32", "question": "q", "answer": "b"}',
        "a.png": b"image",
    }
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (record,) = im.read_data(tmp_path / "s.tar")
    assert [(str(m), m.kind) for m in record.images if isinstance(m, FileRef)] == [
        (f"{tmp_path / 's.tar'}:a.png", "image"),
        (f"{tmp_path / 's.tar'}:l.f32", "numbers"),
    ]
