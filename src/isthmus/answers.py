"""Finding the answer in what a model wrote. Pure: no torch."""

from __future__ import annotations

from typing import Literal

AnswerKind = Literal["number", "choice", "yes_no", "label", "text"]
"""What an answer is: a number; a letter of a multiple choice; yes or no; one of given labels; or
any text."""
