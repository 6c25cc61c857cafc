"""Running the application: a socket of one's own, uvicorn, and an orderly end."""

from __future__ import annotations

import asyncio
import copy
import socket
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.logging import DefaultFormatter

from isthmus.errors import InputError, error_place
from isthmus.serving.protocol import PatientProtocol
from isthmus.serving.settings import ServerSettings

_BACKLOG = 2048


def listen(settings: ServerSettings) -> socket.socket:
    """A listening socket, before anything is loaded: a taken port is told at once.

    Raises:
        InputError: If the address cannot be listened on.
    """
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, _, _, address = found[0]
        listening = socket.socket(family, kind)
    except OSError as error:
        raise InputError(f"{settings.host} is no address of this machine: {error}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise InputError(
            f"cannot listen on {settings.host} port {settings.port} ({error.strerror}): choose "
            "another with --port, or 0 for a free one"
        ) from error
    return listening


class DiscreetFormatter(DefaultFormatter):
    """Tells of an error what it was and where; its message may quote what a client sent."""

    def formatException(self, ei: Any) -> str:
        """The error's name, and the lines of code that it came through."""
        return error_place(ei[1])


class Server(uvicorn.Server):
    """uvicorn's server, which tells the application at once that it is to end.

    Args:
        config: uvicorn's.
        closing: Set on SIGTERM and SIGINT.
    """

    def __init__(self, config: uvicorn.Config, closing: asyncio.Event) -> None:
        super().__init__(config)
        self.closing = closing

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """New requests are refused from here on; those that run are finished."""
        self.closing.set()
        super().handle_exit(sig, frame)


def server_of(app: Any, settings: ServerSettings, log_level: str = "warning") -> Server:
    """A server of the application, with limits of time that uvicorn alone does not have.

    Args:
        app: The application.
        settings: Its settings.
        log_level: "debug", "info", "warning" or "error".
    """
    logs: dict[str, Any] = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    logs["formatters"]["default"]["()"] = DiscreetFormatter
    logs["loggers"]["isthmus"] = {"handlers": ["default"], "level": log_level.upper()}
    config = uvicorn.Config(
        app,
        http=PatientProtocol,
        ws="none",
        access_log=False,  # it would tell what clients wrote into addresses
        log_config=logs,
        log_level=log_level,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, round(settings.grace)),
    )
    return Server(config, app.state.closing)
