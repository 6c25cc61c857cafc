"""From what a request says of its images to pixels, nothing of which may harm the server.

An image is a data URI, strictly read, or an https address where the server allows its host; never
a path. Its size is read off its header before it is decoded. Decoding and fetching happen in a few
threads of their own, and what waits in a queue is the encoder's small input, not the image.
"""

from __future__ import annotations

import asyncio
import io
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import RLock
from typing import Any

from PIL import Image
from torch import Tensor

from isthmus.errors import ImageError
from isthmus.media.data_uri import DataURIError, bytes_of
from isthmus.media.fetch import Fetcher, is_url
from isthmus.media.image import FORMATS, open_image
from isthmus.model.media.base import Cheaper, Opened, Parts, medium_of
from isthmus.serving.refusals import Refusal, refusal_of

DECODERS = 2
FETCHERS = 4
Prepare = Callable[[Image.Image], Any]
"""Makes of an opened image what is kept of it."""
KEPT = 2 << 30
"""Bytes of pixels, which tiles make many of: 17 of 512 x 512 are 53 MB."""
RESOLVERS = 32
"""Threads that look names up: a slow name server keeps some of them, and nothing else."""


def data_of(uri: str) -> bytes:
    r"""The bytes of a data URI.

    Raises:
        Refusal: 400 if it is no data URI of an image, or not base64 to the letter.

    Example:
        >>> data_of("data:image/png;base64,AAEC")
        b'\x00\x01\x02'
    """
    try:
        return bytes_of(uri)
    except DataURIError as error:
        if error.malformed:
            raise Refusal(400, str(error), "invalid_base64") from None
        why = f"{error}; paths and other addresses are not read"
        raise Refusal(400, why, "invalid_image_url") from None


def pixels_claimed(data: bytes) -> int:
    """Pixels that an image's header claims; 0 if it has none that can be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                return image.width * image.height
        except Exception:  # whatever is wrong with it, `open_image` says it
            return 0


def opened(model: Parts, detail: str | None, image: Image.Image) -> Any:
    """What the model's encoder reads of an image, at the detail that a request asks for.

    Args:
        model: The model.
        detail: "low" leaves an image whole that would be cut into tiles; anything else is as the
            model opens it.
        image: The image.

    Raises:
        ImageError: If the model's preprocessing cannot take it.
    """
    medium = medium_of(model, image)
    if detail == "low" and isinstance(medium, Cheaper):
        return medium.open_low(model, image)
    return medium.open(model, image)


class ImageReader:
    """Reads the images of requests.

    Args:
        prepare: Makes of an opened image what is kept of it.
        fetcher: Fetches addresses.
        max_images: Most images of a request.
        max_pixels: Most pixels of all images of a request.
        max_kept: Most bytes of what is kept of all requests' images while they are asked about.
    """

    def __init__(
        self,
        prepare: Callable[[Image.Image], Any],
        fetcher: Fetcher,
        *,
        max_images: int = 32,
        max_pixels: int = 120_000_000,
        max_kept: int = KEPT,
    ) -> None:
        self.prepare = prepare
        self.fetcher = fetcher
        self.max_images = max_images
        self.max_pixels = max_pixels
        self.max_kept = max_kept
        self._kept = 0
        self._counting = RLock()  # a tensor may go while another one is counted
        self._decoders = ThreadPoolExecutor(DECODERS, "isthmus-decode")
        self._fetchers = ThreadPoolExecutor(FETCHERS, "isthmus-fetch")
        self._resolvers = ThreadPoolExecutor(RESOLVERS, "isthmus-look-up")

    async def read(
        self,
        images: Sequence[tuple[str, str]],
        prepare: Prepare | Sequence[Prepare] | None = None,
    ) -> list[Any]:
        """What is kept of each image.

        Args:
            images: Where each stands in the request, and its data URI or address.
            prepare: In place of the reader's own; one for all, or one for each.

        Raises:
            Refusal: 400 if there are too many, or one is no image's address; 422 if one cannot
                be read or is too large; 429 if those of all requests are too large together.
                `param` says which.
        """
        if len(images) > self.max_images:
            raise Refusal(
                400,
                f"got {len(images)} images, expected at most {self.max_images} in a request",
                "too_many_images",
                images[self.max_images][0],
            )
        loop = asyncio.get_running_loop()
        kept, left = [], self.max_pixels
        how = prepare or self.prepare
        each = [how] * len(images) if callable(how) else how
        for (place, url), own in zip(images, each, strict=True):
            try:
                if is_url(url):
                    data = await self._fetched(url)
                else:
                    data = await loop.run_in_executor(self._decoders, data_of, url)
                claimed, opened = await loop.run_in_executor(
                    self._decoders, self._opened, data, left, own
                )
            except Refusal as refusal:
                raise Refusal(refusal.status, refusal.message, refusal.code, place) from None
            except ImageError as error:
                said = refusal_of(error)
                raise Refusal(said.status, said.message, said.code, place) from None
            left -= claimed
            kept.append(opened)
            self._count(opened, place)
        return kept

    def _count(self, opened: Any, place: str) -> None:
        """Counts what is kept of an image until nothing holds it any more.

        Raises:
            Refusal: 429 if that of all images is too large.
        """
        values = opened.values if isinstance(opened, Opened) else opened
        if not isinstance(values, Tensor):
            return
        size = values.numel() * values.element_size()
        with self._counting:
            if self._kept + size > self.max_kept:
                raise Refusal(
                    429,
                    f"the images that are asked about take more than {self.max_kept >> 20:,} MB as "
                    'tiles: come back later, send fewer, or ask for "detail": "low"',
                    "queue_full",
                    place,
                )
            self._kept += size
        weakref.finalize(values, self._forget, size)

    def _forget(self, size: int) -> None:
        with self._counting:
            self._kept -= size

    async def _fetched(self, url: str) -> bytes:
        """The bytes behind an address; its name is looked up apart from the fetches."""
        loop, start = asyncio.get_running_loop(), time.monotonic()
        target = self.fetcher.check(url)
        found = await loop.run_in_executor(self._resolvers, self.fetcher.addresses, target)
        spent = time.monotonic() - start
        return await loop.run_in_executor(
            self._fetchers, self.fetcher.fetch_from, target, found, spent
        )

    def _opened(
        self, data: bytes, left: int, prepare: Callable[[Image.Image], Any]
    ) -> tuple[int, Any]:
        claimed = pixels_claimed(data)
        if claimed > left:
            raise ImageError(
                f"the request's images claim more than {self.max_pixels // 1_000_000} megapixels "
                "in all: make them smaller"
            )
        return claimed, prepare(open_image(data))

    def close(self) -> None:
        """Lets the threads go."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        self._fetchers.shutdown(wait=False, cancel_futures=True)
        self._resolvers.shutdown(wait=False, cancel_futures=True)
