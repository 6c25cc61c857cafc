"""The 15 common corruptions at 5 severities (Hendrycks and Dietterich 2019, arXiv 1903.12261).

They come from `imagecorruptions-imaug`, a maintained fork of the authors' own code for images of
any size: `imagecorruptions` itself has not worked since NumPy 1.24, and `corrupt-tta` and
torchvision have other parameters, so that their numbers compare with no published ones. All 15
were tried with NumPy 2.4, scikit-image 0.26 and OpenCV 5. Thirteen draw from NumPy's global state,
and impulse noise and glass blur take a seed of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from isthmus.auditing.attacks.balls import seeded
from isthmus.errors import ConfigError, InputError, MissingExtraError, suggestion

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
SEVERITIES = (1, 2, 3, 4, 5)
LEAST_SIDE = 32
"""The library's smallest image."""
_OWN_SEED = ("impulse_noise", "glass_blur")


def corrupted(image: Image.Image, name: str, severity: int, seed: int = 0) -> Image.Image:
    """A corrupted copy of an image, RGB and of the same size.

    Severities are tuned to images of about 224 pixels: corrupt what the encoder sees, after
    resizing, or report the size. The global random states are left as they were, but are used
    meanwhile, so call it from one thread.

    Args:
        image: The image, at least 32 pixels in each direction.
        name: One of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: Of what is random in it.

    Raises:
        ConfigError: If the name or the severity is unknown.
        InputError: If the image is too small.
        MissingExtraError: If imagecorruptions-imaug is not installed.

    Example:
        >>> grey = Image.new("RGB", (32, 32), (128, 128, 128))
        >>> corrupted(grey, "brightness", 3).getpixel((0, 0))
        (204, 204, 204)
    """
    if name not in CORRUPTIONS:
        raise ConfigError(f'unknown corruption "{name}": {suggestion(name, CORRUPTIONS)}')
    if severity not in SEVERITIES:
        raise ConfigError(f"got severity {severity}: expected 1 to 5")
    if min(image.size) < LEAST_SIDE:
        raise InputError(
            f"got an image of {image.width}x{image.height} pixels: corruptions need at least "
            f"{LEAST_SIDE}x{LEAST_SIDE}; enlarge it first"
        )
    try:
        import imagecorruptions  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError as error:
        raise MissingExtraError("corrupting an image", "audit") from error
    except ImportError as error:  # OpenCV is there, and a library of the system is not
        raise InputError(
            f"OpenCV, which corruptions need, cannot be loaded ({error}): on Debian and Ubuntu, "
            "apt-get install libgl1 libglib2.0-0"
        ) from error
    own = {"seed": seed} if name in _OWN_SEED else {}
    with seeded(seed):
        found = imagecorruptions.corrupt(
            np.asarray(image.convert("RGB")), corruption_name=name, severity=severity, **own
        )
    return Image.fromarray(np.asarray(found, dtype=np.uint8))


def mean_corruption_error(errors: Mapping[str, Sequence[float]]) -> float:
    """The unnormalised mCE: errors averaged over severities, then over corruptions.

    The published mCE divides each corruption's error by AlexNet's first (section 4.1), for which
    one needs AlexNet's errors on the same images. This one is a plain error rate, 0 to 1.

    Args:
        errors: Error rates of each corruption, one for each severity.

    Raises:
        InputError: If there is no corruption, one has no error, or a rate is outside of 0 to 1.

    Example:
        >>> mean_corruption_error({"fog": [0.25, 0.75], "snow": [0.0, 0.5]})
        0.375
    """
    if not errors:
        raise InputError("got no corruption: expected error rates of at least one")
    for name, rates in errors.items():
        if not len(rates) or not all(0 <= rate <= 1 for rate in rates):
            raise InputError(
                f'the error rates of "{name}" are {list(rates)}: expected one for each severity, '
                "0 to 1"
            )
    return sum(sum(rates) / len(rates) for rates in errors.values()) / len(errors)


def relative_mean_corruption_error(errors: Mapping[str, Sequence[float]], clean: float) -> float:
    """How much of `mean_corruption_error` corruptions add to the error on clean images.

    Args:
        errors: Error rates of each corruption, one for each severity.
        clean: The error rate on the images as they were.

    Raises:
        InputError: As `mean_corruption_error`, or if the clean rate is outside of 0 to 1.

    Example:
        >>> relative_mean_corruption_error({"fog": [0.25, 0.75], "snow": [0.0, 0.5]}, 0.125)
        0.25
    """
    if not 0 <= clean <= 1:
        raise InputError(f"the clean error rate is {clean}: expected 0 to 1")
    return mean_corruption_error(errors) - clean
