"""Model cards: the front matter of a `README.md`, as the hub reads it, and the licence of parts.

A model that was joined is a work made of others'. Its card names them, and the strictest of their
licences where they are known: of assets, from the registry; of timm, from its configurations; of a
repository or folder, from its own card, if that is on this machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PERMISSIVE = ("mit", "bsd-3-clause", "bsd-2-clause", "cc0-1.0", "unlicense", "apache-2.0")
"""Licences that ask for no more than to be told of, the strictest last."""
OTHER = "other"
"""What the hub calls a licence that it has no name for."""
MARK = "<!-- written by isthmus; take this line out to keep what you write here -->"
"""Marks a card that may be written anew."""

_CHECKPOINT = """\
{front}
{mark}

# {name}

{made}. What was trained is here; the parts are named, and fetched from where they are.

```python
import isthmus as im

model = im.from_pretrained({quoted})
{used}
```

{licence}
"""
_ASKED = 'print(im.ask(model, "photo.jpg", "What is in the picture?").text)'
_CLASSIFIED = 'print(im.classify_images("photos", ["cat", "dog"], model=model))'


@dataclass(frozen=True)
class Origin:
    """What a card says of a saved model.

    Attributes:
        kind: "vlm" or "clip".
        parts: Names of what it was made of.
        made: How it was made, in words.
    """

    kind: str
    parts: tuple[str, ...]
    made: str

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> Origin:
        """Reads it off an `isthmus.json`."""
        config, kind = description["config"], str(description["kind"])
        if "name" in config:  # a dual encoder of another library, trained further
            return cls(kind, (config["name"],), f"{shown(config['name'])}, trained by Isthmus")
        second = "language" if kind == "vlm" else "text"
        parts = tuple(str(config[part]["name"]) for part in ("vision", second))
        joined = f"{shown(parts[0])} and {shown(parts[1])}, joined by Isthmus"
        if kind != "vlm":
            return cls(kind, parts, f"{joined} to a dual encoder")
        connector, fusion = config["connector"]["type"], config["fusion"]["type"]
        made = f"{joined} (connector `{connector}`, fusion `{fusion}`, prompts `{{}}`)"
        return cls(kind, parts, made.format(config.get("template", "plain")))


def front_matter(
    library: str,
    pipeline: str,
    parts: Iterable[str],
    *,
    relation: str = "",
    licence: str = "",
) -> str:
    """The head of a card.

    Args:
        library: What loads the model.
        pipeline: What it does, as the hub names it.
        parts: Names of what it was made of; those that are repositories are listed.
        relation: What it is to them ("finetune", "merge", "quantized"); "" leaves it open.
        licence: An identifier of the hub's; "" leaves it out.

    Example:
        >>> print(front_matter("isthmus", "image-text-to-text", ["hf:Qwen/Qwen3-0.6B", "tiny-vit"]))
        ---
        library_name: isthmus
        pipeline_tag: image-text-to-text
        base_model:
        - Qwen/Qwen3-0.6B
        tags:
        - isthmus
        ---
    """
    lines = ["---", f"library_name: {library}", f"pipeline_tag: {pipeline}"]
    if licence:
        lines.append(f"license: {licence}")
    # a released model is both parts
    bases = dict.fromkeys(filter(None, map(repository, parts)))
    if bases:
        lines += ["base_model:", *(f"- {json.dumps(b) if ':' in b else b}" for b in bases)]
    if bases and relation:
        lines.append(f"base_model_relation: {relation}")
    return "\n".join([*lines, "tags:", "- isthmus", "---"])


def checkpoint_card(origin: Origin, name: str) -> str:
    """The card of a model's own folder.

    Args:
        origin: What it is made of.
        name: Its repository, or what to call it.

    Example:
        >>> print(checkpoint_card(Origin("vlm", ("tiny-vit", "tiny-lm"), "Two parts"), "mine")[:96])
        ---
        library_name: isthmus
        pipeline_tag: image-text-to-text
        license: other
        tags:
        - isthmus
        ...
    """
    licence, told = strictest(origin.parts)
    is_vlm = origin.kind == "vlm"
    task = "image-text-to-text" if is_vlm else "zero-shot-image-classification"
    return _CHECKPOINT.format(
        front=front_matter("isthmus", task, origin.parts, relation="adapter", licence=licence),
        mark=MARK,
        name=name.rpartition("/")[2],
        quoted=json.dumps(name, ensure_ascii=False),
        made=origin.made,
        used=_ASKED if is_vlm else _CLASSIFIED,
        licence=told,
    )


def strictest(parts: Sequence[str]) -> tuple[str, str]:
    """The strictest licence of some parts, and a sentence about it.

    Returns:
        An identifier of the hub's, "other" where one is unknown or two bind in different ways.

    Example:
        >>> strictest(["asset:efficientnet-lite2", "asset:smollm2-135m-instruct"])[0]
        'apache-2.0'
    """
    known = {part: licence_of(part) for part in dict.fromkeys(parts)}
    listed = "; ".join(f"{shown(part)}: {of or 'unknown here'}" for part, of in known.items())
    binding = {of for of in known.values() if of not in PERMISSIVE}
    if "" in binding or len(binding) > 1:
        return OTHER, f"Licences of the parts: {listed}. Both hold for what is made of them."
    strict = binding.pop() if binding else max(known.values(), key=PERMISSIVE.index)
    return strict, f"The licence is the strictest of the parts' ({listed})."


def licence_of(part: str) -> str:
    """The licence of a part by its name, as the hub writes it; "" where it is not known here.

    Example:
        >>> licence_of("asset:smollm2-135m-instruct"), licence_of("hf:nobody/none")
        ('apache-2.0', '')
    """
    scheme, _, rest = part.partition(":")
    if scheme == "asset":
        from isthmus.assets.registry import ASSETS

        return ASSETS[rest].licence.lower() if rest in ASSETS else ""
    if scheme == "timm":
        import timm

        found = timm.models.get_pretrained_cfg(rest) if timm.is_model(rest.split(".")[0]) else None
        return str(getattr(found, "license", None) or "").lower()
    if scheme == "hf":
        return _told_by_card(rest)
    return ""


def repository(part: str) -> str:
    """A part's repository on the hub; empty if it is a folder, or of another place."""
    scheme, _, rest = part.partition(":")
    return rest if scheme == "hf" and rest.count("/") == 1 and not Path(rest).exists() else ""


def shown(part: str) -> str:
    """A part's name, of a folder its last piece: paths are nobody else's business."""
    rest = part.partition(":")[2] or part
    return repository(part) or Path(rest).name


def _told_by_card(place: str) -> str:
    """The licence that a card on this machine names, of a folder or of a repository."""
    card: str | Path | None = Path(place) / "README.md"
    if repository(f"hf:{place}"):
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(place, "README.md")
        card = found if isinstance(found, str) else None
    if card is None or not Path(card).is_file():
        return ""
    text = Path(card).read_text(encoding="utf-8", errors="replace")
    head = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    told = re.search(r"^license:[ \t]*([\w.+-]+)[ \t]*$", head[1], re.MULTILINE) if head else None
    licence = told[1].lower() if told else ""
    return "" if licence in (OTHER, "unknown") else licence
