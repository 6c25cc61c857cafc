"""OpenFlamingo's checkpoint.pt by name, folder and file: what comes out, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import MptConfig, MptForCausalLM

import isthmus as im
from isthmus import testing
from isthmus.errors import CheckpointError, ConfigError
from isthmus.model.backbones.tiny import byte_tokenizer
from isthmus.model.join import reader_of

WIDTH, VISUAL, WORDS, INNER = 64, 32, 259, 64
"""Widths of "tiny-lm" and "tiny-vit", tokens of the former, the inner width of one head."""
PARTS = '[vision]\nname = "tiny-vit"\n[language]\nname = "tiny-lm"\n'
TABLE = "lang_encoder.model.embed_tokens.weight"
HEAD = "lang_encoder.lm_head.weight"
BLOCK = "lang_encoder.model.layers.1.gated_cross_attn_layer"
State = dict[str, Tensor]


def attention(at: str, width: int, context: int, *norms: str) -> State:
    made = {f"{at}.{n}.{kind}": torch.randn(width) for n in norms for kind in ("weight", "bias")}
    made |= {f"{at}.to_q.weight": torch.randn(INNER, width) * 0.2}
    made |= {f"{at}.to_kv.weight": torch.randn(2 * INNER, context) * 0.2}
    return made | {f"{at}.to_out.weight": torch.randn(width, INNER) * 0.2}


def feed_forward(at: str, width: int) -> State:
    made = {f"{at}.0.{kind}": torch.randn(width) for kind in ("weight", "bias")}
    made |= {f"{at}.1.weight": torch.randn(2 * width, width) * 0.2}
    return made | {f"{at}.3.weight": torch.randn(width, 2 * width) * 0.2}


def state(*, every: int = 2, depth: int = 2) -> State:
    """A checkpoint for the tiny parts, as version 2 wrote it."""
    torch.manual_seed(0)
    made = {"perceiver.latents": torch.randn(4, VISUAL)}
    for i in range(depth):
        at = f"perceiver.layers.{i}"
        made |= attention(f"{at}.0", VISUAL, VISUAL, "norm_media", "norm_latents")
        made |= feed_forward(f"{at}.1", VISUAL)
    made |= {f"perceiver.norm.{kind}": torch.randn(VISUAL) for kind in ("weight", "bias")}
    for i in range(every - 1, 4, every):
        at = f"lang_encoder.model.layers.{i}.gated_cross_attn_layer"
        made |= attention(f"{at}.attn", WIDTH, VISUAL, "norm") | feed_forward(f"{at}.ff", WIDTH)
        made |= {f"{at}.{gate}": torch.randn(1) for gate in ("attn_gate", "ff_gate")}
    table = im.load_language("tiny-lm").input_embedding.weight.detach()
    return made | {TABLE: torch.cat([table, torch.randn(2, WIDTH)])}


def write(folder: Path, tensors: Any, parts: str = PARTS) -> Path:
    torch.save(tensors, folder / "checkpoint.pt")
    (folder / "model.toml").write_text(parts)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "flamingo"
    made.mkdir()
    return write(made, state())


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.linear_gradient("L").convert("RGB").save(path)
    return path


def logits(model: im.VisionLanguageModel) -> Tensor:
    batch = model.prepare(["<image>a<|endofchunk|><image>"], [list(torch.ones(2, 3, 32, 32))])
    with torch.no_grad():
        return model(batch).logits


# --- what comes out -------------------------------------------------------------------------------


def test_it_is_made_of_our_own_parts(folder: Path) -> None:
    model = im.load(folder)
    config = model.config
    assert (config.vision.name, config.language.name) == ("tiny-vit", "tiny-lm")
    assert config.template == "openflamingo"
    sizes = {"heads": 1, "head_dim": 64, "ffw_mult": 2}
    assert config.connector == im.Resampler(latents=4, depth=2, **sizes)
    assert config.fusion == im.CrossAttention(every=2, offset=1, sees="last", **sizes)
    assert list(model.fusion.blocks) == ["1", "3"]
    rows = state()[TABLE][WORDS:]
    assert torch.equal(model.special_tokens.input_rows, rows[[1, 0]])
    for source in (str(folder), f"hf:{folder}", folder / "checkpoint.pt"):
        assert torch.equal(logits(im.load(source)), logits(model))


@pytest.mark.parametrize("every", [1, 2, 4])
def test_where_blocks_stand_is_read_off_the_file(tmp_path: Path, every: int) -> None:
    model = im.load(write(tmp_path, state(every=every)))
    assert model.config.fusion.every == every
    assert [int(n) for n in model.fusion.blocks] == list(range(every - 1, 4, every))


def test_parts_can_be_handed_in(folder: Path) -> None:
    expected = logits(im.load(folder))
    (folder / "model.toml").unlink()
    lm = im.load_language("tiny-lm")
    for parts in (
        {"vision": "tiny-vit", "language": "tiny-lm"},
        {"vision": im.load_vision("tiny-vit"), "language": lm},
        {"vision": "tiny-vit", "language": lm.model, "tokenizer": lm.tokenizer},
    ):
        assert torch.equal(logits(im.load(folder, **parts)), expected)
    half = im.load(folder, vision="tiny-vit", language="tiny-lm", dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "version 1": lambda s: {
        n.replace("model.layers.", "gated_cross_attn_layers.").replace(
            "gated_cross_attn_layer.", ""
        ): t
        for n, t in s.items()
    },
    "a training run": lambda s: {
        "epoch": 3,
        "model_state_dict": {f"module.{n}": t for n, t in s.items()},
        "optimizer_state_dict": {"state": {}, "param_groups": [{"lr": 0.1}]},
    },
    "half precision of frozen rows": lambda s: (
        s | {TABLE: torch.cat([s[TABLE][:WORDS].bfloat16().float(), s[TABLE][WORDS:]])}
    ),
    "old buffers": lambda s: (
        s
        | {
            "lang_encoder.model.layers.0.decoder_layer.self_attn.rotary_emb.inv_freq": torch.ones(
                2
            ),
            "lang_encoder.old_decoder_blocks.0.attention.masked_bias": torch.tensor(-1e9),
        }
    ),
    "frozen parts": lambda s: (
        s
        | {
            f"lang_encoder.{n.replace('layers.1.', 'layers.1.decoder_layer.')}": t
            for n, t in im.load_language("tiny-lm").model.state_dict().items()
            if "layers.1." in n
        }
        | {
            f"vision_encoder.{n}": t
            for n, t in im.load_vision("tiny-vit").model.state_dict().items()
        }
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_model(folder: Path, tmp_path: Path, layout: str) -> None:
    other = tmp_path / "other"
    other.mkdir()
    model = im.load(write(other, LAYOUTS[layout](state())))
    assert torch.equal(logits(model), logits(im.load(folder)))


def test_the_head_s_row_is_read_where_it_is_kept(folder: Path) -> None:
    head = im.load_language("tiny-lm").output_embedding.weight.detach()
    own = im.load(folder).special_tokens.output_rows
    assert torch.equal(own, head[[258]])  # not kept: the model's own end of text
    rows = torch.cat([head, torch.randn(2, WIDTH)])
    model = im.load(write(folder, state() | {HEAD: rows}))
    assert torch.equal(model.special_tokens.output_rows, rows[[WORDS]])


def test_a_pad_token_may_have_been_added_too(folder: Path) -> None:
    rows = torch.cat([state()[TABLE], torch.randn(1, WIDTH)])
    assert torch.equal(
        logits(im.load(write(folder, state() | {TABLE: rows}))), logits(im.load(folder))
    )


def test_frames_have_their_embedding(folder: Path) -> None:
    frames = torch.randn(3, VISUAL)
    model = im.load(write(folder, state() | {"perceiver.frame_embs": frames}))
    assert model.config.connector.max_frames == 3
    assert torch.equal(model.connector.frames, frames)


def test_it_is_saved_like_any_model(folder: Path, tmp_path: Path) -> None:
    model = im.load(folder)
    again = im.load(im.save(model, tmp_path / "strip"))
    assert again.config == model.config
    assert torch.equal(logits(again), logits(model))
    for check in (testing.check_text_is_untouched, testing.check_sight, testing.check_decoding):
        check(model)
    testing.check_training_step(model)


def test_the_command_line_takes_it(run: Any, folder: Path, image: Path) -> None:
    expected = im.ask(im.load(folder), image, "What is it?", max_new_tokens=4).text
    for source in (folder, f"hf:{folder}", folder / "checkpoint.pt"):
        arguments = ("ask", image, "What is it?", "--model", source, "--max-new-tokens", 4)
        assert run(*arguments) == (0, f"{expected}\n", "")
    assert run("info", folder)[0] == 0


def test_who_reads_what(folder: Path, tmp_path: Path) -> None:
    assert reader_of("hf:openflamingo/OpenFlamingo-4B-vitl-rpj3b") is not None
    assert reader_of(folder) is not None
    for other in ("tiny", "hf:llava-hf/llava-1.5-7b-hf", tmp_path, "openflamingo/x"):
        assert reader_of(other) is None
    saved = im.save(im.load(folder), tmp_path / "strip")
    torch.save({}, saved / "checkpoint.pt")  # beside a model of ours, it is not asked
    assert reader_of(saved) is None


# --- refused --------------------------------------------------------------------------------------


class Code:
    """What a pickle may do when it is read."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def code(folder: Path) -> None:
    torch.save({"perceiver.latents": Code()}, folder / "checkpoint.pt")


def cut(folder: Path) -> None:
    path = folder / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-1000])


def noise(folder: Path) -> None:
    (folder / "checkpoint.pt").write_bytes(b"no model at all")


def empty(folder: Path) -> None:
    (folder / "checkpoint.pt").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (code, "would run .*mkdir when it is read"),
        (cut, "may be cut short"),
        (noise, "was not written by torch.save"),
        (empty, "cannot be read"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_a_file_that_cannot_be_read_is_one_line(
    run: Any,
    folder: Path,
    image: Path,
    damage: Callable[[Path], None],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        im.load(folder)
    code, out, err = run("ask", image, "What?", "--model", folder)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert not (folder / "ran").exists()


def without(s: State, *names: str) -> State:
    return {n: t for n, t in s.items() if n not in names}


def changed(s: State, name: str, row: int) -> State:
    tensor = s[name].clone()
    tensor[row] += 0.1
    return s | {name: tensor}


def frozen() -> State:
    weights = im.load_language("tiny-lm").model.state_dict()
    return {"lang_encoder.model.norm.weight": weights["model.norm.weight"]}


CONTENTS: dict[str, tuple[Callable[[State], Any], str]] = {
    "a list": (lambda s: [1, 2], "holds no tensors by name"),
    "another model": (lambda s: {"fc.weight": torch.ones(2)}, "fc.weight is unexpected"),
    "nothing": (lambda s: {}, "is not a checkpoint of OpenFlamingo.*got nothing"),
    "no resampler": (
        lambda s: {n: t for n, t in s.items() if not n.startswith("perceiver")},
        "expected perceiver.latents",
    ),
    "another language model": (
        lambda s: {n.replace("model.layers", "gpt_neox.layers"): t for n, t in s.items()},
        "is not a checkpoint of OpenFlamingo for this language model: expected.*model.layers",
    ),
    "a tensor gone": (
        lambda s: without(s, f"{BLOCK}.attn.to_q.weight", "perceiver.layers.1.0.to_kv.weight"),
        rf"{BLOCK}.attn.to_q.weight is missing; perceiver.layers.1.0.to_kv.weight is missing",
    ),
    "a tensor more": (
        lambda s: s | {"perceiver.media_time_embs": torch.ones(1)},
        "perceiver.media_time_embs is unexpected",
    ),
    "more of a block": (
        lambda s: s | {f"{BLOCK}.attn.to_v.weight": torch.ones(1)},
        f"{BLOCK}.attn.to_v.weight is unexpected",
    ),
    "another shape": (
        lambda s: s | {"perceiver.norm.bias": torch.ones(3)},
        r"perceiver.norm.bias is \(3,\), expected \(32,\)",
    ),
    "another encoder": (
        lambda s: s | {"perceiver.latents": torch.ones(4, 1024)},
        r"perceiver.latents is \(4, 1024\), expected \(4, 32\)",
    ),
    "heads": (
        lambda s: s | {"perceiver.layers.0.0.to_q.weight": torch.ones(60, VISUAL)},
        "to_q.weight has 60 rows, no heads of 64",
    ),
    "a block gone": (
        lambda s: {n: t for n, t in state(every=1).items() if not n.startswith(BLOCK)},
        "before the layers 0, 2, 3 of the language model, expected 0, 1, 2, 3 of 4",
    ),
    "a block more": (
        lambda s: (
            s | {n.replace("layers.1", "layers.2"): t for n, t in s.items() if n.startswith(BLOCK)}
        ),
        "before the layers 1, 2, 3 of the language model, expected 1, 3 of 4",
    ),
    "twice": (
        lambda s: s | {"lang_encoder.gated_cross_attn_layers.1.attn_gate": torch.ones(1)},
        "are the same, and differ",
    ),
    "no table": (lambda s: without(s, TABLE), f"{TABLE} is missing"),
    "a padded table": (
        lambda s: s | {TABLE: torch.cat([s[TABLE], torch.zeros(20, WIDTH)])},
        "has 281 rows, expected 261 or 262: the tokenizer's 259",
    ),
    "a table of another width": (
        lambda s: s | {TABLE: torch.ones(261, 8)},
        r"is \(261, 8\), expected rows of 64",
    ),
    "an old row changed": (lambda s: changed(s, TABLE, 17), "differ from those of tiny-lm"),
    "a head changed": (
        lambda s: s | {HEAD: torch.randn(261, WIDTH)},
        f"{HEAD} differ from those of tiny-lm",
    ),
    "a frozen part trained": (
        lambda s: s | changed(frozen(), "lang_encoder.model.norm.weight", 3),
        "model.norm.weight differs from the LlamaForCausalLM",
    ),
    "an adapter": (
        lambda s: s | {"lang_encoder.model.adapter.weight": torch.ones(1)},
        "lang_encoder.model.adapter.weight is unexpected",
    ),
    "another eye": (
        lambda s: s | {"vision_encoder.ln_post.weight": torch.ones(1)},
        "vision_encoder.ln_post.weight is unexpected",
    ),
}


@pytest.mark.parametrize("content", CONTENTS)
def test_what_does_not_fit_is_named(folder: Path, content: str) -> None:
    damage, message = CONTENTS[content]
    with pytest.raises(CheckpointError, match=message) as raised:
        im.load(write(folder, damage(state())))
    assert "\n" not in str(raised.value)
    assert str(folder / "checkpoint.pt") in str(raised.value)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (None, "does not say which language model.*pass language=, or write a file model.toml"),
        ('[vision]\nname = "tiny-vit"', "does not say which language model"),
        ("[language]", 'missing key "language.name"'),
        ('[language]\nname = "tiny-lm"\nevery = 2', 'unknown key "language.every"'),
        (
            '[fusion]\ntype = "inline"',
            r"has fusion: expected only the tables \[vision\] and \[language\]",
        ),
        ('language = "tiny-lm"', "language: expected a table"),
        ("[language", "model.toml cannot be read"),
    ],
)
def test_what_names_the_parts_is_checked(folder: Path, parts: str | None, message: str) -> None:
    (folder / "model.toml").unlink()
    if parts is not None:
        (folder / "model.toml").write_text(parts)
    with pytest.raises(ConfigError, match=message):
        im.load(folder)


def test_repositories_are_refused_by_name(run: Any, image: Path) -> None:
    for name in ("OpenFlamingo-3B-vitl-mpt1b", "OpenFlamingo-3B-vitl-mpt1b-langinstruct"):
        with pytest.raises(ConfigError, match="MPT-1B, which normalises queries and keys"):
            im.load(f"hf:openflamingo/{name}")
        code, out, err = run("ask", image, "What?", "--model", f"hf:openflamingo/{name}")
        assert (code, out, err.count("\n")) == (2, "", 1)
    with pytest.raises(ConfigError, match="does not say which language model"):
        im.load("hf:openflamingo/OpenFlamingo-9B-deprecated")


def test_a_normalisation_that_would_be_left_out_is_refused(folder: Path) -> None:
    options: Any = {"attn_config": {"qk_ln": True}}
    lm = MptForCausalLM(MptConfig(d_model=64, n_heads=2, n_layers=2, vocab_size=WORDS, **options))
    with pytest.raises(ConfigError, match=r"normalises queries and keys.*qk_ln"):
        im.load(folder, language=lm, tokenizer=byte_tokenizer())


def test_parts_that_are_no_frozen_ones_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="brings its own connector"):
        im.load(folder, connector=torch.nn.Linear(1, 1))
