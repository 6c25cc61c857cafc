"""Text piece by piece, tokens' bytes, and drawing: each against its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

import isthmus as im
from isthmus.config.speedups import onednn
from isthmus.generation.packed import PackedLinears
from isthmus.generation.requests import GenerationRequest, TokenLogprob
from isthmus.generation.sampling import Draw, choose, penalized
from isthmus.generation.server import ServingEngine
from isthmus.generation.text_stream import TextStream, TokenTexts
from isthmus.machine import probe
from isthmus.model.backbones.tiny import byte_tokenizer
from isthmus.prompts.prompt import Prompt


def of_bytes(ids: list[int]) -> str:
    return bytes(ids).decode(errors="replace")


def pieces(text: str, stop: tuple[str, ...] = ()) -> list[str]:
    """What is said byte by byte, and at the end."""
    stream = TextStream(of_bytes, stop)
    said = []
    for byte in text.encode():
        said.append(stream.push(byte)[0])
        if stream.stopped:
            break
    return [*said, stream.finish()[0]]


@given(st.text(max_size=30))
def test_pieces_are_whole_characters_and_make_the_text(text: str) -> None:
    text = text.replace("\ufffd", "")
    said = pieces(text)
    assert "".join(said) == text
    assert not any("\ufffd" in piece for piece in said)


@given(
    st.text("abX점", max_size=20), st.lists(st.text("abX점", min_size=1, max_size=4), max_size=3)
)
def test_nothing_of_a_stop_string_is_said(text: str, stop: list[str]) -> None:
    # a text ends where the first of its stop strings is complete
    ends = [text.find(s) + len(s) for s in stop if s in text]
    expected = text
    if ends:
        complete = text[: min(ends)]
        expected = complete[: min(complete.find(s) for s in stop if s in complete)]
    assert "".join(pieces(text, tuple(stop))) == expected


def test_what_may_become_a_stop_string_waits() -> None:
    stream = TextStream(of_bytes, ["END"])
    said = [stream.push(b)[0] for b in b"a EEN. EN"]
    assert said == ["a", " ", "", "E", "", "EN.", " ", "", ""]
    assert stream.finish() == ("EN", ())


def test_bytes_that_are_no_character_are_said_as_such_and_half_ones_dropped() -> None:
    stream = TextStream(of_bytes)
    assert "".join(stream.push(b)[0] for b in b"a\xffb\xec\xa0") + stream.finish()[0] == "a\ufffdb"


def test_tokens_come_with_their_text() -> None:
    scored = [TokenLogprob(b, "", (b,), 0.0) for b in "a점END!".encode()]
    stream = TextStream(of_bytes, ["END"])
    got = [stream.push(s.token_id, s) for s in scored[:7]]
    assert [text for text, _ in got] == ["a", "", "", "점", "", "", ""]
    assert [len(tokens) for _, tokens in got] == [1, 0, 0, 3, 0, 0, 0]
    assert stream.stopped
    assert stream.finish() == ("", ())
    going_on = TextStream(of_bytes, ["END"])
    for s in scored[:6]:
        going_on.push(s.token_id, s)
    assert going_on.finish() == ("EN", tuple(scored[4:6]))


def sentencepiece_tokenizer() -> Any:
    """Words with a leading mark, and bytes for everything else, as Llama 2's has them."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "</s>", "▁a", "▁dog", "s", "▁", "."]
    vocabulary = {w: i for i, w in enumerate(words)}
    vocabulary |= {f"<0x{b:02X}>": len(words) + b for b in range(256)}
    core = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


@given(st.lists(st.sampled_from([[2], [3], [4], [6], [1], [5], [*"점é".encode()]]), max_size=12))
def test_spaces_between_tokens_are_those_of_the_whole_text(parts: list[list[int]]) -> None:
    tokenizer = SENTENCEPIECE
    ids = [i + 7 if len(p) > 1 else i for p in parts for i in p]

    def decode(own: list[int]) -> str:
        return str(tokenizer.decode(own, skip_special_tokens=True))

    stream = TextStream(decode)
    said = [stream.push(i)[0] for i in ids]
    assert "".join(said) + stream.finish()[0] == decode(ids)


SENTENCEPIECE = sentencepiece_tokenizer()


def test_tokens_bytes() -> None:
    texts = TokenTexts(byte_tokenizer(), ("<image>", "<|endofchunk|>"), 259)
    assert [texts(b)[1] for b in range(256)] == [(b,) for b in range(256)]
    assert texts(ord("q"))[0] == "q"
    assert texts(258) == ("</s>", tuple(b"</s>"))
    assert texts(260) == ("<|endofchunk|>", tuple(b"<|endofchunk|>"))
    texts = TokenTexts(SENTENCEPIECE, ("<image>",), 263)
    assert texts(3) == (" dog", tuple(b" dog"))
    assert texts(7 + 0xEC) == ("\ufffd", (0xEC,))
    assert texts(4) == ("s", (ord("s"),))


def spread(logits: torch.Tensor, **options: Any) -> torch.Tensor:
    """How often each token is drawn over evenly spread chances."""
    how = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, **options}
    many = 4000
    draws = [Draw(**how, chance=(i + 0.5) / many) for i in range(many)]
    found = choose(logits.expand(many, -1), draws)
    return torch.bincount(torch.tensor(found), minlength=logits.shape[-1]) / many


def test_tokens_are_drawn_as_often_as_their_shares_say() -> None:
    logits = torch.tensor([1.0, 3.0, -torch.inf, 2.0, 0.0])
    shares = logits.softmax(dim=0)
    assert spread(logits) == pytest.approx(shares, abs=1e-3)
    assert spread(logits, temperature=0.5) == pytest.approx((logits * 2).softmax(dim=0), abs=1e-3)
    best = torch.tensor([0, 1, 0, 1, 0]) * shares
    assert spread(logits, top_k=2) == pytest.approx(best / best.sum(), abs=1e-3)
    # 0.64 and 0.24 come before 0.09: at 0.9 the third stays, at 0.85 two do
    third = torch.tensor([1, 1, 0, 1, 0]) * shares
    assert spread(logits, top_p=0.9) == pytest.approx(third / third.sum(), abs=1e-3)
    assert spread(logits, top_p=0.85) == pytest.approx(best / best.sum(), abs=1e-3)
    # of the two that top_k leaves, one holds 0.73
    assert spread(logits, top_k=2, top_p=0.7)[1] == 1


def test_what_has_no_share_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 1.0, -torch.inf]])
    for chance, token in ((0.0, 1), (0.5, 3), (1 - 2**-53, 3)):
        assert choose(logits, [Draw(1.0, 1.0, 0, chance)]) == [token]
        assert choose(logits, [Draw(1.0, 1.0, 4, chance)]) == [token]


def test_a_flat_nucleus_is_wider_than_what_is_looked_through_first() -> None:
    logits = torch.zeros(2000)
    assert int((spread(logits, top_p=0.5) > 0).sum()) == 1000


def test_rows_are_drawn_each_by_its_own_options() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 50)
    draws = [
        Draw(0.0, 1.0, 0, 0.3),
        Draw(1.0, 0.5, 0, 0.3),
        Draw(1.0, 1.0, 3, 0.9),
        Draw(1e-9, 1.0, 0, 0.9),
        Draw(2.0, 1.0, 0, 0.0),
        Draw(0.7, 0.9, 10, 0.999999),
    ]
    together = choose(logits, draws)
    assert together == [choose(logits[i : i + 1], [d])[0] for i, d in enumerate(draws)]
    assert together[0] == int(logits[0].argmax())
    assert together[3] == int(logits[3].argmax())
    # columns that cannot be drawn change nothing
    wider = torch.cat([logits, torch.full((6, 2), -torch.inf)], dim=1)
    assert choose(wider, draws) == together


def test_noise_in_the_last_bits_changes_no_token() -> None:
    torch.manual_seed(0)
    logits = torch.randn(200, 1000) * 3
    draws = [Draw(1.0, 0.95, 0, (i + 0.5) / 200) for i in range(200)]
    noisy = logits + torch.randn_like(logits) * 1e-6
    assert choose(logits, draws) == choose(noisy, draws)


def test_penalties_by_openais_definition() -> None:
    logits = torch.zeros(3, 4)
    got = penalized(logits, [{1: 2}, {}, {0: 1, 3: 3}], [0.5, 0.5, 0.0], [0.25, 0.25, 2.0])
    assert got.tolist() == [[0, -1.0, 0, 0], [0, 0, 0, 0], [-2.0, 0, 0, -6.0]]
    assert logits.eq(0).all()  # the given ones are what log-probabilities are of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory", [1 << 20, 20 * 30 * 4, 0])
def test_packed_linears_say_the_same_until_they_are_restored(
    dtype: torch.dtype, memory: int
) -> None:
    if str(dtype).removeprefix("torch.") not in probe().packed:
        pytest.skip(f"oneDNN packs no linear layers of {dtype} on this CPU ({probe().cpu})")
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Linear(20, 30),
        nn.GELU(),
        nn.Linear(30, 20, bias=False),
        NonDynamicallyQuantizableLinear(20, 4),
    ).to(dtype)
    states = torch.randn(3, 5, 20, dtype=dtype)
    with torch.inference_mode():
        expected = layers(states)
        packed = PackedLinears(layers, memory)
        assert packed.layers == [layers[0], layers[2]]  # a subclass may do something of its own
        assert packed.bytes <= memory
        assert (packed.bytes > 0) == (memory > 0)
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        assert torch.allclose(layers(states), expected, atol=tolerance, rtol=tolerance)
        # oneDNN is what runs: it knows the weights of then
        before = layers(states)
        layers[0].weight.data.mul_(2) if memory else None
        assert torch.equal(layers(states), before)
        packed.restore()
        assert torch.equal(layers(states), expected) != bool(memory)
    layers(states).sum().backward()
    assert layers[0].weight.grad is not None


@pytest.mark.parametrize("why", ["switched off", "missing"])
def test_without_onednns_operators_layers_are_left_as_they_are(
    why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "switched off":
        monkeypatch.setenv("ISTHMUS_PACKED", "0")
    else:
        monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert onednn() is None
    probe.cache_clear()
    try:
        assert probe().packed == ()
    finally:
        probe.cache_clear()
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
    assert PackedLinears(model, 1 << 20).layers == []
    request = GenerationRequest(prompt=Prompt("Hi"), max_new_tokens=4)
    with ServingEngine(model) as engine:
        text = engine.submit(request).result()[0]
    assert text.strip() == im.Engine(model).run([request])[0].text


def test_an_engine_leaves_the_model_as_it_was() -> None:
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), im.Inline())
    linears = [m for m in model.modules() if type(m) is nn.Linear]
    with ServingEngine(model):
        assert all("forward" in vars(m) for m in linears)
    assert not any("forward" in vars(m) for m in linears)
