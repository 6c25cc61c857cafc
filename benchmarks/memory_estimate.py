"""The memory that `isthmus train --dry-run` expects, beside what a step takes.

    python benchmarks/memory_estimate.py [--quick]

A random Llama of 12 layers (D 512, MLP 1408, 8192 words), inline with an MLP or with gated blocks
before every third layer and a resampler, rows of 256 tokens of which half are learned. Each
configuration takes three training steps in a process of its own; what is measured is the highest
resident memory, less what the process held before the model, on Linux.

`MALLOC_MMAP_THRESHOLD_=65536` makes glibc give memory back as soon as a tensor is gone, so that the
measured figure is what tensors take. Without it the heap of a CPU run holds up to half as much
again.

    ratio memory_estimate   the estimate over the measured peak, the median
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
from pathlib import Path

LENGTH = 256
CONFIGURATIONS = [
    ("inline", "fp32", 0, 8),
    ("inline", "fp32", 1, 8),
    ("inline", "bf16", 0, 8),
    ("cross_attention", "fp32", 0, 2),
    ("cross_attention", "fp32", 0, 8),
    ("cross_attention", "fp32", 0, 16),
    ("cross_attention", "fp32", 1, 8),
    ("cross_attention", "bf16", 0, 8),
]


def resident(field: str) -> int:
    """Bytes of a field of this process' status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def one(fusion: str, precision: str, checkpointing: int, rows: int) -> None:
    """Prints estimate and measured peak of one configuration, in bytes."""
    import torch
    import transformers

    import isthmus as im
    from isthmus.model.backbones.tiny import byte_tokenizer
    from isthmus.training.memory import Load, memory
    from isthmus.training.optim import optimizer_for
    from isthmus.training.vlm import freeze_in_half

    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.zeros(512, 512) @ torch.zeros(512, 512)  # its libraries are loaded now
    language = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=8192,
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=12,
            num_attention_heads=8,
            num_key_value_heads=4,
            eos_token_id=0,
        )
    )
    before = resident("VmRSS") - sum(p.numel() * 4 for p in language.parameters())
    strip = im.MLP() if fusion == "inline" else im.Resampler(latents=16, depth=2)
    way = im.Inline() if fusion == "inline" else im.CrossAttention(every=3)
    model = im.compose("tiny-vit", language, strip, way, tokenizer=byte_tokenizer())
    config = im.TrainConfig(precision=precision, gradient_checkpointing=bool(checkpointing))  # type: ignore[arg-type]
    if checkpointing:
        options = {"use_reentrant": False}
        model.language.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    freeze_in_half(model, config)
    model.train()
    optimizer = optimizer_for(model, model.trained_parameters(), config)
    ids = torch.randint(1, 200, (rows, LENGTH))
    ids[:, : model.layout.places] = model.special_tokens.image_id
    labels = ids.clone()
    labels[:, : LENGTH // 2] = -100
    features = torch.randn(rows, model.vision.shape.tokens, model.vision.shape.width)
    batch = im.Batch(
        input_ids=ids, attention_mask=torch.ones_like(ids), features=features, labels=labels
    )
    load = Load(rows=rows, tokens=LENGTH, images=rows, labelled=rows * LENGTH // 2)
    expected = sum(memory(model, config, load).values())
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    for _ in range(3):
        half = torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else None
        with half or contextlib.nullcontext():
            loss = model(batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(expected, resident("VmHWM") - before)


def main() -> None:
    """Prints a table and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two configurations")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        fusion, precision, checkpointing, rows = options.one
        one(fusion, precision, int(checkpointing), int(rows))
        return
    ratios = []
    print(f"{'configuration':<44}{'estimate, MB':>14}{'measured, MB':>14}{'ratio':>8}")
    for fusion, precision, checkpointing, rows in CONFIGURATIONS[: 2 if options.quick else None]:
        done = subprocess.run(
            [sys.executable, __file__, "--one", fusion, precision, str(checkpointing), str(rows)],
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
            capture_output=True,
            text=True,
            check=True,
        )
        expected, measured = (int(n) for n in done.stdout.split()[-2:])
        ratios.append(expected / measured)
        way = f"{fusion}, {precision}, {rows} rows{', checkpointing' if checkpointing else ''}"
        print(f"{way:<44}{expected / 1e6:>14.0f}{measured / 1e6:>14.0f}{ratios[-1]:>8.2f}")
    print(f"# memory_estimate: {min(ratios):.2f} to {max(ratios):.2f}")
    print(f"ratio memory_estimate {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
