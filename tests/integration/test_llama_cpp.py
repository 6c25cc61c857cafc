"""llama.cpp itself answers about images as the model does, from the two files that were written.

It runs where its wheel is: `pip install xllamacpp`.
"""

from __future__ import annotations

import base64
import io
import json
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

import isthmus as im
from isthmus.exporting.tokens import WrittenTokens, add_tokens
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model
from isthmus.prompts.prompt import Example
from isthmus.prompts.templates import template_named

xllamacpp = pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.slow

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
PICTURES = 10
AGREE = 9
"""Of the pictures, those whose first token must be the same."""
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + '</s>' }}"
    "{% endif %}{% endfor %}"
)


def scrambled(model: Any, std: float) -> Any:
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=std)
    return model


def vision(kind: str, layer: int = -2) -> im.VisionEncoder:
    square = {"height": 32, "width": 32}
    processor: Any
    if kind == "clip":
        tower: Any = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES))
        processor = transformers.CLIPImageProcessor(size=square, crop_size=square)
    else:
        tower = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIZES))
        processor = transformers.SiglipImageProcessor(size=square)
    return im.load_vision(scrambled(tower, 0.2), preprocess=processor, feature_layer=layer)


def pieces_of_bytes() -> Any:
    """A tokenizer of SmolLM's kind, with a few merges, and a chat format."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("Ġ", "i"),
        ("Ġi", "s"),
        ("Q", "u"),
        ("Ġ", "the"),
        ("i", "s"),
    ]
    words = {w: i for i, w in enumerate([*letters, *("".join(pair) for pair in merges)])}
    core = Tokenizer(models.BPE(words, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_])
    core.decoder = decoders.ByteLevel()
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    made.chat_template = CHATML
    return made


def pieces_of_words() -> Any:
    """A tokenizer of Llama 2's kind: marks of words, bytes for what it does not know."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    words += ["\u2581", *map(chr, range(33, 127))]
    merges = [("\u2581", "A"), ("i", "s"), ("\u2581", "i"), ("\u2581", "is"), ("\u2581i", "s")]
    merges += [("Q", "u"), ("e", "s"), ("Qu", "es"), ("\u2581", "Ques"), ("t", "h")]
    words += [*dict.fromkeys("".join(pair) for pair in merges)]
    vocabulary = {word: i for i, word in enumerate(words)}
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    made.chat_template = INST
    return made


TOKENIZERS = {"bytes": byte_tokenizer, "smollm": pieces_of_bytes, "llama2": pieces_of_words}


def joined(
    tokenizer: str = "bytes", family: str = "llama", tower: str = "siglip", **options: Any
) -> im.VisionLanguageModel:
    torch.manual_seed(0)
    own = TOKENIZERS[tokenizer]()
    language = tiny_language_model(family, vocab=len(own))
    language.generation_config.eos_token_id = own.eos_token_id
    encoder = vision(tower, options.pop("layer", -2))
    model = im.compose(encoder, language, im.MLP(), tokenizer=own, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


class LlamaCpp:
    """A server of llama.cpp's in this process."""

    def __init__(self, folder: Path) -> None:
        options = xllamacpp.CommonParams()
        options.model.path = str(next(folder.glob("model-*.gguf")))
        options.mmproj.path = str(next(folder.glob("mmproj-*.gguf")))
        options.n_ctx, options.n_parallel, options.verbosity = 512, 1, 1
        options.warmup = False
        self.server = xllamacpp.Server(options)
        self.place = self.server.listening_address
        self.mark = self.get("/props")["media_marker"]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.place + path) as answer:
            return json.load(answer)

    def post(self, path: str, **told: Any) -> Any:
        request = urllib.request.Request(
            self.place + path, json.dumps(told).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def ids(self, text: str) -> list[int]:
        told = self.post("/tokenize", content=text, add_special=True, parse_special=True)
        return list(told["tokens"])

    def next(self, prompt: str, images: list[Image.Image]) -> dict[int, float]:
        """The likeliest tokens and their log-probabilities."""
        told = {
            "prompt_string": prompt.replace("<image>", self.mark),
            "multimodal_data": [base64.b64encode(png(i)).decode() for i in images],
        }
        options: dict[str, Any] = {"n_predict": 1, "temperature": 0, "n_probs": 5}
        # half a letter, or an end, would leave nothing to report; probabilities are without this
        made = self.post("/completion", prompt=told, logit_bias=[["a", 1000.0]], **options)
        found = made["completion_probabilities"][0]["top_logprobs"]
        return {t["id"]: t["logprob"] for t in found}


def png(image: Image.Image) -> bytes:
    kept = io.BytesIO()
    image.save(kept, "PNG")
    return kept.getvalue()


def picture(seed: int) -> Image.Image:
    """Of the encoder's own size, so that no resampler comes between."""
    noise = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@torch.no_grad()
def own_next(model: im.VisionLanguageModel, added: WrittenTokens, batch: Any) -> Tensor:
    """Log-probabilities (rows,) of what follows, by the ids of the files."""
    logits = model(batch).logits[0, -1]
    made = torch.full((added.rows,), -torch.inf)
    words = min(model.language.vocab_rows, added.image_id)
    made[:words] = logits[:words]
    made[added.end_id] = logits[model.special_tokens.end_id]
    return made.log_softmax(-1)


def prompt_of(model: im.VisionLanguageModel, images: list[Any], shots: Any = ()) -> Any:
    template = template_named(model.config.template, model.language.tokenizer)
    return template(list(shots), Example(tuple(images), "What is the 1st?"))


@pytest.fixture
def served(tmp_path: Path) -> Any:
    def serve(model: im.VisionLanguageModel, size: str = "f32") -> LlamaCpp:
        im.export(model, tmp_path / "out", to="gguf", dtype=size)
        return LlamaCpp(tmp_path / "out")

    return serve


def first_tokens_agree(model: im.VisionLanguageModel, llama: LlamaCpp) -> int:
    """For how many pictures the likeliest token is the same; they are not all one token."""
    added, same, said = add_tokens(model), 0, set()
    for seed in range(PICTURES):
        prompt = prompt_of(model, [picture(seed)])
        ours = own_next(model, added, model.prepare([prompt.spans], [prompt.images]))
        theirs = llama.next(prompt.text, [picture(seed)])
        first = max(theirs, key=lambda i: theirs[i])
        same += int(first == int(ours.argmax()))
        said.add(int(ours.argmax()))
    assert len(said) > 2
    return same


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_first_token_is_the_same(family: str, served: Any) -> None:
    model = joined(family=family)
    assert first_tokens_agree(model, served(model)) >= AGREE


@pytest.mark.parametrize("size", ["f16", "q8_0"])
def test_in_rounded_weights(size: str, served: Any) -> None:
    model = joined()
    assert first_tokens_agree(model, served(model, size)) >= AGREE - (size == "q8_0")


@pytest.mark.parametrize("layer", [-1, -3])
def test_layers_of_the_encoder(layer: int, served: Any) -> None:
    model = joined(layer=layer)
    assert first_tokens_agree(model, served(model)) >= AGREE


def test_probabilities_are_close(served: Any) -> None:
    """To what its tables of GELU and its half-precision cache leave."""
    model = joined()
    llama, added = served(model), add_tokens(model)
    shot = Example((picture(20),), "This?", "is the")
    for shots in ([], [shot]):
        prompt = prompt_of(model, [picture(1)], shots)
        ours = own_next(model, added, model.prepare([prompt.spans], [prompt.images]))
        theirs = llama.next(prompt.text, [*(i for s in shots for i in s.images), picture(1)])
        for token, value in theirs.items():
            assert value == pytest.approx(float(ours[token]), abs=0.1)


TEXTS = (
    "Question: What is the 12 3rd?\n\n  Answer:",
    "<|endofchunk|>is it's THE\t점 é<|endofchunk|>",
    "<image>Question: Is the",
)


@pytest.mark.parametrize("tokenizer", ["bytes", "smollm"])
def test_texts_have_the_same_ids(tokenizer: str, served: Any) -> None:
    model = joined(tokenizer)
    llama, added = served(model), add_tokens(model)
    for text in TEXTS:
        assert llama.ids(text) == added.tokenizer.encode(text)


@pytest.mark.parametrize(
    ("template", "tokenizer"),
    [
        *((t, name) for t in ("plain", "qa") for name in TOKENIZERS),
        *(("chat", name) for name in ("smollm", "llama2")),
    ],
)
def test_conversations_become_the_model_s_prompts(
    template: str, tokenizer: str, served: Any
) -> None:
    """Text and ids of what the server makes of messages, images and all."""
    model = joined(tokenizer, template=template)
    llama, added = served(model), add_tokens(model)
    data = "data:image/png;base64," + base64.b64encode(png(picture(1))).decode()
    shown = {"type": "image_url", "image_url": {"url": data}}
    shot = Example((picture(1),), "What is 점?", "is the")
    for shots, images in (([], [1]), ([shot], [1, 2]), ([shot], [])):
        messages: list[dict[str, Any]] = []
        for example in shots:
            asked = {"type": "text", "text": example.question}
            messages.append({"role": "user", "content": [shown, asked]})
            messages.append({"role": "assistant", "content": example.answer})
        asked = {"type": "text", "text": "What is the 1st?"}
        messages.append({"role": "user", "content": [shown] * len(images) + [asked]})
        made = llama.post("/apply-template", messages=messages)["prompt"]
        prompt = prompt_of(model, [picture(n) for n in images], shots)
        assert made.replace(llama.mark, "<image>").lstrip(" ") == prompt.text
        found: list[int] = []
        for number, piece in enumerate(made.split(llama.mark)):
            image = [added.image_id] * len(model.layout) if number else []
            ids = llama.post(
                "/tokenize", content=piece, add_special=number == 0, parse_special=True
            )
            found += [*image, *ids["tokens"]]
        batch = model.prepare([prompt.spans], [prompt.images])
        assert found == added.translated(batch.input_ids, model)[0].tolist()


SMOLLM2 = "smollm2-135m-instruct"


@pytest.mark.skipif(
    SMOLLM2 not in {told.asset.name for told in im.asset_status() if told.cached},
    reason="its weights are not in the cache",
)
def test_a_real_language_model(served: Any) -> None:
    """SmolLM2's tables and tokenizer, with a tower and a connector of random weights."""
    torch.manual_seed(0)
    model = im.compose(vision("siglip"), f"asset:{SMOLLM2}", im.MLP(), template="chat")
    with torch.no_grad():
        for parameter in model.connector.parameters():
            parameter.mul_(2)
    llama, added = served(model, "f16"), add_tokens(model)
    for text in (*TEXTS, "I'll pay 1,234.50€ — naïve   café\r\n\r\n\tx = {'a': [1]}  # 你好"):
        assert llama.ids(text) == added.tokenizer.encode(text)
    same = 0
    for seed in range(PICTURES):
        prompt = prompt_of(model, [picture(seed)])
        ours = own_next(model, added, model.prepare([prompt.spans], [prompt.images]))
        theirs = llama.next(prompt.text, [picture(seed)])
        same += int(max(theirs, key=lambda i: theirs[i]) == int(ours.argmax()))
    assert same >= AGREE


def test_clip_s_class_token(served: Any) -> None:
    """Right, or with its tokens in the order that llama.cpp of 2025 and 2026 puts them.

    That is: the class token behind the patches, and all but the first of them read.
    """
    model = joined(tower="clip")
    llama, added = served(model), add_tokens(model)
    right = shifted = 0
    for seed in range(PICTURES):
        prompt = prompt_of(model, [picture(seed)])
        batch = model.prepare([prompt.spans], [prompt.images])
        theirs = llama.next(prompt.text, [picture(seed)])
        first = max(theirs, key=lambda i: theirs[i])
        right += int(first == int(own_next(model, added, batch).argmax()))
        with torch.no_grad():
            visual = model.connector(class_token_last(model.vision.model, batch.pixels))
        batch = replace(batch, visual=visual, pixels=None)
        shifted += int(first == int(own_next(model, added, batch).argmax()))
    assert max(right, shifted) >= AGREE


def class_token_last(tower: Any, pixels: Tensor) -> Tensor:
    """What llama.cpp reads of a CLIP."""
    inner = tower.embeddings
    patches = inner.patch_embedding(pixels).flatten(2).transpose(1, 2)
    first = inner.class_embedding.expand(len(pixels), 1, -1)
    hidden = torch.cat([patches, first], 1) + inner.position_embedding.weight[None]
    hidden = tower.pre_layrnorm(hidden)
    for block in tower.encoder.layers[:-1]:
        made = block(hidden, attention_mask=None)
        hidden = made[0] if isinstance(made, tuple) else made
    return hidden[:, 1:]
