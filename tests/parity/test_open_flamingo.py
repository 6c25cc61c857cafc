"""OpenFlamingo's checkpoint.pt, read into our parts, says what OpenFlamingo says."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import MptConfig, MptForCausalLM

import isthmus as im
from isthmus import testing
from isthmus.generation.decode import generate
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model
from isthmus.model.batch import Batch
from isthmus.prompts.templates import openflamingo

from .flamingo_reference import Plain, Published, grown, says
from .reference import TOLERANCE

WORDS, ROWS, NEW = 259, 264, 8
"""Tokens of the tokenizer, rows of the language model's padded table, tokens that are generated."""
END, IMAGE = WORDS, WORDS + 1
LAYERS = {
    "gpt_neox": "gpt_neox.layers",
    "mpt": "transformer.blocks",
    "opt": "model.decoder.layers",
    "llama": "model.layers",
}


def language_model(family: str) -> Any:
    """A tiny one, the same at every call."""
    if family != "mpt":
        return tiny_language_model(family, vocab=ROWS)
    config = MptConfig(
        d_model=64, n_heads=4, n_layers=4, expansion_ratio=2, max_seq_len=1024, vocab_size=ROWS
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MptForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.generation_config.eos_token_id = 258
    return model.eval()


def clip() -> Any:
    """open_clip's, whose tokens are read before its final norm."""
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()


@dataclass
class Case:
    """A reference, and ours that was read from its checkpoint."""

    theirs: Plain | Published
    ours: im.VisionLanguageModel
    path: Path

    def ids(self, ours: Tensor) -> Tensor:
        """Our token ids as theirs, whose tables have no padding before the new tokens."""
        special = self.ours.special_tokens
        found = ours.clone()
        found[ours == special.image_id] = IMAGE
        found[ours == special.end_id] = END
        return found

    def expected(self, batch: Any, images: Tensor) -> Tensor:
        """Their logits of our batch, without the columns of `<image>` and `<PAD>`."""
        logits = self.theirs.logits(self.ids(batch.input_ids), batch.attention_mask, images)
        return logits[..., :IMAGE]

    def got(self, batch: Any) -> Tensor:
        """Our logits, without padded rows and without `<image>`."""
        with torch.no_grad():
            logits = self.ours(batch).logits
        return torch.cat(
            [logits[..., :WORDS], logits[..., self.ours.special_tokens.end_id, None]], -1
        )

    def padding(self, ids: Tensor, images: Tensor, start: int) -> Tensor:
        """Our logits of padded rows, which theirs does not have, behind a prompt so long."""
        special = self.ours.special_tokens
        own = ids.clone()
        own[ids == IMAGE], own[ids == END] = special.image_id, special.end_id
        batch = Batch(input_ids=own, attention_mask=torch.ones_like(own), pixels=images[0])
        with torch.no_grad():
            return self.ours(batch).logits[0, start - 1 : -1, WORDS:ROWS]


def case_of(
    folder: Path,
    family: str,
    reference: Any = Plain,
    *,
    every: int = 2,
    added: int = 3,
    vision: Any = None,
    **options: Any,
) -> Case:
    language, tokenizer = language_model(family), byte_tokenizer()
    encoder = im.load_vision(vision or clip())
    torch.manual_seed(1)
    theirs = reference(
        grown(language_model(family), WORDS, added), encoder, LAYERS[family], every, IMAGE
    )
    path = folder / "checkpoint.pt"
    torch.save(theirs.state(**options), path)
    ours = im.load(path, vision=encoder, language=language, tokenizer=tokenizer, device="cpu")
    return Case(theirs, ours, path)


CASES = [
    (family, reference) for reference in (Plain, Published) for family in ("gpt_neox", "mpt", "opt")
]


@pytest.fixture(scope="module", params=CASES, ids=lambda c: f"{c[0]}-{c[1].__name__.lower()}")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(tmp_path_factory.mktemp("flamingo"), *request.param)


@pytest.fixture(scope="module")
def flamingo(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case_of(tmp_path_factory.mktemp("flamingo"), "gpt_neox")


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


TEXTS = [
    "<image>Question:What is it? Short answer:a cat<|endofchunk|>\n<image>Question:And this?",
    "<image>Output:a<|endofchunk|><image>b",
]


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_theirs(case: Case, side: str) -> None:
    pixels = images(2, 2)
    batch = case.ours.prepare(TEXTS, [list(own) for own in pixels], padding_side=side)
    got = case.got(batch)
    # their tokens before the first image, padding too, go through the feed-forward; ours do not
    real = batch.attention_mask.bool()
    if side == "left":
        alone = [case.ours.prepare([t], [list(p)]) for t, p in zip(TEXTS, pixels, strict=True)]
        for row, (own, shown) in enumerate(zip(alone, pixels, strict=True)):
            expected = case.expected(own, shown[None])[0]
            torch.testing.assert_close(got[row][real[row]], expected, rtol=0, atol=TOLERANCE)
        return
    expected = case.expected(batch, pixels)
    torch.testing.assert_close(got[real], expected[real], rtol=0, atol=TOLERANCE)
    other = case.ours.prepare(TEXTS, [list(own) for own in images(2, 2, seed=1)], padding_side=side)
    assert (case.got(other) - got)[real].abs().max() > 1e-2


def prompts() -> list[im.Prompt]:
    shots = [im.Example(images(1, seed=10 + i)[0], f"Number {i}?", f"{i * 7}") for i in range(2)]
    return [
        openflamingo([], im.Example(images(1)[0], "What is it?")),
        openflamingo(shots, im.Example(images(1, seed=2)[0], "Number 5?")),
        openflamingo(shots, im.Example(images(1, seed=3)[0], "Number 6, which is longer?")),
        openflamingo([], im.Example(images(1, seed=4)[0], "")),
    ]


def test_greedy_texts_are_theirs(case: Case) -> None:
    asked, expected = prompts(), []
    special = case.ours.special_tokens
    for prompt in asked:
        ids = case.ids(torch.tensor(case.ours.encode_text(prompt.spans, len(prompt.images))))
        own = torch.stack(list(prompt.images))
        never = [IMAGE, IMAGE + 1]
        expected.append(says(case.theirs, ids.tolist(), own, END, never, NEW))
    texts = [special.decode([i for i in ids if i < WORDS]).rstrip("\ufffd") for ids in expected]
    assert len({*texts}) > 2
    for prompt, ids in zip(asked, expected, strict=True):
        batch = case.ours.prepare([prompt.spans], [list(prompt.images)])
        got = generate(case.ours, batch, max_new_tokens=NEW)[0]
        assert case.ids(got).tolist()[: len(ids)] == ids
    engine = im.Engine(case.ours, batch_size=3)
    for _ in range(2):  # the second time the shared prefix is there
        made = engine.generate(asked, max_new_tokens=NEW)
        assert [m.completions[0].text for m in made] == [t.strip() for t in texts]
    assert made[1].cached_tokens > 30


@torch.no_grad()
def test_closed_answers_are_scored_as_by_them(case: Case) -> None:
    answers = ["cat", "cats", "dog", "a"]
    asked = prompts()
    scored = im.Engine(case.ours, batch_size=2).score(asked, answers)
    for prompt, own in zip(asked, scored, strict=True):
        start = case.ids(torch.tensor(case.ours.encode_text(prompt.spans, len(prompt.images))))
        shown = torch.stack(list(prompt.images))[None]
        for answer, got in zip(answers, own.logprobs, strict=True):
            added = torch.tensor(list(answer.encode()))
            ids = torch.cat([start, added])[None]
            logits = case.theirs.logits(ids, torch.ones_like(ids), shown)[0, len(start) - 1 : -1]
            logits[:, IMAGE:] = float("-inf")
            padded = torch.cat([logits, case.padding(ids, shown, len(start))], dim=1)
            expected = -float(F.cross_entropy(padded, added, reduction="sum"))
            assert got == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_first_version_s_layout_is_read(tmp_path: Path, family: str) -> None:
    case = case_of(tmp_path, family, version=1)
    names = torch.load(case.path, weights_only=True)
    assert any("lang_encoder.gated_cross_attn_layers.1.attn_gate" in name for name in names)
    pixels = images(2, 2)
    batch = case.ours.prepare(TEXTS, [list(own) for own in pixels], padding_side="right")
    real = batch.attention_mask.bool()
    got, expected = case.got(batch)[real], case.expected(batch, pixels)[real]
    if family == "llama":  # it kept no row of the head for the end
        got, expected = got[:, :WORDS], expected[:, :WORDS]
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("every", "added"), [(1, 3), (4, 3), (2, 2)])
def test_other_placements_and_a_tokenizer_that_has_padding(
    tmp_path: Path, every: int, added: int
) -> None:
    case = case_of(tmp_path, "gpt_neox", every=every, added=added)
    assert case.ours.config.fusion == im.CrossAttention(every=every, offset=1)
    assert case.ours.config.connector == im.Resampler(latents=64, depth=6)
    pixels = images(1, 2)
    batch = case.ours.prepare(TEXTS[:1], [list(pixels[0])])
    torch.testing.assert_close(
        case.got(batch), case.expected(batch, pixels), rtol=0, atol=TOLERANCE
    )


def test_text_before_the_first_image_differs_by_design(flamingo: Case) -> None:
    """Theirs goes through the feed-forward of the blocks; ours is the bare language model's."""
    pixels = images(1, 1)
    batch = flamingo.ours.prepare(["ab<image>c"], [list(pixels[0])])
    away = (flamingo.got(batch) - flamingo.expected(batch, pixels)).abs()
    assert away[0, :2].max() > 1e-2
    bare = flamingo.ours.prepare(["ab"])
    with torch.no_grad():
        assert torch.equal(
            flamingo.ours(bare).logits, language_model("gpt_neox")(bare.input_ids).logits
        )
    testing.check_text_is_untouched(flamingo.ours)


CHECKS = (
    testing.check_evaluation_mode,
    testing.check_language_model_is_free,
    testing.check_sight,
    testing.check_padding,
    testing.check_decoding,
    testing.check_copies,
    testing.check_packing,
    testing.check_gradient_checkpointing,
)


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_it_passes_the_suite(flamingo: Case, check: Any) -> None:
    check(flamingo.ours)


def test_the_tool_for_real_weights_compares_the_same(tmp_path: Path) -> None:
    pytest.importorskip("open_flamingo", reason="pip install --no-deps open-flamingo==2.0.1")
    case_of(tmp_path, "mpt", vision="tiny-vit").ours.language.model.save_pretrained(tmp_path / "lm")
    byte_tokenizer().save_pretrained(tmp_path / "lm")
    parts = f'[vision]\nname = "tiny-vit"\n[language]\nname = "hf:{tmp_path / "lm"}"\n'
    (tmp_path / "model.toml").write_text(parts)
    tool = Path(__file__).parents[2] / "tools" / "try_released.py"
    command = [sys.executable, str(tool), str(tmp_path), "--tokens", "4"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(str(tmp_path))]
    assert [line.endswith("equal") for line in lines] == [True] * 5, done.stdout + done.stderr
    assert done.returncode == 0
