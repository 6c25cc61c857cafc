"""The subject of an attack: a function from pixels to logits, with its gradient.

Pixels are those of the encoder's own input: after its resizing and cropping, before its
normalisation, in [0, 1]. Normalisation stands inside the function, so that a perturbation of
8/255 is one of 8 levels of a displayed image (Carlini et al. 2019, arXiv 1902.06705, section 2).

Letters: B images, K classes, D width of the common space.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from isthmus.classification.zero_shot import ZeroShotClassifier
from isthmus.errors import ConfigError, InputError
from isthmus.media.image import Source, open_image
from isthmus.model.clip.dual_encoder import DualEncoder
from isthmus.model.clip.joined import JoinedImageTower, pooled_features

BATCH = 32
"""Images in one pass unless told otherwise."""


@dataclass(frozen=True)
class Attackable:
    """What an attack needs of a model.

    Attributes:
        logits: Pixels (B, 3, H, W) in [0, 1] to logits (B, K), on the pixels' device.
        size: (H, W) of the pixels.
        classes: Number of classes K.
        has_gradient: Whether the gradient of a logit by the pixels can be computed. Without it
            only black-box attacks and random noise are possible.

    Example:
        >>> model = Attackable(lambda x: x.mean((2, 3)), size=(8, 8), classes=3, has_gradient=True)
        >>> model.logits(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 3])
    """

    logits: Callable[[Tensor], Tensor]
    size: tuple[int, int]
    classes: int
    has_gradient: bool


def attackable_of(
    logits: Callable[[Tensor], Tensor], size: tuple[int, int], device: torch.device | str = "cpu"
) -> Attackable:
    """The subject that a function makes; its classes and its gradient are found by trying.

    Args:
        logits: Pixels (B, 3, H, W) in [0, 1] to logits (B, K).
        size: (H, W) of the pixels.
        device: Where it is tried.

    Raises:
        InputError: If it does not give logits (B, K) of at least two classes.

    Example:
        >>> attackable_of(lambda x: x.mean((2, 3)).round(), (8, 8)).has_gradient
        True
        >>> attackable_of(lambda x: x.mean((2, 3)).detach(), (8, 8)).has_gradient
        False
    """
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, *size, generator=generator).to(device)
    with torch.no_grad():
        found = logits(pixels)
    if found.ndim != 2 or found.shape[0] != 1 or found.shape[1] < 2:
        raise InputError(
            f"got logits of shape {tuple(found.shape)} for 1 image: expected (1, classes) with at "
            "least 2 classes, since an attack moves an image from one class to another"
        )
    return Attackable(logits, size, found.shape[1], _has_gradient(logits, pixels))


def _has_gradient(logits: Callable[[Tensor], Tensor], pixels: Tensor) -> bool:
    """Whether backward works; a gradient of zeros is one, see `attack_checks`."""
    pixels = pixels.clone().requires_grad_()
    try:
        with torch.enable_grad():
            total = logits(pixels).logsumexp(dim=-1).sum()
            (gradient,) = torch.autograd.grad(total, pixels, allow_unused=True)
    except Exception:  # the function works without gradients; each library refuses in its own way
        return False
    return gradient is not None


def from_classifier(classifier: ZeroShotClassifier) -> Attackable:
    """A classifier as it is deployed: its ensemble of templates, few-shot head and calibration.

    On pixels of an image, the logits are those of `decision_function` of the image. The threshold
    below which an image is "none of these" plays no part: what is attacked is the best label.

    Args:
        classifier: The classifier. Its images are resized and cropped before the attack, and the
            attack changes the encoder's own input; see `pixels_of`.

    Raises:
        ConfigError: With `multi_label`, or if the preprocessing does not end with a normalisation
            of each channel.
        InputError: If there is only one label, or the calibration is for another model.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = DualEncoder.join("tiny-vit", "tiny-text", width=8)
        >>> classifier = ZeroShotClassifier(model, ["cat", "dog"], "one", cache=False)
        >>> subject = from_classifier(classifier)
        >>> subject.classes, subject.has_gradient
        (2, True)
    """
    if classifier.multi_label:
        raise ConfigError(
            "got a classifier with multi_label: expected one whose labels compete, since an attack "
            "counts as one when the best label changes; leave out multi_label"
        )
    if len(classifier.classes_) < 2:
        raise InputError(
            "got a classifier of one label: expected at least 2, since an attack moves an image "
            "from one label to another"
        )
    features = features_of(classifier)
    # Checks once, outside of any graph, that the calibration belongs to this model
    classifier.decision_function(torch.ones(1, classifier.weights_.shape[1]))

    def logits(pixels: Tensor) -> Tensor:
        return classifier.logits(features(pixels)).float().to(pixels.device)

    return attackable_of(logits, classifier.model.image.image_size, classifier.model.device)


def features_of(classifier: ZeroShotClassifier) -> Callable[[Tensor], Tensor]:
    """A function from pixels (B, 3, H, W) in [0, 1] to features (B, D), with their gradient.

    Features have length 1 and are on the CPU in float32, as `DualEncoder.encode_images` gives
    them. Where no gradient is asked for, the encoder runs the way it is deployed.

    Args:
        classifier: The classifier.

    Raises:
        ConfigError: If the preprocessing does not end with a normalisation of each channel.

    Example:
        >>> model = DualEncoder.join("tiny-vit", "tiny-text", width=8)
        >>> classifier = ZeroShotClassifier(model, ["cat", "dog"], "one", cache=False)
        >>> features_of(classifier)(torch.zeros(2, 3, *model.image.image_size)).shape
        torch.Size([2, 8])
    """
    model = classifier.model
    mean, std = _normalisation(model)

    def features(pixels: Tensor) -> Tensor:
        pixels = pixels.to(model.device)
        normal = (pixels - mean.to(model.device)) / std.to(model.device)
        if not (torch.is_grad_enabled() and normal.requires_grad):
            return model.encode_pixels(normal).float().cpu()
        return _encoded(model, normal).float().cpu()

    return features


def _encoded(model: DualEncoder, pixels: Tensor) -> Tensor:
    """As `DualEncoder.encode_pixels`, through a locked encoder too, which cuts the graph there."""
    tower = model.image
    weight = next(p for p in tower.parameters() if p.is_floating_point())
    pixels = pixels.to(weight.dtype)
    with _fixed(tower):
        if isinstance(tower, JoinedImageTower):
            classes = tower.mixture is not None
            pooled = pooled_features(
                tower.encoder, pixels, tower.pooling, classes=classes, gradients=True
            )
            return F.normalize(tower.map(pooled), dim=-1)
        return F.normalize(tower(pixels), dim=-1)


@contextmanager
def _fixed(module: nn.Module) -> Iterator[None]:
    """Within it no parameter asks for a gradient, so that none piles up in `.grad`."""
    asking = [p for p in module.parameters() if p.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


def pixels_of(classifier: ZeroShotClassifier, images: Sequence[Source]) -> Tensor:
    """Pixels (n, 3, H, W) in [0, 1] of images, resized and cropped as the encoder does it.

    Args:
        classifier: The classifier.
        images: Anything that `open_image` takes.

    Raises:
        InputError: If there is no image.
        ImageError: If one is no image.
        ConfigError: If the preprocessing does not end with a normalisation of each channel.

    Example:
        >>> model = DualEncoder.join("tiny-vit", "tiny-text", width=8)
        >>> classifier = ZeroShotClassifier(model, ["cat", "dog"], "one", cache=False)
        >>> grey = Image.new("RGB", (50, 70), (51, 51, 51))
        >>> round(float(pixels_of(classifier, [grey]).mean()), 4)
        0.2
    """
    if len(images) == 0:
        raise InputError("got no images: expected at least one")
    mean, std = _normalisation(classifier.model)
    made = [classifier.model.preprocess(open_image(image)).float() for image in images]
    # Resampling of floats may overshoot; a displayed image cannot
    return (torch.stack(made) * std + mean).clamp(0, 1)


def _normalisation(model: DualEncoder) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (3, 1, 1) of the preprocessing, read off plain images.

    Each library keeps them elsewhere, and all of them map a plain black image to -mean / std and
    a white one to (1 - mean) / std.

    Raises:
        ConfigError: If plain images are not mapped like this.
    """
    height, width = model.image.image_size
    black, white, grey = (
        model.preprocess(Image.new("RGB", (width, height), (level,) * 3)).double()
        for level in (0, 255, 51)
    )
    span = white - black
    expected = black.mean((1, 2), keepdim=True) + 0.2 * span.mean((1, 2), keepdim=True)
    if bool((span <= 0).any()) or bool(((grey - expected).abs() > 1e-3 * span).any()):
        raise ConfigError(
            f"the preprocessing of {model.name} does not map plain black, grey and white images to "
            "values on one line: expected that it ends with a normalisation of each channel, "
            "(pixel - mean) / std; pass such a preprocess="
        )
    std = 1 / span.mean((1, 2), keepdim=True)
    return (-black.mean((1, 2), keepdim=True) * std).float(), std.float()


@torch.no_grad()
def scores(attackable: Attackable, pixels: Tensor, batch_size: int = BATCH) -> Tensor:
    """Logits (B, K) of pixels (B, 3, H, W), a batch at a time, without a gradient.

    Args:
        attackable: The subject.
        pixels: Pixels in [0, 1].
        batch_size: Images in one pass.

    Raises:
        InputError: If pixels have another shape.

    Example:
        >>> model = attackable_of(lambda x: x.mean((2, 3)), (8, 8))
        >>> scores(model, torch.ones(2, 3, 8, 8)).tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    checked_pixels(attackable, pixels)
    return torch.cat([attackable.logits(part) for part in torch.split(pixels, batch_size)])


def accuracy(
    attackable: Attackable, pixels: Tensor, targets: Tensor, batch_size: int = BATCH
) -> float:
    """The share of images whose highest logit is the right label's.

    Args:
        attackable: The subject.
        pixels: Pixels (B, 3, H, W) in [0, 1].
        targets: The right labels' numbers (B,).
        batch_size: Images in one pass.

    Raises:
        InputError: If pixels or targets do not fit.

    Example:
        >>> model = attackable_of(lambda x: x.mean((2, 3)), (8, 8))
        >>> accuracy(model, torch.eye(3)[:, :, None, None].expand(3, 3, 8, 8), torch.arange(3))
        1.0
    """
    checked_targets(attackable, pixels, targets)
    found = scores(attackable, pixels, batch_size).argmax(dim=-1)
    return float((found == targets.to(found.device)).double().mean())


def margins(logits: Tensor, targets: Tensor) -> Tensor:
    """The right label's logit less the highest other one (B,); below 0 where an image is wrong.

    Args:
        logits: Logits (B, K).
        targets: The right labels' numbers (B,).

    Example:
        >>> margins(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([0]))
        tensor([1.])
    """
    own = logits.gather(1, targets[:, None])[:, 0]
    others = logits.scatter(1, targets[:, None], -torch.inf)
    return own - others.amax(dim=-1)


def checked_pixels(attackable: Attackable, pixels: Tensor) -> None:
    """Refuses pixels of another shape than the subject's, or outside of [0, 1].

    Raises:
        InputError: If they are.
    """
    height, width = attackable.size
    if tuple(pixels.shape) != (len(pixels), 3, height, width) or len(pixels) == 0:
        raise InputError(
            f"got pixels of shape {tuple(pixels.shape)}: expected (n, 3, {height}, {width}), with "
            "at least one image, as pixels_of gives them"
        )
    least, most = float(pixels.min()), float(pixels.max())
    if not (least >= 0 and most <= 1):  # NaN fails both
        raise InputError(
            f"got pixels from {least:.3g} to {most:.3g}: expected 0 to 1, before any normalisation"
        )


def checked_targets(attackable: Attackable, pixels: Tensor, targets: Tensor) -> None:
    """Refuses targets that are not one class number for each image.

    Raises:
        InputError: If they are not.
    """
    if targets.ndim != 1 or len(targets) != len(pixels) or targets.dtype != torch.long:
        raise InputError(
            f"got targets of shape {tuple(targets.shape)} and type {targets.dtype} for "
            f"{len(pixels)} images: expected one class number (torch.long) for each"
        )
    least, most = int(targets.min()), int(targets.max())
    if least < 0 or most >= attackable.classes:
        raise InputError(
            f"got targets from {least} to {most}: expected class numbers 0 to "
            f"{attackable.classes - 1}"
        )
