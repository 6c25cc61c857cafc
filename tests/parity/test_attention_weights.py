"""Weights that are shown are those that are computed: against Transformers and plain einsum."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    BloomConfig,
    FalconConfig,
    GPTJConfig,
    GPTNeoConfig,
    MptConfig,
)

import isthmus as im
from isthmus.explaining.inputs import Inputs
from isthmus.explaining.recording import eager_attention
from isthmus.generation.encode import PromptEncoder
from isthmus.model.attention import MultiHeadAttention
from isthmus.model.backbones.tiny import (
    END,
    PAD,
    START,
    VOCABULARY,
    byte_tokenizer,
    tiny_language_config,
    tiny_language_model,
)
from isthmus.model.backbones.tiny_llava import write_tiny_llava
from isthmus.model.connectors.patch_shares import rollout
from isthmus.model.connectors.qformer import QFormerConnector
from isthmus.model.connectors.resampler import PerceiverResampler
from isthmus.model.fusion.cross_attention import CrossAttention, GatedCrossAttentionBlock
from isthmus.model.fusion.sight import Sight, first_image, image_of_token

from .reference import TOLERANCE, scramble

FAMILIES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
    "phi",
    "phi3",
    "gpt_neox",
    "olmo2",
    "smollm3",
    "gpt2",
    "opt",
)
TAGS = torch.tensor([[0, 1, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0, 1], [0, 0, 1, 1, 0, 0, 0]]).bool()
PICTURES = int(TAGS.sum())


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


IDS = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
OTHERS: dict[str, Any] = {  # written before attention had one form; Falcon tells only if asked
    "falcon": lambda: FalconConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, alibi=False, **IDS
    ),
    "bloom": lambda: BloomConfig(hidden_size=64, n_layer=4, n_head=4, **IDS),
    "gpt_neo": lambda: GPTNeoConfig(
        hidden_size=64,
        num_layers=4,
        attention_types=[[["global", "local"], 2]],
        num_heads=4,
        window_size=16,
        max_position_embeddings=512,
        **IDS,
    ),
    "gptj": lambda: GPTJConfig(
        n_embd=64, n_layer=4, n_head=4, rotary_dim=8, n_positions=512, **IDS
    ),
    "mpt": lambda: MptConfig(
        d_model=64, n_layers=4, n_heads=4, max_seq_len=512, expansion_ratio=2, vocab_size=VOCABULARY
    ),
}


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_text_attention_is_that_of_transformers(family: str) -> None:
    if family in OTHERS:
        config = OTHERS[family]()
        language: Any = AutoModelForCausalLM.from_config(config).eval()
        language.generation_config.eos_token_id = END
    else:
        config, language = tiny_language_config(family), tiny_language_model(family)
    model = im.compose(
        "tiny-vit", im.load_language(language, tokenizer=byte_tokenizer()), im.Linear(), im.Inline()
    )
    scramble(model.connector)
    images = [torch.randn(3, 32, 32) for _ in range(2)]
    found = im.explain(model, images, "What is it?", max_new_tokens=4, heads=True, side=0)

    reference: Any = AutoModelForCausalLM.from_config(
        copy.deepcopy(config), attn_implementation="eager"
    ).eval()
    reference.load_state_dict(language.state_dict())
    encoded, _ = PromptEncoder(model)(im.Prompt(found.prompt, tuple(images)))
    answer = tuple(token.id for token in found.tokens)
    inputs = Inputs(encoded.ids, answer, tuple(encoded.layouts))
    visual = model.connector(model.vision(torch.stack(images)))
    batch = inputs.batch([list(visual)], model.device)
    with torch.no_grad(), model.in_sight(batch) as embeddings:
        embeddings = embeddings.clone()
    with torch.no_grad():
        outputs = reference(
            inputs_embeds=embeddings,
            output_attentions=True,
            use_cache=False,
            **model.language.places(batch.attention_mask, None),
        )
    queries = slice(len(encoded.ids) - 1, None)
    assert found.text is not None
    assert found.text.heads is not None
    assert found.text.layers == (0, 1, 2, 3)
    for layer, expected in enumerate(outputs.attentions):
        close(found.text.heads[:, layer], expected[0, :, queries].transpose(0, 1))
        close(found.text.weights[:, layer], expected[0, :, queries].mean(dim=0))
    close(found.text.weights.sum(dim=-1), torch.ones(len(answer), 4))
    with torch.no_grad():  # the model's own, whose head has a column more
        logprobs = model(batch, last=len(answer)).logits[0].log_softmax(dim=-1)
    got = torch.tensor([token.logprob for token in found.tokens])
    torch.testing.assert_close(got, logprobs[range(len(answer)), answer], rtol=1e-4, atol=TOLERANCE)


def test_a_released_model_s_attention_is_its_own_class_s(tmp_path: Path) -> None:
    """A LLaVA that was taken apart, against the whole of it."""
    write_tiny_llava(tmp_path)
    theirs: Any = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation="eager")
    processor: Any = AutoProcessor.from_pretrained(tmp_path)
    noise = torch.randint(0, 256, (50, 70, 3), dtype=torch.uint8)
    images = [Image.fromarray(noise.numpy()), Image.new("RGB", (40, 40), "red")]
    found = im.explain(im.load(tmp_path), images, "Which?", max_new_tokens=4, heads=True, side=0)
    inputs = processor(images=images, text=[found.prompt], return_tensors="pt")
    answer = torch.tensor([[token.id for token in found.tokens]])
    prompt_tokens = inputs["input_ids"].shape[1]
    with torch.no_grad():
        outputs = theirs(
            input_ids=torch.cat([inputs["input_ids"], answer[:, :-1]], dim=1),
            pixel_values=inputs["pixel_values"],
            output_attentions=True,
        )
    assert found.text is not None
    assert found.text.heads is not None
    for layer, expected in enumerate(outputs.attentions):
        close(found.text.heads[:, layer], expected[0, :, prompt_tokens - 1 :].transpose(0, 1))
    logprobs = outputs.logits[0, prompt_tokens - 1 :].log_softmax(dim=-1)
    close(
        torch.tensor([token.logprob for token in found.tokens]),
        logprobs.gather(1, answer.T)[:, 0],
    )
    is_image = (inputs["input_ids"][0] == theirs.config.image_token_id).nonzero()[:, 0].tolist()
    assert [*found.images[0].text, *found.images[1].text] == is_image
    assert found.images[0].cells == found.images[0].grid


def test_the_implementation_is_put_back_after_an_error() -> None:
    language: Any = tiny_language_model("llama")
    before = language.config._attn_implementation
    assert before == "sdpa"
    seen = []

    def fail() -> None:
        with eager_attention(language):
            seen.append(language.config._attn_implementation)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == ["eager"]
    assert language.config._attn_implementation == before


def by_einsum(attention: MultiHeadAttention, queries: Tensor, context: Tensor) -> Tensor:
    """(H, Q, C) of queries (Q, D) over a context (C, D)."""
    heads = attention.heads
    q = F.linear(queries, attention.query_projection.weight, attention.query_projection.bias)
    kv = F.linear(context, attention.context_projection.weight, attention.context_projection.bias)
    k = kv[:, : kv.shape[1] // 2]
    q, k = (t.reshape(len(t), heads, -1) for t in (q, k))
    return (torch.einsum("qhd,chd->hqc", q, k) / q.shape[-1] ** 0.5).softmax(dim=-1)


def test_weights_are_those_that_attend_reads_with() -> None:
    attention = MultiHeadAttention(8, 6, heads=2, head_dim=5)
    queries, context = torch.randn(3, 4, 8), torch.randn(3, 7, 6)
    mask = torch.rand(3, 1, 4, 7) > 0.3
    mask[..., 0] = True
    keys, values = attention.project_context(context)
    weights = attention.weights(queries, keys, mask)
    read = attention.out_projection((weights @ values).transpose(1, 2).flatten(2))
    close(read, attention.attend(queries, keys, values, mask))


@pytest.mark.parametrize("sees", ["last", "previous"])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_gated_block_s_weights(sees: str, ragged: bool) -> None:
    config = CrossAttention(heads=3, head_dim=4, gate=0.4, sees=sees)  # type: ignore[arg-type]
    block = GatedCrossAttentionBlock(12, 10, config)
    scramble(block)
    lengths = [5, 3, 4, 5, 1, 2] if ragged else [5] * PICTURES
    visual = [torch.randn(length, 10) for length in lengths]
    padded = nn.utils.rnn.pad_sequence(visual, batch_first=True)
    valid = torch.arange(5) < torch.tensor(lengths)[:, None] if ragged else None
    mask = torch.ones_like(TAGS).long()
    sight = Sight(
        visual=padded, prompt=image_of_token(TAGS, mask), begin=first_image(TAGS), valid=valid
    )
    sight.advance(rows=3, length=7, past=0)
    hidden = torch.randn(3, 7, 12)
    got = block.weights(hidden, sight, 0)
    expected = torch.zeros(3, 7, 3, PICTURES, 5)
    for row in range(3):
        first = int(TAGS[:row].sum())
        for t in range(7):
            count = int(TAGS[row, : t + 1].sum())
            if count == 0:
                continue
            images = range(first, first + count)
            chosen = [images[-1]] if sees == "last" else list(images)
            context = torch.cat([visual[i] for i in chosen])
            own = by_einsum(block.attention, block.norm(hidden[row, t])[None], context)[:, 0]
            for image, part in zip(chosen, own.split([lengths[i] for i in chosen], 1), strict=True):
                expected[row, t, :, image, : lengths[image]] = part
    close(got, expected)
    sees_one = TAGS.cumsum(dim=1) > 0
    close(got.sum(dim=(3, 4)), sees_one[..., None].expand(-1, -1, 3).float())


def test_a_resampler_s_weights_and_rollout() -> None:
    resampler = PerceiverResampler(12, 12, latents=4, depth=3, heads=3, head_dim=5)
    scramble(resampler)
    features = torch.randn(2, 9, 12)
    shares = resampler.patch_shares(features)
    for image in range(2):
        latents, patches = resampler.latents, features[image]
        graph = torch.eye(9 + 4)
        for number, layer in enumerate(resampler.layers):
            assert hasattr(layer, "attention")
            queries = layer.latent_norm(latents)
            context = torch.cat([layer.patch_norm(patches), queries])
            weights = by_einsum(layer.attention, queries, context)
            close(resampler.attention_weights(features)[number][image], weights)
            # Abnar and Zuidema: half of the identity for the residual, then the layers multiplied
            step = torch.eye(9 + 4)
            step[9:] = (step[9:] + weights.mean(dim=0)) / 2
            graph = step @ graph
            latents = layer(latents[None], patches[None])[0]
        of_patches = graph[9:, :9]
        close(shares[image], of_patches / of_patches.sum(dim=1, keepdim=True))
    close(shares.sum(dim=-1), torch.ones(2, 4))


def test_a_clip_s_frames_are_patches_one_after_another() -> None:
    resampler = PerceiverResampler(12, 12, latents=4, depth=2, heads=3, head_dim=5, max_frames=3)
    clip = torch.randn(1, 3, 9, 12)
    assert resampler.patch_shares(clip).shape == (1, 4, 27)


def test_a_q_former_s_rollout() -> None:
    qformer = QFormerConnector(10, 6, queries=3, depth=3, heads=2, hidden=8, cross_every=2)
    scramble(qformer)
    features = torch.randn(1, 5, 10)
    queries = qformer.input_norm(qformer.queries)
    steps = []
    for layer in qformer.layers:
        own: Any = layer.self_attention
        among = by_einsum(own.attention, queries, queries).mean(dim=0)
        steps.append(torch.cat([torch.zeros(3, 5), among], dim=1)[None])
        read = own(queries[None], queries[None])[0]
        across: Any = layer.cross_attention
        if across is not None:
            weights = by_einsum(across.attention, read, features[0]).mean(dim=0)
            steps.append(torch.cat([weights, torch.zeros(3, 3)], dim=1)[None])
        queries = layer(queries[None], features)[0]
    assert len(steps) == 5
    close(qformer.patch_shares(features), rollout(steps))
