"""Trains a small model from scratch that can answer at once or in steps, as the prompt asks.

    python recipes/reasoner/train.py --out runs/reasoner

A Llama of four layers, 0.9 million parameters, on two generated tasks of `isthmus eval`: arithmetic
modulo 7 and the parity of digits. It is here to show what prompts do, on a laptop's CPU, and knows
nothing else: it is joined to a vision encoder with random weights since every model has one, and is
never shown an image. A run that was stopped goes on behind its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from episodes import DIRECT_WEIGHT, ENDS, Text, draw
from torch import Tensor
from torch.nn import functional as F

import isthmus as im
from isthmus.evaluation.tasks import task_named
from isthmus.files import write_atomically
from isthmus.model.batch import pad
from isthmus.model.cross_entropy import token_losses
from isthmus.prompts.prompt import END_TAG
from isthmus.prompts.templates import template_named

WIDTH, LAYERS, HEADS = 128, 4, 4
INIT = WIDTH**-0.5
"""Of the weights: with the usual 0.02 so narrow a model's attention is flat for long."""
POOL = 128
"""Texts that are drawn together, sorted by length and cut into batches."""
ALONE, MIXED = 20, 100
"""Pools up to which only steps are learned, and from which on all kinds of texts are."""
SAVE_SECONDS = 120
STATE = "state.pt"
TEMPLATE = template_named("plain")


def tokenizer(texts: list[str], folder: Path) -> Any:
    """Byte-level BPE; digits, signs and white space are tokens of their own."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    pieces = Regex(r" ?[A-Za-z]+(?:'[a-z]+)?(?:\d[a-z]\d)?|[^\sA-Za-z\d]|\d|\s")
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    made.save_pretrained(folder)
    return made


def build(folder: Path, seed: int) -> None:
    """Writes a language model with random weights, as a folder that `im.compose` reads."""
    import transformers

    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    texts = ["".join(p for p, _ in draw(rng, TEMPLATE, frozenset()).pieces) for _ in range(800)]
    for tag in (END_TAG, ENDS):
        texts = [text.replace(tag, "\n") for text in texts]
    words = tokenizer(texts, folder / "language")
    language = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            initializer_range=INIT,
            pad_token_id=words.pad_token_id,
            bos_token_id=None,
            eos_token_id=words.eos_token_id,
        )
    )
    language.save_pretrained(folder / "language")


def compose(folder: Path) -> im.VisionLanguageModel:
    """The model of a folder that `build` wrote; language model and tags are to be trained."""
    place = folder.resolve()
    model = im.compose("tiny-vit", f"hf:{place}/language", im.Linear(), im.Inline())
    model.language.requires_grad_(True)
    return model


def encode(model: im.VisionLanguageModel, text: Text) -> tuple[list[int], list[int], list[float]]:
    """Token ids of a text, what is to be predicted for each, and what that counts for.

    A text ends as the language model's own do: without images it has no `<|endofchunk|>`.
    """
    tags = model.special_tokens
    end = model.language.end_ids()[0]
    ids: list[int] = []
    labels: list[int] = []
    weights: list[float] = []
    ending = 0.0
    for piece, weight in text.pieces:
        if piece == ENDS:
            ending = weight
            continue
        for i in tags.encode(piece):
            ids.append(i)
            labels.append(end if ending or i == tags.end_id else i)
            weights.append(ending or weight)
            ending = 0.0
    return ids, labels, weights


def batches(
    model: im.VisionLanguageModel, asked: frozenset[str], seed: int, tokens: int, start: int
) -> Iterator[tuple[int, list[tuple[Text, list[int], list[int], list[float]]]]]:
    """Endless batches of texts of like length, each pool from a seed of its own.

    Yields:
        The number of the pool, and a batch of at most so many tokens, padding included.
    """
    pool = start
    while True:
        rng = np.random.default_rng([seed, pool])
        share = min(1.0, max(0.0, (pool - ALONE) / (MIXED - ALONE)))
        texts = [draw(rng, TEMPLATE, asked, share) for _ in range(POOL)]
        rows = sorted(((t, *encode(model, t)) for t in texts), key=lambda r: len(r[1]))
        cut: list[list[Any]] = [[]]
        for row in rows:
            if cut[-1] and (len(cut[-1]) + 1) * len(row[1]) > tokens:
                cut.append([])
            cut[-1].append(row)
        for i in rng.permutation(len(cut)):
            yield pool, cut[int(i)]
        pool += 1


def loss_of(
    model: im.VisionLanguageModel, rows: list[Any], parts: dict[str, list[tuple[float, int]]]
) -> tuple[Tensor, int]:
    """Weighted mean cross-entropy of a batch, and its number of tokens; sums for the log."""
    ids, mask = pad([r[1] for r in rows], model.pad_id, "right")
    labels, _ = pad([r[2] for r in rows], 0, "right")
    weights = torch.zeros(ids.shape)
    for i, row in enumerate(rows):
        weights[i, : len(row[3])] = torch.tensor(row[3])
    after = weights[:, 1:] > 0
    batch = im.Batch(input_ids=ids, attention_mask=mask)
    places = model.language.places(mask, None)
    with model.in_sight(batch, chosen=F.pad(after, (0, 1))) as embeddings:
        logits = model.language.model(inputs_embeds=embeddings, use_cache=False, **places).logits
    losses = token_losses(logits.flatten(0, 1), labels[:, 1:][after])
    own = weights[:, 1:][after]
    told = losses.detach()
    for name, which in (("direct", own == DIRECT_WEIGHT), ("steps", own != DIRECT_WEIGHT)):
        parts.setdefault(name, []).append((float(told[which].sum()), int(which.sum())))
    return (losses * own).sum() / own.sum(), int(mask.sum())


def save(model: im.VisionLanguageModel, out: Path, state: dict[str, Any]) -> None:
    """Saves language model and strip, then what a run needs to go on."""
    model.language.model.save_pretrained(out / "language")
    im.save(model, out)
    write_atomically(out / STATE, lambda p: torch.save(state, p))


def optimizers_of(model: im.VisionLanguageModel, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices (Jordan et al. 2024), Adam for everything else.

    Muon learns more from each text, and texts are what a CPU has no time for.
    """
    inner: list[Tensor] = []
    rest: list[Tensor] = []
    for name, parameter in model.trained_parameters().items():
        layered = ".layers." in name
        (inner if layered and parameter.ndim == 2 else rest).append(parameter)
    return [
        torch.optim.Muon(inner, lr=lr, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=lr / 5, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def main() -> None:
    """Trains, and prints a line now and then."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a step")
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out: Path = options.out
    if not (out / "language").is_dir():
        out.mkdir(parents=True, exist_ok=True)
        build(out, options.seed)
    model = compose(out)
    asked = frozenset(
        i.example.question for task in ("arithmetic", "parity") for i in task_named(task).items
    )
    optimizers = optimizers_of(model, options.lr)
    step = seen = pool = 0
    seconds = 0.0
    if (out / STATE).is_file():
        state = torch.load(out / STATE, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        step, seen, pool, seconds = (state[k] for k in ("step", "tokens", "pool", "seconds"))
        pool += 1  # its other batches are left out
    count = sum(p.numel() for p in model.language.parameters())
    print(f"{count:,} parameters, {options.steps} steps, from step {step}", flush=True)

    def schedule(at: int) -> float:
        warm = min(1.0, (at + 1) / 100)
        return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * at / options.steps)))

    def state_now() -> dict[str, Any]:
        found = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
        return {**found, "step": step, "tokens": seen, "pool": pool, "seconds": seconds}

    peaks = [optimizer.defaults["lr"] for optimizer in optimizers]
    began = saved = told = time.monotonic()
    parts: dict[str, list[tuple[float, int]]] = {}
    with (out / "log.jsonl").open("a", encoding="utf-8") as log:
        for number, rows in batches(model, asked, options.seed, options.tokens, pool):
            pool = number
            if step >= options.steps:
                break
            for optimizer, peak in zip(optimizers, peaks, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = peak * schedule(step)
            loss, tokens = loss_of(model, rows, parts)
            model.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.trained_parameters().values(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            step, seen = step + 1, seen + tokens
            now = time.monotonic()
            if now - told > 10 or step == options.steps:
                told, seconds, began = now, seconds + now - began, now
                entry: dict[str, float] = {"step": step, "tokens": seen}
                for name, found in parts.items():
                    entry[name] = sum(s for s, _ in found) / max(1, sum(n for _, n in found))
                line = json.dumps({**entry, "seconds": round(seconds, 1)})
                print(line, flush=True)
                log.write(f"{line}\n")
                log.flush()
                parts = {}
            if now - saved > SAVE_SECONDS:
                save(model, out, state_now())
                saved = time.monotonic()
    save(model, out, state_now())
    print(f"saved {out}")


if __name__ == "__main__":
    main()
