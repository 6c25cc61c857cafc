"""What a model must hold, whatever its parts."""

from __future__ import annotations

import copy
import io
import tempfile
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.data.samples import Sample, collate
from isthmus.generation.decode import generate
from isthmus.model.backbones.added_tokens import AddedTokens
from isthmus.model.batch import Batch
from isthmus.model.checkpoint import load_vlm, save_vlm, strip_state
from isthmus.model.layout import expand
from isthmus.model.media.base import Attachment, layouts_of, medium_of
from isthmus.model.vlm import VisionLanguageModel
from isthmus.testing.connectors import check_gradients, close


@torch.no_grad()
def check_evaluation_mode(model: VisionLanguageModel) -> None:
    """A model as `compose` or `load` returned it repeats itself: no dropout is alive.

    Called before anything has switched the model's mode.
    """
    alive = [name for name, module in model.named_modules() if module.training]
    assert not alive, f"in training mode, expected evaluation mode: {', '.join(alive[:3])}"
    batch = prompts_of(model)
    assert torch.equal(model(batch).logits, model(batch).logits), "two passes differ"


def check_copies(model: VisionLanguageModel) -> None:
    """A deep copy and an unpickled model give the logits of the original, and share nothing."""
    open_gates(model)
    batch = prompts_of(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    with torch.no_grad():
        expected = model(batch).logits
        for how, other in (
            ("a deep copy", copy.deepcopy(model)),
            ("an unpickled model", torch.load(buffer, weights_only=False)),
        ):
            assert torch.equal(other(batch).logits, expected), f"{how} has other logits"
            for parameter in other.parameters():
                parameter.zero_()
            assert torch.equal(model(batch).logits, expected), f"{how} shares parameters"


def check_language_model_is_free(model: VisionLanguageModel) -> None:
    """After a pass with gradients the language model carries no hook and sees no image."""
    open_gates(model)
    inner = model.language.model.base_model
    ids = model.prepare(["Only words, no image."]).input_ids
    with torch.no_grad():
        expected = inner(input_ids=ids).last_hidden_state
    hooks = {name: _hooks(module) for name, module in model.language.named_modules()}
    output = model(prompts_of(model))
    with torch.no_grad():
        got = inner(input_ids=ids).last_hidden_state
    assert torch.equal(got, expected), "the inner decoder differs after a pass with gradients"
    left = [n for n, module in model.language.named_modules() if _hooks(module) != hooks[n]]
    assert not left, f"hooks are left behind on {', '.join(left[:3])}"
    del output


def _hooks(module: nn.Module) -> int:
    return len(module._forward_pre_hooks) + len(module._forward_hooks)


def prompts_of(model: VisionLanguageModel, seed: int = 0) -> Batch:
    """Three prompts with 2, 0 and 1 images, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    height, width = model.vision.image_size
    images = [torch.randn(3, height, width, generator=generator) for _ in range(3)]
    texts = ["<image>one<|endofchunk|>a<image>two", "no image here", "so <image>three"]
    return model.prepare(texts, [images[:2], [], images[2:]])


def open_gates(model: VisionLanguageModel, value: float = 0.5) -> None:
    """Opens the gates of a cross-attention model, so that images count."""
    for gates in model.fusion.gates().values():
        for gate in gates.values():
            nn.init.constant_(gate, value)


@torch.no_grad()
def bare_logits(model: VisionLanguageModel, batch: Batch) -> Tensor:
    """Logits (B, L, V) of the language model alone on text."""
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if (batch.attention_mask == 0).any():
        inputs["position_ids"] = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    logits: Tensor = model.language.model(**inputs, use_cache=False).logits
    return logits


@torch.no_grad()
def check_text_is_untouched(model: VisionLanguageModel) -> None:
    """A prompt without images gives bit for bit the bare language model's logits.

    With open gates too, and again after a prompt with images.
    """
    open_gates(model)
    text = model.prepare(["Only words, no image."])
    expected = bare_logits(model, text)
    assert torch.equal(model(text).logits, expected), "a text-only prompt differs"
    model(prompts_of(model))
    assert torch.equal(model(text).logits, expected), "a text-only prompt differs after images"


@torch.no_grad()
def check_closed_gates(model: VisionLanguageModel, *, fresh: bool = False) -> None:
    """With both gates at 0, images change nothing: logits bit for bit the bare model's.

    Rows for `<image>` and `<|endofchunk|>` that were added are made rows of the frozen table.

    Args:
        model: The model.
        fresh: The model was never trained: its gates are left as they were built, and must be
            as good as closed.
    """
    assert model.fusion.gates(), "the fusion has no gates"
    assert not model.fusion.in_text, "inline tokens stand in the text whatever the gates are"
    if not fresh:
        open_gates(model, 0.0)
    known = model.language.encode("ab")[:2]
    table = model.language.input_embedding
    batch = model.prepare(["<image>one"], [[_image(model)]])
    plain = batch.input_ids.clone()
    if isinstance(model.special_tokens, AddedTokens):
        model.special_tokens.input_rows.copy_(table(torch.tensor(known)))
        plain[plain == model.special_tokens.image_id] = known[0]
    bare = bare_logits(model, Batch(input_ids=plain, attention_mask=batch.attention_mask))
    joined = model(batch).logits[..., : bare.shape[-1]]
    assert torch.equal(joined, bare), "closed gates change the logits"


def _image(model: VisionLanguageModel, seed: int = 0) -> Tensor:
    height, width = model.vision.image_size
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def check_sight(model: VisionLanguageModel) -> None:
    """Changing the second of two images changes no token before it, and some after it.

    With cross-attention to the last image, the first one must not reach a token behind the
    second through a block: what leaves the first block is looked at, since above it the language
    model itself carries the first image on.
    """
    open_gates(model)
    text = "x<image>first y<image>second"
    first, second = _image(model, 1), _image(model, 2)
    batch = model.prepare([text], [[first, second]])
    logits = model(batch).logits
    changed = model(model.prepare([text], [[first, second + 1]])).logits
    tags = (batch.input_ids[0] == model.special_tokens.image_id).nonzero().flatten()
    start = int(tags[len(tags) // 2])
    own = slice(0, model.language.vocab_rows)
    before, after = (logits[0, :start, own], logits[0, start:, own])
    close(changed[0, :start, own], before, "tokens before the changed image")
    assert not torch.allclose(changed[0, start:, own], after), "the changed image has no effect"
    if model.fusion.in_text or model.fusion.sees != "last":
        return
    left: list[Tensor] = []
    block = next(iter(model.fusion.blocks.values()))
    handle = block.register_forward_hook(lambda module, args, out: left.append(out[0]))
    try:
        model(batch)
        model(model.prepare([text], [[first + 1, second]]))
    finally:
        handle.remove()
    close(left[1][start:], left[0][start:], "tokens behind the second image, the first changed")
    begin = int(tags[0])
    seen = left[1][begin:start], left[0][begin:start]
    assert not torch.allclose(*seen), "the first image has no effect on its own tokens"


@torch.no_grad()
def check_padding(model: VisionLanguageModel) -> None:
    """A row of a padded batch equals the same row alone, padded left and right."""
    open_gates(model)
    texts = ["<image>one<|endofchunk|>a<image>two", "words", "so <image>three"]
    images = [[_image(model, 1), _image(model, 2)], [], [_image(model, 3)]]
    for side in ("left", "right"):
        batch = model.prepare(texts, images, padding_side=side)
        together = model(batch).logits
        for i, text in enumerate(texts):
            alone = model(model.prepare([text], [images[i]])).logits[0]
            kept = together[i][batch.attention_mask[i].bool()]
            kept, ours = kept[:, : alone.shape[-1]], kept[:, alone.shape[-1] :]
            assert ours.isneginf().all(), "a row without images may end a chunk"
            finite = alone.isfinite()
            assert torch.equal(finite, kept.isfinite()), "the two rows differ in what may follow"
            close(kept[finite], alone[finite], f"row {i} padded {side} and alone", 1e-4)


@torch.no_grad()
def check_decoding(model: VisionLanguageModel, new_tokens: int = 6) -> None:
    """Cached greedy decoding equals recomputing the whole sequence, token for token.

    A row without images equals the language model's own `generate`.
    """
    open_gates(model)
    batch = prompts_of(model)
    options: dict[str, Any] = {"min_new_tokens": new_tokens, "do_sample": False}
    ids = generate(model, batch, max_new_tokens=new_tokens, **options)
    grown = batch
    for step in range(new_tokens):
        logits = model(grown, last=1).logits[:, -1]
        special = model.special_tokens
        ends = [*model.language.end_ids(), special.end_id, *special.never]
        logits[:, [i for i in ends if i < logits.shape[1]]] = float("-inf")
        chosen = logits.argmax(dim=-1)
        assert torch.equal(chosen, ids[:, step]), f"token {step} differs from full recomputation"
        grown = Batch(
            input_ids=torch.cat([grown.input_ids, chosen[:, None]], 1),
            attention_mask=torch.cat([grown.attention_mask, torch.ones_like(chosen[:, None])], 1),
            pixels=batch.pixels,
            layouts=batch.layouts,
        )
    text = model.prepare(["no image here"])
    bare = model.language.model.generate(
        input_ids=text.input_ids,
        attention_mask=text.attention_mask,
        max_new_tokens=new_tokens,
        pad_token_id=model.pad_id,
        **options,
    )
    own = generate(model, text, max_new_tokens=new_tokens, **options)
    assert torch.equal(own, bare[:, text.input_ids.shape[1] :]), "text-only decoding differs"


def check_training_step(model: VisionLanguageModel) -> None:
    """After a step every frozen tensor is the same, and every trained one has a gradient.

    Nothing is trained but the strip, and LoRA where there is one.
    """
    open_gates(model)
    trained = model.trained_parameters()
    loose = [n for n in trained if n not in strip_state(model)]
    assert not loose, f"not frozen, and no part of the strip: {', '.join(loose)}"
    frozen = {
        n: t.detach().clone()
        for n, t in [*model.named_parameters(), *model.named_buffers()]
        if n not in trained
    }
    batch = prompts_of(model)
    batch = replace(batch, labels=batch.input_ids)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    labels[labels == model.special_tokens.image_id] = -100
    model.train()
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    model.zero_grad(set_to_none=True)  # a gradient from before would hide one that is missing
    loss = model(replace(batch, labels=labels)).loss
    assert loss is not None
    loss.backward()
    check_gradients(model)
    optimizer.step()
    model.eval()
    now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, before in frozen.items():
        assert torch.equal(now[name], before), f"the frozen {name} has changed"


@torch.no_grad()
def check_save_and_load(model: VisionLanguageModel, **parts: object) -> None:
    """A model that was saved and loaded gives the same logits.

    Args:
        model: The model.
        **parts: What `load` needs where parts are objects (`language`, `tokenizer`, ...).
    """
    open_gates(model)
    batch = prompts_of(model)
    with tempfile.TemporaryDirectory() as folder:
        again = load_vlm(save_vlm(model, folder), **parts)  # type: ignore[arg-type]
    check_evaluation_mode(again)
    assert torch.equal(again(batch).logits, model(batch).logits), "logits differ after loading"


def check_gradient_checkpointing(model: VisionLanguageModel) -> None:
    """Gradient checkpointing changes neither the loss nor a gradient."""
    open_gates(model)
    batch = prompts_of(model)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    labels[labels == model.special_tokens.image_id] = -100
    batch = replace(batch, labels=labels)
    results = []
    for on in (False, True):
        model.zero_grad(set_to_none=True)
        if on:
            model.language.checkpoint_activations()
        model.train()
        loss = model(batch).loss
        assert loss is not None
        loss.backward()
        results.append((loss.detach(), [p.grad for p in model.trained_parameters().values()]))
    model.language.checkpoint_activations(False)
    model.eval()
    close(results[1][0], results[0][0], "loss with and without checkpointing", 1e-6)
    for with_, without in zip(results[1][1], results[0][1], strict=True):
        assert with_ is not None, "a gradient is missing with checkpointing"
        assert without is not None, "a gradient is missing without checkpointing"
        close(with_, without, "gradient with and without checkpointing", 1e-6)


@torch.no_grad()
def check_packing(model: VisionLanguageModel) -> None:
    """Samples that share a row have the losses that each has alone: none sees another.

    Packed with and without images, out of order: all in one row, and in several beside padding.
    """
    open_gates(model)
    encode, image = model.special_tokens.encode, model.special_tokens.image_id
    samples: list[Sample] = []
    images: list[list[Attachment]] = []
    first = f"<image>a bc<image>{'de ' * 20}<|endofchunk|>"  # longer than all others together
    for text in (first, "efg hi", "<image>jk", "l mnop", "<image>q"):
        pixels = torch.randn(text.count("<image>"), 3, *model.vision.image_size)
        images.append([medium_of(model, own).open(model, own) for own in pixels])
        layouts = tuple(layouts_of(model, images[-1]))
        ids = expand(encode(text), layouts, image)
        learned = [at > 0 and i != image for at, i in enumerate(ids)]
        samples.append(Sample(ids, learned, layouts))
    lengths = [len(s.ids) for s in samples]
    found = []
    for row_length in (sum(lengths), max(lengths)):
        packed = collate(model, samples, [own for each in images for own in each], pack=row_length)
        assert packed.batch.positions is not None
        found.append((packed.owner, model(packed.batch).token_losses, len(packed.batch.input_ids)))
    rows = [count for *_, count in found]
    assert rows[0] == 1, "samples that fit one row are in several"
    assert 1 < rows[1] < len(samples), "nothing was packed"
    for number, (sample, own) in enumerate(zip(samples, images, strict=True)):
        alone = collate(model, [sample], own)
        expected = model(alone.batch).token_losses
        assert expected is not None
        for owner, together, _ in found:
            assert together is not None
            close(together[owner == number], expected, f"sample {number} packed and alone")
