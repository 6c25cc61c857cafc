"""Files for llama.cpp: Transformers reads the model's tensors and logits in them.

What llama.cpp itself makes of them is in tests/integration/test_llama_cpp.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
import transformers
from gguf import GGUFReader
from gguf.quants import dequantize

import isthmus as im
from isthmus.exporting.check import drawn
from isthmus.exporting.llama_cpp import check, projector, tokenizer
from isthmus.exporting.llama_cpp.template import program_of
from isthmus.exporting.tokens import add_tokens
from isthmus.model.backbones import llama_cpp
from isthmus.model.backbones.tiny import byte_tokenizer, tiny_language_model
from isthmus.model.backbones.tiny_llava import write_tiny_llava
from isthmus.prompts.templates import TEMPLATES, template_named

from .test_export import CHATML, composed, questions, sentencepiece_like

WORDS, IMAGES = "model-F32.gguf", "mmproj-F32.gguf"


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return {
        t.name: torch.from_numpy(dequantize(t.data, t.tensor_type).copy())
        for t in GGUFReader(path).tensors
    }


def fields(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def exported(model: im.VisionLanguageModel, folder: Path, size: str = "f32") -> Any:
    return im.export(model, folder, to="gguf", dtype=size)


@torch.no_grad()
def loaded(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=WORDS, dtype=torch.float32
    ).eval()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("tower", ["clip", "siglip"])
@torch.no_grad()
def test_transformers_reads_the_model(tower: str, family: str, tmp_path: Path) -> None:
    model = composed(tmp_path, tower=tower, family=family)
    found = exported(model, tmp_path / "out")
    assert (found.architecture, found.rounded) == ("llama.cpp", "")
    assert found.difference <= 1e-4
    theirs, added = loaded(tmp_path / "out"), add_tokens(model)
    for text in ("Question: Why? Answer:", "Answer"):
        batch = model.prepare([text])
        got = theirs(input_ids=added.translated(batch.input_ids, model)).logits
        expected = model(batch).logits
        torch.testing.assert_close(got[..., :259], expected[..., :259], atol=1e-4, rtol=0)
        assert expected.std() > 0.1
    pixels = torch.stack([model.vision.preprocess(drawn((50, 40), n)) for n in (1, 2, 3)])
    got = check.visual_tokens(tmp_path / "out" / IMAGES, pixels)
    expected = model.connector(model.vision(pixels))
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


def test_qwen3(tmp_path: Path) -> None:
    assert exported(composed(tmp_path, family="qwen3"), tmp_path / "out").difference <= 1e-4


def test_queries_and_keys_are_interleaved_for_a_llama_alone(tmp_path: Path) -> None:
    """Heads of 16: number 8 comes second. What has no positions stays as it is."""
    for family, order in (("llama", [0, 8, 1, 9]), ("qwen2", [0, 1, 2, 3])):
        model = composed(tmp_path / family, family=family)
        exported(model, tmp_path / family / "out")
        found = tensors(tmp_path / family / "out" / WORDS)
        layer = model.language.model.model.layers[1].self_attn
        for part in ("q", "k"):
            own = getattr(layer, f"{part}_proj").weight.detach()
            assert torch.equal(found[f"blk.1.attn_{part}.weight"][:4], own[order])
        assert torch.equal(found["blk.1.attn_v.weight"], layer.v_proj.weight.detach())


@pytest.mark.parametrize("layer", [-1, -3, 2])
def test_blocks_behind_the_feature_layer_are_left_out(layer: int, tmp_path: Path) -> None:
    model = composed(tmp_path, tower="siglip", layer=layer)
    exported(model, tmp_path / "out")
    told, found = fields(tmp_path / "out" / IMAGES), tensors(tmp_path / "out" / IMAGES)
    blocks = {-1: 3, -3: 1, 2: 2}[layer]
    assert told["clip.vision.block_count"] == blocks
    assert told["clip.vision.feature_layer"] == [blocks]
    assert {int(n.split(".")[2]) for n in found if n.startswith("v.blk")} == {*range(blocks)}
    assert "v.post_ln.weight" not in found


def test_features_behind_the_final_norm(tmp_path: Path) -> None:
    """llama.cpp applies the norm where it is in the file; LLaVA's class cannot."""
    base = composed(tmp_path, tower="siglip")
    vision = im.load_vision(base.config.vision.name, feature_layer=-1, final_norm=True)
    model = im.compose(vision, base.language, im.MLP())
    assert exported(model, tmp_path / "out").difference <= 1e-4
    assert "v.post_ln.weight" in tensors(tmp_path / "out" / IMAGES)
    pixels = model.vision.preprocess(drawn((50, 40), 1))[None]
    with torch.no_grad():
        got = check.visual_tokens(tmp_path / "out" / IMAGES, pixels)
        torch.testing.assert_close(got, model.connector(model.vision(pixels)), atol=1e-4, rtol=0)


def test_towers_of_open_clip_are_cut_in_three(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    sizes = {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8, "head_width": 32}
    text = {"width": 32, "heads": 2, "layers": 1}
    whole = open_clip.CLIP(embed_dim=24, vision_cfg=sizes, text_cfg=text)
    model = im.compose(im.load_vision(whole, feature_layer=-2), "tiny-lm", im.MLP())
    found = exported(model, tmp_path / "out")
    assert found.difference <= 1e-4
    assert any("approximated by tanh" in note for note in found.notes)


@pytest.mark.parametrize("kind", ["llama3", "linear"])
def test_scaled_positions(kind: str, tmp_path: Path) -> None:
    base = composed(tmp_path)
    told: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    if kind == "llama3":
        told |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        told["original_max_position_embeddings"] = 64
    config = tiny_language_model().config
    config.rope_parameters = told
    torch.manual_seed(0)
    lm = transformers.LlamaForCausalLM(config)
    model = im.compose(base.vision, lm, im.MLP(), tokenizer=byte_tokenizer())
    assert exported(model, tmp_path / "out").difference <= 1e-4
    factors = tensors(tmp_path / "out" / WORDS)["rope_freqs.weight"]
    assert factors[-1] == pytest.approx(4.0)
    assert (factors[0] == pytest.approx(1.0)) == (kind == "llama3")


def test_sizes(tmp_path: Path) -> None:
    """Rounded once, bit by bit; vectors, places and the class token are not."""
    model = composed(tmp_path)
    written = {}
    for size in ("f32", "f16", "q8_0"):
        found = exported(model, tmp_path / size, size)
        assert found.rounded == ("" if size == "f32" else size)
        written[size] = found.bytes
        told = tensors(tmp_path / size / f"model-{size.upper()}.gguf")
        own = model.language.model.model.layers[0].mlp.up_proj.weight.detach()
        expected = {"f32": own, "f16": own.half().float()}.get(size)
        if expected is not None:
            assert torch.equal(told["blk.0.ffn_up.weight"].float(), expected)
        norm = model.language.model.model.norm.weight.detach()
        assert torch.equal(told["output_norm.weight"], norm)
        images = tensors(tmp_path / size / f"mmproj-{size.upper()}.gguf")
        places = model.vision.model.embeddings.position_embedding.weight.detach()
        assert torch.equal(images["v.position_embd.weight"], places)
    assert written["q8_0"] < written["f16"] < written["f32"]
    assert im.export(model, tmp_path / "auto", to="gguf").rounded == "f16"


def test_values_too_large_for_f16(tmp_path: Path) -> None:
    model = composed(tmp_path)
    model.connector.layers[0].weight.data[0, 0] = 1e5
    with pytest.raises(im.ExportError, match="too large for f16: take --dtype f32"):
        exported(model, tmp_path / "out", "f16")
    assert not (tmp_path / "out").exists()


def test_lora_is_merged(tmp_path: Path) -> None:
    model = composed(tmp_path, lora=4)
    assert exported(model, tmp_path / "out").difference <= 1e-4
    layer = model.language.model.model.layers[0].mlp.up_proj
    merged = layer.base_layer.weight + layer.get_delta_weight("default")
    assert torch.equal(tensors(tmp_path / "out" / WORDS)["blk.0.ffn_up.weight"], merged.detach())
    with pytest.raises(im.ConfigError, match='lora = "peft" with GGUF: expected "merge"'):
        im.export(model, tmp_path / "other", to="gguf", lora="peft")


@pytest.mark.parametrize("tied", [False, True])
def test_a_released_model_keeps_its_tables(tied: bool, tmp_path: Path) -> None:
    model = im.load(write_tiny_llava(tmp_path / "released", tie_word_embeddings=tied))
    assert exported(model, tmp_path / "out").difference <= 1e-4
    found = tensors(tmp_path / "out" / WORDS)
    assert torch.equal(found["token_embd.weight"], model.language.input_embedding.weight.detach())
    assert ("output.weight" in found) != tied
    told = fields(tmp_path / "out" / WORDS)
    assert told["tokenizer.ggml.tokens"][259:] == [
        "<image>",
        *(f"[PAD{i}]" for i in range(260, 264)),
    ]
    assert told["tokenizer.ggml.eos_token_id"] == told["tokenizer.ggml.eot_token_id"] == 258


# --- The tokenizer and the chat template ---------------------------------------------------------


def test_words_and_their_kinds(tmp_path: Path) -> None:
    exported(composed(tmp_path, vocab=264), tmp_path / "out")
    told = fields(tmp_path / "out" / WORDS)
    words, kinds = told["tokenizer.ggml.tokens"], told["tokenizer.ggml.token_type"]
    assert words[255:] == ["ÿ", "<pad>", "<s>", "</s>", "<image>", "<|endofchunk|>"] + [
        f"[PAD{i}]" for i in range(261, 264)
    ]
    assert kinds[255:] == [1, 3, 3, 3, 3, 3, 5, 5, 5]
    assert told["tokenizer.ggml.pre"] == "gpt-2"
    assert (told["tokenizer.ggml.eos_token_id"], told["tokenizer.ggml.eot_token_id"]) == (258, 260)
    assert told["tokenizer.ggml.add_bos_token"] is False


def test_pieces_of_sentencepiece_have_scores(tmp_path: Path) -> None:
    base = composed(tmp_path)
    lm = tiny_language_model(vocab=264)
    model = im.compose(base.vision, lm, im.MLP(), tokenizer=sentencepiece_like())
    exported(model, tmp_path / "out")
    told = fields(tmp_path / "out" / WORDS)
    scores = dict(zip(told["tokenizer.ggml.tokens"], told["tokenizer.ggml.scores"], strict=True))
    assert told["tokenizer.ggml.model"] == "llama"
    assert [scores[w] for w in ("\u2581a", "\u2581W", "at")] == [0, -1, -4]
    assert told["tokenizer.ggml.add_bos_token"] is True
    assert told["tokenizer.ggml.add_space_prefix"] is False  # the template's first word has it


def named(steps: tuple[tuple[Any, ...], ...], whole: bool) -> Any:
    """A tokenizer that cuts by rules of `CUTS`."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    made: list[Any] = []
    for step in steps:
        if step[0] == "ByteLevel":
            made.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step[1]))
        elif step[0] == "Digits":
            made.append(pre_tokenizers.Digits(individual_digits=step[1]))
        else:
            made.append(pre_tokenizers.Split(Regex(step[1]), "isolated"))
    core = Tokenizer(models.BPE(vocab={"a": 0}, merges=[], ignore_merges=whole))
    core.pre_tokenizer = made[0] if len(made) == 1 else pre_tokenizers.Sequence(made)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core)


def test_ways_to_cut_are_known_by_their_rules() -> None:
    for steps, (name, whole) in tokenizer.CUTS.items():
        assert tokenizer.cut_name(named(steps, whole)) == name
        with pytest.raises(im.ExportError, match="takes whole words"):
            tokenizer.cut_name(named(steps, not whole))
    with pytest.raises(im.ExportError, match="cuts texts by Digits then ByteLevel in another way"):
        tokenizer.cut_name(named((("Digits", False), ("ByteLevel", True)), False))


def rendered(program: str, messages: list[dict[str, Any]]) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)  # as chat templates are
    return environment.from_string(program).render(
        messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("name", [*sorted(TEMPLATES), "chat"])
@pytest.mark.parametrize("mark", ["<__media__>", "<__media_x7Yq__>"])
@pytest.mark.parametrize("parts", [False, True])
def test_the_chat_template_puts_marks_in_place_of_images(
    parts: bool, mark: str, name: str, tmp_path: Path
) -> None:
    """As llama.cpp hands them over: in one text, or in parts."""
    model = composed(tmp_path, template=name, chat=CHATML, vocab=264)
    template = template_named(name, model.language.tokenizer)
    program = program_of(template, add_tokens(model))

    def message(role: str, pieces: list[str]) -> dict[str, Any]:
        listed = [{"type": "media_marker" if mark in p else "text", "text": p} for p in pieces]
        return {"role": role, "content": listed if parts else "".join(pieces)}

    for shots, query in questions():
        messages = []
        for example in (*shots, query):
            said = [example.question] if example.question else []
            messages.append(message("user", [mark] * len(example.images) + said))
            if example is not query:
                messages.append(message("assistant", [example.answer]))
        expected = template(shots, query).text.replace("<image>", mark)
        assert rendered(program, messages) == expected


def test_a_space_that_the_tokenizer_would_add(tmp_path: Path) -> None:
    base = composed(tmp_path)
    lm = tiny_language_model(vocab=264)
    model = im.compose(base.vision, lm, im.MLP(), tokenizer=sentencepiece_like())
    program = program_of(template_named("plain"), add_tokens(model), spaced=True)
    for asked, start in (("Why?", " Question: Why?"), ("<__media__>Why?", "<__media__>Question")):
        assert rendered(program, [{"role": "user", "content": asked}]).startswith(start)


def test_the_card(tmp_path: Path) -> None:
    found = exported(composed(tmp_path), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "llama-server -m model-F32.gguf --mmproj mmproj-F32.gguf" in text
    assert "library_name: llama.cpp" in text
    assert any("class token" in note for note in found.notes)  # of CLIP
    assert str(tmp_path) not in text
    assert {p.name for p in (tmp_path / "out").iterdir()} == {WORDS, IMAGES, "README.md"}


# --- What must not pass --------------------------------------------------------------------------


def test_rows_that_are_not_interleaved_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "interleaved", lambda rows, size: rows)
    model = composed(tmp_path)
    with pytest.raises(im.ExportError, match=r"reads other values of layers.0.self_attn.q_proj"):
        exported(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", ["v.blk.0.attn_q.bias", "mm.0.weight", "v.pre_ln.weight"])
def test_a_broken_tensor_is_found(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = projector.tensors_of

    def wrong(model: Any) -> dict[str, torch.Tensor]:
        found = written(model)
        return {**found, broken: found[broken] * 1.1 + 0.05}

    monkeypatch.setattr(projector, "tensors_of", wrong)
    model = composed(tmp_path)
    with pytest.raises(im.ExportError, match="visual tokens differ by"):
        exported(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_was_changed_is_found(tmp_path: Path) -> None:
    model = composed(tmp_path)
    exported(model, tmp_path / "out")
    path = tmp_path / "out" / IMAGES
    values = bytearray(path.read_bytes())
    values[-100] ^= 1
    path.write_bytes(values)
    with pytest.raises(im.ExportError, match="holds other values of"):
        check.same_tensors(path, projector.tensors_of(model), "f32")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        (
            {"family": "gemma3"},
            'is a "gemma3_text", .*expected one of llama, mistral, qwen2, qwen3',
        ),
        ({"keep_cls": True}, r"17 tokens of 16 patches .*expected the patches alone"),
        ({"connector": im.Linear()}, r"connector is Linear.*expected MLP\(depth=2\)"),
        ({"fusion": im.CrossAttention(every=2)}, "adds layers of gated cross-attention"),
    ],
)
def test_what_llama_cpp_has_no_like_of(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(im.ExportError, match=match) as error:
        exported(composed(tmp_path, **changes), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_other_models(tmp_path: Path) -> None:
    for name, match in (
        ("asset:smollm2-135m-instruct", "is a language model alone"),
        ("tiny", "its fusion adds adapters"),
        ("tiny-clip", "is a dual encoder, which llama.cpp does not run"),
    ):
        with pytest.raises(im.ExportError, match=match):
            im.export(name, tmp_path / "out", to="gguf")
    with pytest.raises(im.ConfigError, match='unknown size of GGUF, "q4"'):
        im.export(composed(tmp_path), tmp_path / "out", to="gguf", dtype="q4")


def test_a_saved_model_by_its_folder(tmp_path: Path) -> None:
    model = composed(tmp_path)
    saved = im.save(model, tmp_path / "saved")
    assert im.export(saved, tmp_path / "out", to="gguf", dtype="f32").difference <= 1e-4
    config = json.loads((saved / "isthmus.json").read_text())["config"]
    assert config["connector"]["type"] == "mlp"
