"""Clips: images in order, as frames. Pure: no torch."""

from __future__ import annotations

from typing import Any

from isthmus.errors import MediaError
from isthmus.media.kinds import KINDS


@KINDS.register("clip")
class ClipKind:
    """Clips; a file holds one frame of them, or features of one."""

    tag = "<video>"
    keys = ("video", "frames")
    parts = ("video",)
    endings = ()

    @staticmethod
    def open(data: bytes) -> Any:
        """No file holds a clip.

        Raises:
            MediaError: Always.
        """
        raise MediaError("a clip is a list of frames: extract the video's frames first")
