"""Exported models are the models: Transformers' own classes give their ids, logits and answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

import isthmus as im
from isthmus.exporting import llava, vlm
from isthmus.exporting.check import drawn
from isthmus.exporting.jinja import messages_of
from isthmus.exporting.tokens import add_tokens
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model
from isthmus.prompts.prompt import Example
from isthmus.prompts.templates import TEMPLATES, template_named

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def scrambled(model: Any) -> Any:
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def saved_tower(folder: Path, kind: str = "clip") -> str:
    """A CLIP or SigLIP with its image processor, as a repository has them."""
    if kind == "clip":
        model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES))
        crop = {"height": 32, "width": 32}
        processor = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop)
    else:
        model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIZES))
        processor = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    scrambled(model).save_pretrained(folder)
    processor.save_pretrained(folder)
    return f"hf:{folder}"


def saved_language(folder: Path, family: str = "llama", **options: Any) -> str:
    """A language model over bytes, by default with as many rows as there are tokens."""
    chat = options.pop("chat", None)
    model = tiny_language_model(family, vocab=options.pop("vocab", 259))
    if options.pop("tied", False):
        model.config.tie_word_embeddings = True
        model.tie_weights()
    if options.pop("letters", False):  # the others are never the likeliest
        with torch.no_grad():
            others = [i for i in range(len(model.lm_head.weight)) if i not in range(97, 123)]
            model.lm_head.weight[others] = 0
    model.save_pretrained(folder)
    tokenizer = byte_tokenizer()
    if chat:
        tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
        tokenizer.add_tokens("<|im_start|>", special_tokens=True)
        tokenizer.chat_template = chat
    tokenizer.save_pretrained(folder)
    return f"hf:{folder}"


def composed(
    tmp_path: Path,
    *,
    tower: str = "clip",
    layer: int = -2,
    resize: str = "own",
    template: str = "plain",
    lora: int = 0,
    keep_cls: bool = False,
    fusion: Any = None,
    connector: Any = None,
    **language: Any,
) -> im.VisionLanguageModel:
    """A model whose strip has random weights, as after training."""
    vision = im.VisionConfig(
        name=saved_tower(tmp_path / "tower", tower),
        feature_layer=layer,
        resize=resize,  # type: ignore[arg-type]
        keep_cls=keep_cls,
    )
    lm = im.LanguageConfig(name=saved_language(tmp_path / "language", **language), lora_rank=lora)
    model = im.compose(vision, lm, connector or im.MLP(), fusion, template=template)
    with torch.no_grad():
        for parameter in model.trained_parameters().values():
            parameter.normal_(std=0.1)
    return model


def prompted(model: im.VisionLanguageModel, shots: list[Example], query: Example) -> Any:
    template = template_named(model.config.template, model.language.tokenizer)
    return template(shots, query)


def questions() -> list[tuple[list[Example], Example]]:
    first, second = drawn((90, 60), 1), drawn((50, 70), 2)
    return [
        ([], Example((), "Why?")),
        ([], Example(first, "What is it?")),
        ([], Example(second)),
        ([Example(first, "This?", "a dog"), Example((), "1 + 1?", "2")], Example(second, "That?")),
    ]


@torch.no_grad()
def assert_same(model: im.VisionLanguageModel, folder: Path) -> None:
    """Texts, ids, pixels and logits of what another process would load."""
    theirs = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    added, end = add_tokens(model), model.special_tokens.end_id
    assert (theirs.config.image_token_id, processor.image_token_id) == (added.image_id,) * 2
    for shots, query in questions():
        prompt = prompted(model, shots, query)
        messages = messages_of(shots, query)
        written = processor.apply_chat_template(messages, add_generation_prompt=True)
        assert written == prompt.text
        batch = model.prepare([prompt.spans], [prompt.images])
        inputs = processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
        assert torch.equal(inputs["input_ids"], added.translated(batch.input_ids, model))
        if batch.pixels is not None:
            assert torch.equal(inputs["pixel_values"], batch.pixels)
        expected, got = model(batch).logits, theirs(**inputs).logits
        words = min(added.image_id, model.language.vocab_rows)
        torch.testing.assert_close(got[..., :words], expected[..., :words], atol=1e-4, rtol=0)
        if batch.pixels is not None:
            torch.testing.assert_close(
                got[..., added.end_id], expected[..., end], atol=1e-4, rtol=0
            )
            assert expected[..., :words].std() > 0.1


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_the_export_is_the_model(tower: str, family: str, tmp_path: Path) -> None:
    model = composed(tmp_path, tower=tower, family=family)
    found = im.export(model, tmp_path / "out")
    assert found.difference <= 1e-4
    assert (found.architecture, found.pixels) == ("LlavaForConditionalGeneration", 0.0)
    assert_same(model, tmp_path / "out")


@pytest.mark.parametrize("family", ["mistral", "qwen3", "gemma", "phi3", "olmo2", "smollm3"])
def test_language_models_of_one_build(family: str, tmp_path: Path) -> None:
    model = composed(tmp_path, family=family)
    im.export(model, tmp_path / "out")
    assert_same(model, tmp_path / "out")


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_towers_of_whole_dual_encoders(kind: str, tmp_path: Path) -> None:
    """As most repositories have them: text tower, projection and all."""
    model = composed(tmp_path, tower=kind)
    text = {**SIZES, "vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "clip":
        clip_config = transformers.CLIPConfig(text_config=text, vision_config=SIZES)
        whole: Any = transformers.CLIPModel(clip_config)
    else:
        config = transformers.SiglipConfig(text_config=text, vision_config=SIZES)
        whole = transformers.SiglipModel(config)
    processor = model.vision.processor
    vision = im.load_vision(scrambled(whole), preprocess=processor, feature_layer=-2)
    other = im.compose(vision, model.language, im.MLP())
    with torch.no_grad():
        for parameter in other.trained_parameters().values():
            parameter.normal_(std=0.1)
    im.export(other, tmp_path / "out")
    assert_same(other, tmp_path / "out")


@pytest.mark.parametrize("resize", ["own", "squash", "pad"])
@pytest.mark.parametrize("quick", [False, True])
@torch.no_grad()
def test_towers_of_open_clip(quick: bool, resize: str, tmp_path: Path) -> None:
    """Their attention cut in three, their activation as the weights were trained with."""
    open_clip = pytest.importorskip("open_clip")
    sizes = {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8, "head_width": 32}
    whole = open_clip.CLIP(
        embed_dim=24,
        vision_cfg=sizes,
        text_cfg={"width": 32, "heads": 2, "layers": 1},
        quick_gelu=quick,
    )
    vision = im.load_vision(scrambled(whole), feature_layer=-2, resize=resize)  # type: ignore[arg-type]
    model = im.compose(vision, "tiny-lm", im.MLP())
    for parameter in model.trained_parameters().values():
        parameter.normal_(std=0.1)
    found = im.export(model, tmp_path / "out")
    assert found.difference <= 1e-4
    assert found.pixels < 0.5  # torchvision's transform of a Pillow image, and of a tensor
    config = json.loads((tmp_path / "out" / "config.json").read_text())["vision_config"]
    # what is CLIP's default is not written
    assert config.get("hidden_act", "quick_gelu") == ("quick_gelu" if quick else "gelu")


def sentencepiece_like() -> Any:
    """As Llama 2's and Mistral's: words begin with a mark, and so does a text at its start."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    pieces = ["<unk>", "<s>", "</s>", "\u2581", *map(chr, range(32, 127)), "\n"]
    pieces += ["\u2581a", "\u2581W", "\u2581i", "hi", "at"]
    merges = [("\u2581", "a"), ("\u2581", "W"), ("\u2581", "i"), ("h", "i"), ("a", "t")]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    core = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_a_tokenizer_of_sentencepiece_s_kind(tmp_path: Path) -> None:
    """The begin-of-sequence token once, and no mark of a word behind an image."""
    base = composed(tmp_path)
    language = tiny_language_model(vocab=264)
    model = im.compose(base.vision, language, im.MLP(), tokenizer=sentencepiece_like())
    assert model.language.start_ids == [1]
    im.export(model, tmp_path / "out")
    assert_same(model, tmp_path / "out")


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("layer", [-1, -3])
def test_every_layer_is_read_as_it_was(layer: int, tower: str, tmp_path: Path) -> None:
    model = composed(tmp_path, tower=tower, layer=layer)
    found = im.export(model, tmp_path / "out")
    assert_same(model, tmp_path / "out")
    assert any("post_layernorm" in note for note in found.notes) == (layer == -1)
    assert ("post_layernorm" in (tmp_path / "out" / "README.md").read_text()) == (layer == -1)


def test_the_class_token_stays_where_it_was_kept(tmp_path: Path) -> None:
    model = composed(tmp_path, keep_cls=True)
    assert len(model.layout) == 17
    im.export(model, tmp_path / "out")
    assert_same(model, tmp_path / "out")


@pytest.mark.parametrize("resize", ["squash", "pad"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_whole_images(tower: str, resize: str, tmp_path: Path) -> None:
    """Ours are resized by Pillow and theirs by torchvision: alike, and logits of the same equal."""
    model = composed(tmp_path, tower=tower, resize=resize)
    found = im.export(model, tmp_path / "out")
    assert found.difference <= 1e-4
    processor = AutoProcessor.from_pretrained(tmp_path / "out").image_processor
    for size in ((96, 48), (40, 80), (64, 64)):  # halves: no pixel is cut in two
        image = drawn(size, 1)
        own = model.vision.preprocess(image)
        theirs = processor(image, return_tensors="pt")["pixel_values"][0]
        difference = (theirs + llava.moved_pixels(model) - own).abs()
        assert difference.mean() < 0.03, size
        if resize == "pad" and size[0] != size[1]:
            edge = own[:, 0, 0] if size[0] > size[1] else own[:, 16, 0]
            white = (1 - torch.tensor(processor_mean(model))) / torch.tensor(processor.image_std)
            torch.testing.assert_close(edge, white)
            assert (theirs[:, 0, 0] == 0).all()


def processor_mean(model: im.VisionLanguageModel) -> list[float]:
    return list(model.vision.normalisation[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_the_chat_template_prints_the_prompts(name: str, tmp_path: Path) -> None:
    model = composed(tmp_path, template=name)
    im.export(model, tmp_path / "out")
    assert_same(model, tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    for instruction in ("", 'Say "yes" or\nno.'):
        for shots, query in questions():
            template = template_named(name)
            messages = messages_of(shots, query, instruction=instruction)
            written = processor.apply_chat_template(messages, add_generation_prompt=True)
            assert written == template(shots, query, instruction=instruction).text
    begun = [*messages, {"role": "assistant", "content": [{"type": "text", "text": "It is"}]}]
    written = processor.apply_chat_template(begun, continue_final_message=True)
    expected = template(shots, query, instruction=instruction, lead="It is").text
    assert written == expected


NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IN_PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}SHOWN{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATS = {
    "chatml": CHATML,
    "with bos": "{{ bos_token }}" + CHATML,
    "indented": "  " + CHATML,
    "after a line": "\n" + CHATML,
    "no system": NO_SYSTEM,
    "parts": IN_PARTS.replace("SHOWN", "<image>"),
    "other tag": IN_PARTS.replace("SHOWN", "<|im_start|>[PICTURE]<|im_start|>"),
    "no images": IN_PARTS.replace("SHOWN", ""),
}


@pytest.mark.parametrize("chat", CHATS)
def test_the_own_chat_format_is_printed(chat: str, tmp_path: Path) -> None:
    model = composed(tmp_path, template="chat", chat=CHATS[chat], vocab=264)
    im.export(model, tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    start = "<s>" if chat == "with bos" else ""
    for instruction in ("", "Be brief."):
        for shots, query in questions():
            template = template_named("chat", model.language.tokenizer)
            messages = messages_of(shots, query, instruction=instruction)
            written = processor.apply_chat_template(messages, add_generation_prompt=True)
            assert written == template(shots, query, instruction=instruction).text
            assert written.startswith(start)
    config = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert model.language.tokenizer.eos_token_id in config["eos_token_id"]


def test_a_padded_table_does_not_grow(tmp_path: Path) -> None:
    model = composed(tmp_path, vocab=264)
    im.export(model, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["image_token_index"], config["text_config"]["vocab_size"]) == (259, 264)
    assert_same(model, tmp_path / "out")


def test_a_tied_head_is_untied(tmp_path: Path) -> None:
    model = composed(tmp_path, tied=True)
    inside = model.language
    assert inside.input_embedding.weight is inside.output_embedding.weight
    im.export(model, tmp_path / "out")
    assert_same(model, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not told["tie_word_embeddings"]
    assert not told["text_config"]["tie_word_embeddings"]


def test_lora_is_merged(tmp_path: Path) -> None:
    model = composed(tmp_path, lora=4)
    batch = model.prepare(["Why?"])
    with torch.no_grad():
        adapted = model(batch).logits
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                assert parameter.abs().max() > 0
    im.export(model, tmp_path / "out")
    assert_same(model, tmp_path / "out")
    assert torch.equal(model(batch).logits, adapted)  # the model itself stays as it was
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert not [name for name in names if "lora" in name or "base_layer" in name]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT calls what Transformers renamed
@torch.no_grad()
def test_lora_as_a_folder_of_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = composed(tmp_path, lora=4)
    found = im.export(model, tmp_path / "out", lora="peft")
    assert found.difference <= 1e-4
    bare = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([[1, 2, 3]])
    without = bare(input_ids=ids).logits
    adapted = peft.PeftModel.from_pretrained(bare, str(tmp_path / "out" / "adapter")).eval()
    expected = model.language.model(input_ids=ids).logits
    got = adapted(input_ids=ids).logits[..., :259]
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert (without[..., :259] - expected).abs().max() > 0.01
    names = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert len(names) == 2 * 7 * 4  # A and B of seven projections in four layers


def test_lora_that_is_not_there(tmp_path: Path) -> None:
    model = composed(tmp_path)
    with pytest.raises(im.ExportError, match="the model has no LoRA"):
        im.export(model, tmp_path / "out", lora="peft")
    with pytest.raises(im.ConfigError, match='"pefft": did you mean "peft"'):
        im.export(model, tmp_path / "out", lora="pefft")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_padded_images_in_half_precision(tower: str, tmp_path: Path) -> None:
    model = composed(tmp_path, tower=tower, resize="pad").to(torch.bfloat16)
    assert im.export(model, tmp_path / "out").difference <= 1e-4


def test_half_precision_is_written_as_it_is(tmp_path: Path) -> None:
    model = composed(tmp_path).to(torch.bfloat16)
    found = im.export(model, tmp_path / "out")
    assert found.difference <= 1e-4
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert next(model.parameters()).dtype == torch.bfloat16
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_the_pipeline_answers_as_ask_does(template: str, tmp_path: Path) -> None:
    """From a file on the disk; no stop strings, which a pipeline has none of."""
    model = composed(tmp_path, template=template, chat=CHATML, vocab=264, letters=True)
    im.export(model, tmp_path / "out")
    pipe = transformers.pipeline("image-text-to-text", model=str(tmp_path / "out"))
    drawn((90, 60), 1).save(tmp_path / "photo.png")
    drawn((30, 60), 2).save(tmp_path / "shot.jpg", quality=90)
    said = set()
    for shots in ([], [Example(str(tmp_path / "shot.jpg"), "This?", "a dog")]):
        query = Example(str(tmp_path / "photo.png"), "What is in the picture?")
        answer = im.ask(
            model, query.images, query.question, shots=shots, max_new_tokens=12, stop=()
        )
        [told] = pipe(messages_of(shots, query), max_new_tokens=12, return_full_text=False)
        assert told["generated_text"].strip() == answer.text
        said.add(answer.text)
    assert len(said) == 2
    assert all(said)


@pytest.mark.parametrize("name", ["coffee.jpg", "cat.jpg"])
def test_pixels_of_a_file(name: str, tmp_path: Path) -> None:
    """A photograph that a message names by its path."""
    photo = Path(__file__).parents[2] / "examples" / name
    model = composed(tmp_path)
    im.export(model, tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    parts = [{"type": "image", "url": str(photo)}, {"type": "text", "text": "What?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(inputs["pixel_values"][0], model.vision.preprocess(im.open_image(photo)))


def test_an_answer_ends_where_it_does_here(tmp_path: Path) -> None:
    """At the end of a chunk, which the model says at once if its row is made to win."""
    model = composed(tmp_path)
    query = Example(drawn((90, 60), 1), "What?")
    batch = model.prepare([prompted(model, [], query).spans], [query.images])
    with torch.no_grad():
        hidden = model.language.model.base_model
        with model.in_sight(batch) as embeddings:
            last = hidden(inputs_embeds=embeddings, use_cache=False).last_hidden_state[0, -1]
        model.special_tokens.output_rows[0] = last * 10
    assert im.ask(model, query.images, "What?", stop=()).new_tokens <= 1
    im.export(model, tmp_path / "out")
    theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    inputs = processor.apply_chat_template(
        messages_of([], query), tokenize=True, return_dict=True, return_tensors="pt"
    )
    made = theirs.generate(**inputs, max_new_tokens=8)
    assert made[0, inputs["input_ids"].shape[1] :].tolist() == [add_tokens(model).end_id]


def test_the_layout_on_the_disk_is_the_classic_one(tmp_path: Path) -> None:
    im.export(composed(tmp_path), tmp_path / "out")
    names = set(load_file(tmp_path / "out" / "model.safetensors"))
    assert {
        "vision_tower.vision_model.embeddings.class_embedding",
        "multi_modal_projector.linear_2.bias",
        "language_model.model.embed_tokens.weight",
        "language_model.lm_head.weight",
    } <= names
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for path in (tmp_path / "out").iterdir():
        if path.suffix != ".safetensors":
            assert str(tmp_path) not in path.read_text()  # no path of this machine


# --- What must not pass ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
        "multi_modal_projector.linear_1.bias",
        "language_model.model.layers.3.mlp.up_proj.weight",
        "language_model.lm_head.weight",
    ],
)
def test_a_broken_tensor_is_found(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = composed(tmp_path)
    written = llava.tensors_of

    def broken(*parts: Any, **options: Any) -> dict[str, torch.Tensor]:
        tensors = written(*parts, **options)
        return {**tensors, name: tensors[name] * 1.1 + 0.05}

    monkeypatch.setattr(llava, "tensors_of", broken)
    (tmp_path / "there").mkdir()
    before = set(tmp_path.rglob("*"))
    with pytest.raises(im.ExportError, match=r"logits differ by [0-9.]+, expected 0.0001 at most"):
        im.export(model, tmp_path / "there" / "out")
    assert set(tmp_path.rglob("*")) == before


def test_a_missing_tensor_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = composed(tmp_path)
    written = llava.tensors_of

    def broken(*parts: Any, **options: Any) -> dict[str, torch.Tensor]:
        tensors = written(*parts, **options)
        del tensors["language_model.model.norm.weight"]
        return tensors

    monkeypatch.setattr(llava, "tensors_of", broken)
    with pytest.raises(im.ExportError, match=r"missing keys: .*norm.weight"):
        im.export(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_chat_template_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = composed(tmp_path)
    monkeypatch.setattr(vlm, "jinja_of", lambda *_, **options: "{{ messages[0]['role'] }}")
    with pytest.raises(im.ExportError, match="chat template prints 'user', expected 'Question: "):
        im.export(model, tmp_path / "out")


def test_another_preprocessing_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = composed(tmp_path, resize="squash")
    monkeypatch.setattr(llava, "image_processor_of", lambda model: model.vision.processor)
    with pytest.raises(im.ExportError, match=r"pixels .* differ from the model's"):
        im.export(model, tmp_path / "out")


def test_what_stands_there_is_left_alone(tmp_path: Path) -> None:
    model = composed(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(im.OutputError, match="holds something already"):
        im.export(model, tmp_path / "out")
    with pytest.raises(im.OutputError, match="is a file"):
        im.export(model, tmp_path / "file")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    im.export(model, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()


def test_a_named_model_is_loaded_and_written(tmp_path: Path) -> None:
    model = composed(tmp_path)
    im.save(model, tmp_path / "saved")
    im.export(str(tmp_path / "saved"), tmp_path / "out")
    assert_same(model, tmp_path / "out")
