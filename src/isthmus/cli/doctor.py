"""`isthmus doctor`."""

from __future__ import annotations

from isthmus.cli.options import Json


def doctor(json_: Json = False) -> None:
    """Print versions, the machine and what is cached, for a bug report.

    No model is loaded. User names, folders of the user and secrets are left out.
    """
    from isthmus.cli.output import print_json
    from isthmus.diagnosis import diagnose

    found = diagnose()
    if json_:
        print_json(found.as_dict())
    else:
        print(found)
