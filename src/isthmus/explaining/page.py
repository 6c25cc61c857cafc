"""The page of an explanation: self-contained, no script, light and dark, wide and narrow."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from isthmus.explaining.drawing import (
    gate_chart,
    overlaid,
    picture_uri,
    spread,
    times,
    word,
)
from isthmus.explaining.explanation import Explanation, NearWords, ShownImage
from isthmus.explaining.panels import panel
from isthmus.explaining.style import STYLE, picking
from isthmus.files import write_text
from isthmus.reports.html import folded, note, text
from isthmus.reports.page import page

MOST_LATENTS = 64


def write_page(found: Explanation, path: Path) -> None:
    """Writes the page of an explanation.

    Args:
        found: The explanation.
        path: Where to.

    Raises:
        OutputError: If it cannot be written.
    """
    write_text(path, explained_page(found))


def explained_page(found: Explanation) -> str:
    """The page of an explanation, as HTML."""
    title = f"{found.question or 'A caption'}: explained"
    picks: list[int | None] = [None, *range(len(found.tokens))] if len(found.tokens) > 1 else [0]
    inputs = "".join(
        f'<input class="pick" type="radio" name="token" id="t{n}"{" checked" * (n == 0)} '
        f'aria-label="{"whole answer" if token is None else escape(found.tokens[token].text)}">'
        for n, token in enumerate(picks)
    )
    labels = "".join(_label(found, n, token) for n, token in enumerate(picks))
    panels = "".join(panel(found, n, token) for n, token in enumerate(picks))
    body = [
        f"<h1>{escape(found.answer or '(no text)')}</h1>",
        f'<p class="asked">{escape(found.question or "A caption was asked for.")}</p>',
        inputs,
        f'<div class="tokens">{labels}</div>',
        note("Pick a token to see what the model looked at when it wrote it." * (len(picks) > 1)),
        f'<div class="panels">{panels}</div>',
        _without(found),
        _gates(found),
        _made_of(found),
        _words(found),
        f"<section><h2>The prompt</h2><pre>{escape(found.prompt)}</pre></section>",
        _reading(found),
    ]
    return page(title, "".join(body), STYLE + picking(len(picks)) + _pictures(found))


def _pictures(found: Explanation) -> str:
    """The pictures, each once, for all figures that show them."""
    rules = []
    for number, image in enumerate(found.images):
        if image.picture is not None:
            wide, high = image.picture.size
            rules.append(
                f".seen-{number}{{--picture:url({picture_uri(image.picture)});"
                f"aspect-ratio:{wide}/{high}}}"
            )
    return "".join(rules)


def _label(found: Explanation, number: int, token: int | None) -> str:
    """What is picked, with how likely it was; None is the whole answer."""
    if token is None:
        shown, logprob = "whole answer", sum(token.logprob for token in found.tokens)
    else:
        shown, logprob = word(found.tokens[token].text), found.tokens[token].logprob
    return f'<label for="t{number}">{escape(shown)}<small>{_chance(logprob)}</small></label>'


def _chance(logprob: float) -> str:
    """A probability, of a logarithm."""
    share = math.exp(min(0.0, logprob))
    return f"{100 * share:.1f}%" if share >= 0.001 else f"{share:.0e}"


def _without(found: Explanation) -> str:
    """What the answer is without the image."""
    blanked = found.blanked
    if blanked is None:
        return ""
    change = float(blanked.change.sum())
    images = "the image" if len(found.images) == 1 else "the images"
    same = blanked.answer == found.answer
    sentence = (
        f"With {images} all grey it answers the same."
        if same
        else f"With {images} all grey it answers: \u201c{blanked.answer}\u201d."
    )
    return (
        f"<section><h2>Without {images}</h2>"
        f'<p class="callout">{escape(sentence)} '
        f"The answer above is then {times(change)}.</p></section>"
    )


def _gates(found: Explanation) -> str:
    if found.blocks is None or not any(found.blocks.gates):
        return ""
    return (
        "<section><h2>How far the gates are open</h2>"
        + text(
            "Each block adds what it reads times tanh of its gate. At 0 it adds nothing, whatever "
            "its attention looks at."
        )
        + gate_chart(found.blocks.layers, found.blocks.gates)
        + note("By the number of the decoder layer that the block stands before.")
        + "</section>"
    )


def _made_of(found: Explanation) -> str:
    """What visual tokens are made of, where they are no patches themselves."""
    parts = []
    for number, image in enumerate(found.images):
        if image.picture is None or image.shares is None or image.grid is None or image.cells:
            continue
        maps = image.shares.unflatten(-1, image.grid)  # type: ignore[no-untyped-call]
        small = "".join(
            overlaid(number, maps[m], image.labels[m], small=True)
            for m in spread(len(maps), MOST_LATENTS)
        )
        heading = f"<h3>{escape(image.name)}</h3>" if len(found.images) > 1 else ""
        parts.append(f'{heading}<div class="figures">{small}</div>')
    if not parts:
        return ""
    told = text(
        "Each visual token is gathered from the patches. Through several layers of attention it "
        "is followed by attention rollout (Abnar and Zuidema 2020). The maps above are the "
        "attention to visual tokens, composed with these."
    )
    return f"<section><h2>What visual tokens are made of</h2>{told}{''.join(parts)}</section>"


def _words(found: Explanation) -> str:
    """The words nearest to visual tokens."""
    parts = []
    for image, near in zip(found.images, found.words, strict=True):
        if near is None:
            continue
        heading = f"<h3>{escape(image.name)}</h3>" if len(found.images) > 1 else ""
        parts.append(heading + (_on_grid(image, near) if image.cells else _listed(image, near)))
    if not parts:
        return ""
    told = text(
        "At the input: the word whose embedding is nearest, with the cosine. After a layer: the "
        "word that the head would write there (logit lens), with its probability."
    )
    return f"<section><h2>Visual tokens as words</h2>{told}{''.join(parts)}</section>"


def _near(words: tuple[tuple[str, float], ...]) -> str:
    """A cell: the nearest word, its number, and the next ones for whoever points at it."""
    (nearest, value), *_ = words
    others = ", ".join(f"{word(w)} {v:.2f}" for w, v in words)
    return f'<td title="{escape(others)}">{escape(word(nearest))}<small>{value:.2f}</small></td>'


def _listed(image: ShownImage, near: NearWords) -> str:
    heads = "".join(f"<th>{escape(layer)}</th>" for layer in near.layers)
    rows = "".join(
        f"<tr><th>{escape(label)}</th>{''.join(_near(table[m]) for table in near.words)}</tr>"
        for m, label in enumerate(image.labels)
    )
    return (
        f'<div class="table"><table class="near"><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _on_grid(image: ShownImage, near: NearWords) -> str:
    """A table for each layer, laid out as the image is; the first and the last are open."""
    assert image.cells is not None
    rows, columns = image.cells
    parts = []
    for layer, table in zip(near.layers, near.words, strict=True):
        cells = "".join(
            f"<tr>{''.join(_near(table[row * columns + column]) for column in range(columns))}</tr>"
            for row in range(rows)
        )
        whole = f'<div class="table"><table class="near"><tbody>{cells}</tbody></table></div>'
        is_open = layer in (near.layers[0], near.layers[-1])
        made = folded(layer, whole)
        parts.append(made.replace("<details>", "<details open>") if is_open else made)
    return "".join(parts)


def _reading(found: Explanation) -> str:
    """How to read the page, and what it leaves out."""
    first = any(0 in image.text for image in found.images)
    notes = "".join(note(each) for each in found.notes)
    return (
        "<section><h2>How to read this</h2>"
        + text(
            "Attention says which positions were read, not what was made of them: a different "
            "attention may give the same answer (Jain and Wallace 2019). Much of it often goes to "
            "the first token, where it does little (Xiao et al. 2024)"
            + (", and here that is a visual token." if first else "."),
            "What happens when a part is covered is measured on the answer itself; a grey square "
            "is also something that the model has rarely seen.",
        )
        + notes
        + "</section>"
    )
