"""Transformers' CLIP and SigLIP: features, logits, tokens and scores are Transformers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from isthmus.classification.few_shot import learned_context
from isthmus.errors import ConfigError, PromptError
from isthmus.model.clip.checkpoint import load_clip
from isthmus.model.clip.dual_encoder import DualEncoder

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
WORDS = [
    "a",
    "photo",
    "of",
    "the",
    "cat",
    "dog",
    "great",
    "white",
    "shark",
    "ice",
    "cream",
    "truck",
    "small",
    "large",
    "bad",
    "good",
]
TEXTS = ["a photo of a cat.", "The great, WHITE shark!", "ice-cream truck"]


def scrambled(model: Any) -> Any:
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def siglip_model(vocab: int) -> Any:
    text = {**SIZES, "vocab_size": vocab, "max_position_embeddings": 16, "projection_size": 32}
    model = SiglipModel(
        SiglipConfig(text_config=text, vision_config={**SIZES, "image_size": 32, "patch_size": 8})
    )
    model.logit_scale.data.fill_(2.3)
    model.logit_bias.data.fill_(-3.0)
    return scrambled(model)


@pytest.fixture(scope="module")
def sentencepiece_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A SigLIP tokenizer, its pieces learned from a few words."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spiece")
    corpus = "\n".join(" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS)))
    (folder / "corpus.txt").write_text(corpus)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "spiece"),
        vocab_size=64,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return transformers.SiglipTokenizer(str(folder / "spiece.model"), model_max_length=16)


@pytest.fixture(scope="module")
def gemma_like_tokenizer() -> Any:
    """SigLIP 2's: byte pairs with the end token behind, lower case, padding on the right."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = [
        "<pad>",
        "<eos>",
        "<unk>",
        *"abcdefghijklmnopqrstuvwxyz.,!-_ABCDEFGHIJKLMNOPQRSTUVWXYZ\u2581",
    ]
    core = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, [], unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.Replace(" ", "\u2581")])
    core.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    core.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def processor(kind: str) -> Any:
    size = {"size": {"height": 32, "width": 32}}
    if kind == "siglip":
        return transformers.SiglipImageProcessor(**size)
    return transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size["size"])


def photos() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = [(50, 70), (33, 32), (20, 90)]
    return [Image.fromarray(rng.integers(0, 255, (*s, 3), np.uint8)) for s in sizes]


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def assert_equal_models(ours: DualEncoder, theirs: Any, ids: torch.Tensor, images: Any) -> None:
    pixels = images(images=photos(), return_tensors="pt")["pixel_values"]
    out = theirs(input_ids=ids, pixel_values=pixels)
    close(ours.encode_images(photos()), out.image_embeds)
    close(ours.encode_texts(TEXTS), out.text_embeds)
    close(
        ours.logits(ours.encode_images(photos()), ours.encode_texts(TEXTS)),
        out.logits_per_image,
    )
    assert (out.text_embeds[0] - out.text_embeds[1]).abs().max() > 0.01


def test_siglip_equals_transformers(sentencepiece_tokenizer: Any) -> None:
    tokenizer, images = sentencepiece_tokenizer, processor("siglip")
    theirs = siglip_model(len(tokenizer))
    ours = load_clip(theirs, tokenizer=tokenizer, preprocess=images)
    expected = tokenizer(TEXTS, padding="max_length", max_length=16, return_tensors="pt").input_ids
    assert torch.equal(ours.tokenize(TEXTS)["input_ids"], expected)
    assert expected.shape == (3, 16)
    assert_equal_models(ours, theirs, expected, images)
    assert ours.loss == "sigmoid"


def test_siglip_reads_canonical_text(sentencepiece_tokenizer: Any) -> None:
    """big_vision's rule, token by token: underscores are spaces, punctuation goes, lower case."""
    tokenizer = sentencepiece_tokenizer
    ours = load_clip(siglip_model(len(tokenizer)), tokenizer=tokenizer)
    canonical = ours.tokenize(["a photo of the great white shark"])["input_ids"]
    for text in (
        "A photo of the great_white shark.",
        "  a PHOTO, of the\tgreat  white shark!! ",
        "(a photo) of the great_white_shark",
    ):
        assert torch.equal(ours.tokenize([text])["input_ids"], canonical), text
    pieces = [tokenizer.sp_model.id_to_piece(i) for i in canonical[0].tolist()]
    end = pieces.index("</s>")
    assert (
        "".join(pieces[:end])
        == "\u2581a\u2581photo\u2581of\u2581the\u2581great\u2581white\u2581shark"
    )
    assert len(set(pieces[end:])) == 1
    assert not torch.equal(
        ours.tokenize(["a photo of the great whiteshark"])["input_ids"], canonical
    )


def test_siglip_vectors_depend_on_padding_so_it_is_never_trimmed(
    sentencepiece_tokenizer: Any,
) -> None:
    """The last place is read: padded to the longest text, scores would be another model's."""
    tokenizer = sentencepiece_tokenizer
    theirs = siglip_model(len(tokenizer))
    ours = load_clip(theirs, tokenizer=tokenizer)
    assert ours.text.fixed_length
    assert torch.equal(ours.encode_texts(TEXTS), ours.encode_texts(TEXTS, trim=False))
    trimmed = tokenizer(TEXTS, padding=True, return_tensors="pt").input_ids
    assert trimmed.shape[1] < 16
    with torch.no_grad():
        wrong = torch.nn.functional.normalize(
            theirs.get_text_features(input_ids=trimmed).pooler_output, dim=-1
        )
    assert (wrong - ours.encode_texts(TEXTS)).abs().max() > 0.01


def test_a_context_stands_first_where_nothing_stands_before_a_text(
    sentencepiece_tokenizer: Any,
) -> None:
    """SigLIP has no start token and reads the last of a fixed number of places."""
    tokenizer = sentencepiece_tokenizer
    ours = load_clip(siglip_model(len(tokenizer)), tokenizer=tokenizer)
    assert ours.text.prefix == 0
    words = ours.text.token_ids(["a photo of the"])[0][:-1]
    features = torch.nn.functional.normalize(torch.randn(2, 32), dim=-1)
    got = learned_context(
        ours,
        ["cat", "dog"],
        features,
        torch.tensor([0, 1]),
        context="a photo of the",
        epochs=1,
        learning_rate=0.0,
    )
    rows = [[*words, *row] for row in ours.text.token_ids(["cat.", "dog."])]
    close(got, ours.encode_tokens(ours.text.pad(rows)).detach())
    assert rows[0] == ours.text.token_ids(["a photo of the cat."])[0]


def test_siglip2_is_lower_case_and_padded(gemma_like_tokenizer: Any) -> None:
    tokenizer, images = gemma_like_tokenizer, processor("siglip")
    theirs = siglip_model(len(tokenizer))
    theirs.config.text_config.max_position_embeddings = 16
    texts = ["a cat.", "The Dog!"]
    ours = load_clip(theirs, tokenizer=tokenizer, preprocess=images)
    expected = tokenizer(
        [t.lower() for t in texts], padding="max_length", max_length=16, return_tensors="pt"
    ).input_ids
    assert torch.equal(ours.tokenize(texts)["input_ids"], expected)
    assert expected[0].tolist().index(1) == len("a cat.")
    assert ours.text.prefix == 0


def clip_tokenizer(folder: Path) -> Any:
    """OpenAI's, from the merges that open_clip carries; 500 of them."""
    open_clip = pytest.importorskip("open_clip")
    simple = open_clip.tokenizer.SimpleTokenizer()
    merges = [" ".join(pair) for pair in simple.bpe_ranks][:500]
    singles = list(simple.byte_encoder.values())
    words = singles + [f"{c}</w>" for c in singles] + ["".join(m.split(" ")) for m in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {word: i for i, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocab, merges=[tuple(m.split(" ")) for m in merges])


@pytest.mark.parametrize("legacy", [True, False], ids=["argmax", "eos"])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_equals_transformers(legacy: bool, activation: str, tmp_path: Path) -> None:
    tokenizer, images = clip_tokenizer(tmp_path), processor("clip")
    text = {
        **SIZES,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 40,
        "eos_token_id": 2 if legacy else tokenizer.eos_token_id,
        "hidden_act": activation,
    }
    vision = {**SIZES, "image_size": 32, "patch_size": 8, "hidden_act": activation}
    theirs = scrambled(
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    )
    ours = load_clip(theirs, tokenizer=tokenizer, preprocess=images)
    expected = tokenizer(TEXTS, padding="max_length", max_length=40, return_tensors="pt")
    assert torch.equal(ours.tokenize(TEXTS, trim=False)["input_ids"], expected.input_ids)
    assert_equal_models(ours, theirs, expected.input_ids, images)
    assert ours.tokenize(TEXTS)["input_ids"].shape[1] < 40
    close(ours.encode_texts(TEXTS), ours.encode_texts(TEXTS, trim=False))
    with pytest.raises(PromptError, match="at most 40"):
        ours.encode_texts(["cat " * 60])

    for part in (theirs, tokenizer, images):
        part.save_pretrained(tmp_path)
    loaded = load_clip(tmp_path)
    assert loaded.fingerprint() == load_clip(f"hf:{tmp_path}").fingerprint()
    close(loaded.encode_texts(TEXTS), ours.encode_texts(TEXTS))
    close(loaded.encode_images(photos()), ours.encode_images(photos()))


def test_families_that_cannot_be_say_why(gemma_like_tokenizer: Any) -> None:
    siglip2 = transformers.Siglip2Config(
        text_config={**SIZES, "vocab_size": 70}, vision_config=SIZES
    )
    with pytest.raises(ConfigError, match="fixed resolution"):
        load_clip(transformers.Siglip2Model(siglip2), tokenizer=gemma_like_tokenizer)
    bert = transformers.BertModel(transformers.BertConfig(**SIZES, vocab_size=9))
    with pytest.raises(ConfigError, match='of the family "bert"'):
        load_clip(bert, tokenizer=gemma_like_tokenizer)
    with pytest.raises(ConfigError, match="without its tokenizer"):
        load_clip(siglip_model(70))
    bare = load_clip(siglip_model(70), tokenizer=gemma_like_tokenizer)
    with pytest.raises(ConfigError, match="without its preprocessing"):
        bare.encode_images(photos())
