"""Classifying images with 1,000 labels x 80 templates, beside two other ways with the same model.

    python benchmarks/zero_shot.py [--quick] [--threads 2] [--labels 1000] [--images 200]

One Transformers CLIP with random weights and OpenAI's tokenizer (its merges come with open_clip)
serves all ways. Its vision tower is ViT-B/32's shape made smaller, its text tower has 6 layers of
256 (`--layers`, `--width`; 12 and 512 are ViT-B/32's), so that the whole runs in minutes on two
cores: what counts are numbers of tokens, and those are real.

    ours            weights from all prompts in one go, padding trimmed; then the images
    clip_benchmark  CLIP_benchmark 1.6.2's way: one class a call, its 80 prompts padded to 77
    pipeline        Transformers' zero-shot-image-classification: the text tower anew for every
                    image, one template a call, so 80 calls an image for the ensemble
    untrimmed       ours with padding to 77
    cached          ours with the weights on disk

The slow ways are timed on a sample of labels and images and scaled up, and so is `untrimmed`;
`ours` runs whole. Asserted: equal weights to 1e-5, equal probabilities to 1e-4.

    ratio zero_shot_clip_benchmark         whole job, CLIP_benchmark's over ours
    ratio zero_shot_pipeline               whole job, the pipeline's with 80 templates over ours
    ratio zero_shot_pipeline_one_template  the same with one template on both sides
    ratio zero_shot_trimmed                weights alone, untrimmed over trimmed
    ratio zero_shot_cached                 whole job, afresh over cached
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch.nn import functional as F

import isthmus as im
from isthmus.classification.classifier_cache import zero_shot_weights
from isthmus.classification.templates import prompts_of

CONTEXT = 77
ONE = "This is a photo of {}."


def tokenizer() -> Any:
    """OpenAI's, as Transformers has it."""
    import open_clip

    simple = open_clip.tokenizer.SimpleTokenizer()
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.get)
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocab = {renamed.get(word, word): i for word, i in simple.encoder.items()}
    return transformers.CLIPTokenizer(vocab=vocab, merges=merges)


def build(width: int, layers: int) -> tuple[Any, Any, Any]:
    """Model, tokenizer, image processor."""
    words = tokenizer()
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    sizes["num_attention_heads"] = width // 64
    text = {**sizes, "vocab_size": 49408, "eos_token_id": words.eos_token_id}
    text |= {"bos_token_id": words.bos_token_id, "max_position_embeddings": CONTEXT}
    config = transformers.CLIPConfig(
        text_config=text,
        vision_config={**sizes, "image_size": 224, "patch_size": 32},
        projection_dim=width,
    )
    return transformers.CLIPModel(config).eval(), words, transformers.CLIPImageProcessor()


def clip_benchmark_weights(model: Any, words: Any, prompts: Sequence[Sequence[str]]) -> Any:
    """A class a call, untrimmed."""
    found = []
    for many in prompts:
        tokens = words(
            many, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt"
        )
        vectors = model.get_text_features(**tokens).pooler_output
        mean = F.normalize(vectors, dim=-1).mean(dim=0)
        found.append(mean / mean.norm())
    return torch.stack(found)


def clip_benchmark_images(
    model: Any, processor: Any, images: Sequence[Image.Image], weights: Any
) -> Any:
    """Features in batches of 64, logits with a factor of 100."""
    logits = []
    for i in range(0, len(images), 64):
        pixels = processor(images=images[i : i + 64], return_tensors="pt")["pixel_values"]
        features = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        logits.append(100.0 * features @ weights.T)
    return torch.cat(logits)


def seconds(work: Callable[[], object]) -> float:
    """Seconds that some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


@torch.inference_mode()
def main() -> None:
    """Prints a table and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    try:
        from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
    except ImportError as error:
        print(f"needs open_clip, which is not installed ({error}): pip install open_clip_torch")
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    count, many, sample, turns = options.labels, options.images, 20, 3
    if options.quick:
        count, many, sample, turns = 20, 10, 3, 1
    names = list(dict.fromkeys(IMAGENET_CLASSNAMES))
    names += [f"{name} in the rain" for name in names]
    labels = names[:count]
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (300, 400, 3), np.uint8)) for _ in range(many)]
    model, words, processor = build(options.width, options.layers)
    dual = im.load(model, tokenizer=words, preprocess=processor)
    prompts = prompts_of(labels, "imagenet-80")
    some = [prompts[i] for i in range(0, count, max(1, count // sample))][:sample]
    pipe = transformers.pipeline(
        "zero-shot-image-classification", model=model, tokenizer=words, image_processor=processor
    )

    def ours(templates: str, cache: Any = False) -> Any:
        made = im.ZeroShotClassifier(dual, labels, templates, cache=cache)
        return made.predict_proba(images)

    reference = clip_benchmark_weights(model, words, some)
    worst = float((zero_shot_weights(dual, some) - reference).abs().max())
    assert worst <= 1e-5, f"weights differ by {worst}"
    theirs = pipe(images[0], candidate_labels=labels, hypothesis_template=ONE)
    scores = {found["label"]: found["score"] for found in theirs}
    mine = im.ZeroShotClassifier(dual, labels, ONE, cache=False).predict_proba(images[:1])[0]
    gap = max(abs(scores[name] - float(p)) for name, p in zip(labels, mine, strict=True))
    assert gap <= 1e-4, f"probabilities differ by {gap}"
    print(f"weights equal to {worst:.0e}, probabilities to {gap:.0e}")

    spread = torch.zeros(count, options.width)
    few = images[: max(1, min(3, sample // 5))]
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ours("imagenet-80", folder)
        for _ in range(turns):
            turn = {
                "ours": seconds(lambda: ours("imagenet-80")),
                "ours, one template": seconds(lambda: ours(ONE)),
                "cached": seconds(lambda: ours("imagenet-80", folder)),
                "trimmed weights": seconds(lambda: zero_shot_weights(dual, prompts)),
                "untrimmed weights": seconds(lambda: zero_shot_weights(dual, some, trim=False))
                * (count / len(some)),
            }
            text = seconds(lambda: clip_benchmark_weights(model, words, some)) * count / len(some)
            turn["clip_benchmark"] = text + seconds(
                lambda: clip_benchmark_images(model, processor, images, spread)
            )
            call = seconds(lambda: pipe(few, candidate_labels=labels, hypothesis_template=ONE))
            turn["pipeline, one template"] = call / len(few) * many
            turn["pipeline"] = turn["pipeline, one template"] * len(prompts[0])
            for name, value in turn.items():
                times.setdefault(name, []).append(value)

    tokens = sum(len(row) for row in dual.rows([p for each in prompts for p in each]))
    print(f"{count} labels x 80 templates, {tokens / count / 80:.1f} tokens a prompt of {CONTEXT}")
    print(f"{'way':<24}{'seconds':>10}{'min':>10}{'max':>10}")
    for name, values in times.items():
        middle, low, high = (f(values) for f in (statistics.median, min, max))
        print(f"{name:<24}{middle:>10.2f}{low:>10.2f}{high:>10.2f}")
    for key, over, under in (
        ("zero_shot_clip_benchmark", "clip_benchmark", "ours"),
        ("zero_shot_pipeline", "pipeline", "ours"),
        ("zero_shot_pipeline_one_template", "pipeline, one template", "ours, one template"),
        ("zero_shot_trimmed", "untrimmed weights", "trimmed weights"),
        ("zero_shot_cached", "ours", "cached"),
    ):
        each = [a / b for a, b in zip(times[over], times[under], strict=True)]
        print(f"# {key}: {min(each):.1f} to {max(each):.1f} over {turns} turns")
        print(f"ratio {key} {statistics.median(each):.2f}")


if __name__ == "__main__":
    main()
