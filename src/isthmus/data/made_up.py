"""Words that mean nothing, for things that have no name. Pure: no torch."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

ONSETS = (*"bdfgklmnprstvz", "bl", "dr", "fl", "gr", "kl", "pl", "sn", "st", "tr", "sh", "ch")
NUCLEI = (*"aeiou", "ee", "oo", "ai")
CODAS = ("", "", "", *"bdgklmnprstx", "nd", "sk")

RUDE = (
    *("shit", "fuk", "fuck", "nig", "dik", "tit", "kunt", "cunt", "sex", "fag", "rape", "pis"),
    "nazi",
)
TESTED = (
    *("dax", "blicket", "wug", "toma", "zup", "fep", "modi", "tufa"),
    *("kiki", "bosa", "perpo", "gazzer", "lorp", "vash", "nindi", "sarn"),
)
"""Names of the evaluation tasks on fast binding; training makes up others."""


def made_up_name(rng: np.random.Generator, taken: Collection[str] = ()) -> str:
    """A word of one or two syllables, which seldom means anything, and is none of `TESTED`.

    Args:
        rng: Decides which.
        taken: Words that are none.

    Example:
        >>> made_up_name(np.random.default_rng(0))
        'drudna'
    """
    while True:
        syllables = [
            ONSETS[rng.integers(len(ONSETS))]
            + NUCLEI[rng.integers(len(NUCLEI))]
            + CODAS[rng.integers(len(CODAS))]
            for _ in range(int(rng.integers(1, 3)))
        ]
        word = "".join(syllables)
        if not 3 <= len(word) <= 8 or word in taken or word in TESTED:
            continue
        if not any(part in word for part in RUDE):
            return word
