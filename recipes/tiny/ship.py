"""Writes a trained strip into the package, in half precision.

    python recipes/tiny/ship.py --run RUNS/tiny

The figures of the model card are measured on what this writes, not on the run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import isthmus as im
from isthmus.model.checkpoint import describe

PACKAGE = Path(__file__).parent.parent.parent / "src" / "isthmus" / "weights" / "tiny"


def main() -> None:
    """Saves the run's strip under the package's weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    run: Path = parser.parse_args().run
    train = describe(run)["train"]
    train["init"] = train["init"] and Path(train["init"]).name
    im.save(im.load(run), PACKAGE, dtype=torch.float16, extra={"train": train})
    size = sum(f.stat().st_size for f in PACKAGE.iterdir())
    print(f"{PACKAGE}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
