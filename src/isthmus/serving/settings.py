"""What a server may be told: where it listens, who may ask, how much."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from isthmus.errors import ConfigError


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server; the defaults are safe on a machine that others can reach.

    Attributes:
        host: Address to listen on; anything but loopback needs a key.
        port: Port; 0 takes a free one.
        api_key: What clients must send as "Authorization: Bearer KEY"; None asks for none.
        insecure_no_key: Listen to other machines without a key all the same.
        model_name: What clients call the model.
        dual_encoder_name: What clients call the dual encoder.
        template: How conversations become prompts, a name that `template_named` knows; None is
            the model's own with images, and without the language model's chat template.
        max_batch: Requests that are decoded together.
        max_queue: Requests that wait; more are told to come back (429).
        memory: Most bytes that prefixes and visual tokens may keep.
        timeout: Seconds that a request may take, waiting included.
        max_new_tokens: Most tokens of an answer where a request does not say.
        max_body: Most bytes of a request's body.
        max_held: Most bytes of all bodies that are being read or answered.
        body_timeout: Seconds that a body may take to arrive.
        max_images: Most images of a request, those of demonstrations included.
        max_pixels: Most pixels of all images of a request, read off their headers.
        max_prompts: Most prompts (labels times templates) of a classification.
        media_domains: Hosts that https image addresses may name; none by default.
        media_timeout: Seconds to fetch an image from an address.
        max_media: Most bytes of a fetched image.
        allowed_hosts: Names, besides its own, by which clients may call a server on loopback.
        cors_origins: Web origins whose pages may call the server; none by default.
        grace: Seconds that running requests are given at the end.

    Raises:
        ConfigError: If a value is out of range, or strangers could ask without a key.

    Example:
        >>> ServerSettings().is_loopback
        True
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    insecure_no_key: bool = False
    model_name: str = "isthmus"
    dual_encoder_name: str = "dual-encoder"
    template: str | None = None
    max_batch: int = 16
    max_queue: int = 64
    memory: int = 1 << 30
    timeout: float = 300.0
    max_new_tokens: int = 512
    max_body: int = 20_000_000
    max_held: int = 400_000_000
    body_timeout: float = 30.0
    max_images: int = 32
    max_pixels: int = 120_000_000
    max_prompts: int = 10_000
    media_domains: tuple[str, ...] = ()
    media_timeout: float = 10.0
    max_media: int = 10_000_000
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    grace: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"got port {self.port}, expected 0 to 65535")
        counts = (
            "max_batch",
            "max_queue",
            "max_new_tokens",
            "max_body",
            "max_held",
            "max_images",
        )
        for name in (
            *counts,
            "max_media",
            "timeout",
            "body_timeout",
            "media_timeout",
            "max_pixels",
        ):
            if getattr(self, name) <= 0:
                raise ConfigError(f"got {name} = {getattr(self, name)}, expected more than 0")
        if self.api_key is not None and (not self.api_key.strip() or not self.api_key.isascii()):
            raise ConfigError("the API key is empty or not ASCII: expected a secret text")
        for domain in self.media_domains:
            if not domain or set(domain) & set("/:*@ "):
                raise ConfigError(
                    f'got the media domain "{domain}", expected a host such as '
                    '"upload.wikimedia.org", without https:// or a port'
                )
        if not (self.is_loopback or self.api_key or self.insecure_no_key):
            raise ConfigError(
                f"{self.host} can be reached by other machines: set a key (--api-key, or "
                "ISTHMUS_API_KEY), listen on 127.0.0.1, or say --insecure-no-key"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
