"""What tells one classifier from another: its model, its templates, its few-shot head.

Letters: B images, K labels, D width of the common space.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from isthmus.classification.few_shot import Scorer
from isthmus.classification.templates import Templates, resolved_templates
from isthmus.config.base import Config
from isthmus.model.clip.dual_encoder import DualEncoder


@dataclass(frozen=True, kw_only=True)
class Identity(Config):
    """What tells a model, or templates, from others.

    Attributes:
        name: What a person calls it; it is shown and not compared.
        fingerprint: 16 hexadecimal digits.
    """

    name: str
    fingerprint: str

    def __str__(self) -> str:
        return f'"{self.name}" ({self.fingerprint})'


def model_identity(model: DualEncoder) -> Identity:
    """A dual encoder's identity: its towers, its temperature and its bias.

    Example:
        >>> model = DualEncoder.join("tiny-vit", "tiny-text", width=8)
        >>> before = model_identity(model)
        >>> with torch.no_grad():
        ...     _ = model.logit_scale.add_(1)
        >>> model_identity(model) == before
        False
    """
    bias = None if model.logit_bias is None else model.logit_bias.item()
    told = json.dumps([model.fingerprint(), model.logit_scale.item(), bias])
    return Identity(name=model.name, fingerprint=_short_hash(told))


def templates_identity(templates: Templates) -> Identity:
    """The identity of templates: what they say, and not where they are kept.

    Example:
        >>> templates_identity("a photo of a {}.").name
        'a photo of a {}.'
    """
    resolved = resolved_templates(templates)
    name = str(templates) if isinstance(templates, str | Path) else f"{len(resolved)} of your own"
    return Identity(name=name, fingerprint=_short_hash(json.dumps(resolved, sort_keys=True)))


def head_probe(head: Scorer, width: int) -> list[float]:
    """What a few-shot head makes of one fixed vector (D,): a logit for each label.

    Args:
        head: From features (B, D) to logits (B, K).
        width: Width D.
    """
    # In closed form, since random numbers may change from one version of PyTorch to the next
    probe = torch.cos(torch.arange(width, dtype=torch.float64).square())
    return head(F.normalize(probe.float()[None], dim=-1))[0].tolist()


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
