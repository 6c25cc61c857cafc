"""The real wheels, fetched and converted; needs an index or a filled cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import isthmus as im
from isthmus.assets import registry as assets

pytestmark = pytest.mark.slow
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return assets.fetch_asset("smollm2-135m-instruct")


@pytest.mark.parametrize("name", list(assets.ASSETS))
def test_size_is_what_the_list_says(name: str) -> None:
    folder = assets.fetch_asset(name)
    megabytes = sum(f.stat().st_size for f in folder.iterdir()) / 1e6
    assert megabytes == pytest.approx(assets.ASSETS[name].size_mb, abs=0.5)
    assert assets.cached(name) == folder


def test_efficientnet_gives_features_and_knows_imagenet() -> None:
    import timm

    folder = assets.fetch_asset("efficientnet-lite2")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        features = model.forward_features(torch.rand(1, 3, 260, 260) * 2 - 1)
    assert features.shape == (1, 1280, 9, 9)
    assert features.min() >= 0  # ReLU6
    assert model.get_classifier().weight.shape == (1000, 1280)


def test_smollm2_answers_a_chat(smollm2: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2)
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    chat = [{"role": "user", "content": "What is the capital of France? Answer briefly."}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")
    said = model.generate(**prompt, do_sample=False, max_new_tokens=24)[0]
    answer = tokenizer.decode(said[prompt["input_ids"].shape[1] :])
    assert "Paris" in answer
    assert answer.endswith("<|im_end|>")


def test_smollm2_tokenizer_is_as_published(smollm2: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert len(tokenizer) == 49152
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids(words) == [0, 1, 2]
    chat = [{"role": "user", "content": "Hi?"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    )
    # An empty line stays one token before a digit, as the model learnt it
    assert tokenizer.convert_ids_to_tokens(tokenizer("x\n\n12").input_ids) == ["x", "ĊĊ", "1", "2"]
    for text in ("héllo 안녕 🙂\n\n  x\t1", "  def f(x):\n\treturn 2024", "▁ it's I'll"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_minilm_knows_what_is_alike() -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = assets.fetch_asset("minilm-l6-v2")
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["a cat", "a kitten", "a lorry"], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    pooled = (states * mask).sum(1) / mask.sum(1)
    cat, kitten, lorry = torch.nn.functional.normalize(pooled, dim=-1)
    assert pooled.shape == (3, 384)
    assert cat @ kitten > 0.7 > 0.4 > cat @ lorry


def test_the_shipped_dual_encoder_tells_coffee_from_other_things() -> None:
    labels = ["cat", "cup of coffee", "teapot", "car"]
    classifier = im.ZeroShotClassifier("tiny-clip", labels, cache=False)
    assert list(classifier.predict([EXAMPLES / "coffee.jpg"])) == ["cup of coffee"]
