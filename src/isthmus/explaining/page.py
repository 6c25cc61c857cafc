"""The page of an explanation: self-contained, no script, light and dark, wide and narrow."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from torch import Tensor

from isthmus.explaining.drawing import (
    bar,
    gate_chart,
    overlaid,
    picture_uri,
    png,
    stacked_shares,
    strip,
)
from isthmus.explaining.explanation import Explanation, NearWords, ShownImage
from isthmus.explaining.style import STYLE, picking
from isthmus.files import write_text
from isthmus.reports.html import folded, note, percent, text
from isthmus.reports.page import page

MOST_LAYERS = 12
"""Small maps of a token, at most: others between them are left out."""
MOST_BARS = 160
"""Visual tokens that are listed, at most; of more, those that were looked at most."""
MOST_LATENTS = 64
LEAST_CHANGE = 0.1
"""A change of a log-probability that is dense in a map, at least: a smaller one is hardly any."""
LEADS = {
    "text": "Attention from the text to the image",
    "blocks": "Attention of the gated blocks to the image",
}


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
    panels = "".join(_panel(found, n, token) for n, token in enumerate(picks))
    body = [
        f"<h1>{escape(found.answer or '(an empty answer)')}</h1>",
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
        shown, logprob = _word(found.tokens[token].text), found.tokens[token].logprob
    return f'<label for="t{number}">{escape(shown)}<small>{_chance(logprob)}</small></label>'


def _chance(logprob: float) -> str:
    """A probability, of a logarithm."""
    share = math.exp(min(0.0, logprob))
    return f"{100 * share:.1f}%" if share >= 0.001 else f"{share:.0e}"


def _panel(found: Explanation, number: int, token: int | None) -> str:
    """All that is shown of a token; None is the whole answer, the mean of its tokens."""
    parts = [_where(found, token)]
    for place, image in enumerate(found.images):
        heading = f"<h3>{escape(image.name)}</h3>" if len(found.images) > 1 else ""
        parts.append(heading + _figures(found, place, token))
        for kind in found.kinds:
            if kind == "blocks" or image.text:
                parts.append(_by_layer(found, place, token, kind))
    return f'<div class="panel p{number}">{"".join(parts)}</div>'


def _attention(found: Explanation, image: int, token: int | None, kind: str) -> Tensor:
    """(K, M) of a token, or the mean of all."""
    weights = found.attention(image, kind)
    return weights.mean(dim=0) if token is None else weights[token]


def _where(found: Explanation, token: int | None) -> str:
    """Where the decoder's attention goes, in shares."""
    if found.text is None:
        return ""
    weights = found.text.weights.mean(dim=1)  # (T, L)
    own = weights.mean(dim=0) if token is None else weights[token]
    shares, left = {}, own.clone()
    for image in found.images:
        if image.text:
            shares[image.name] = float(own[list(image.text)].sum())
            left[list(image.text)] = 0
    if float(left[0]):
        shares["first token"] = float(left[0])
    answer = len(own) - len(found.tokens) + 1
    shares["rest of the prompt"] = float(left[1:answer].sum())
    if len(found.tokens) > 1:
        shares["answer so far"] = float(left[answer:].sum())
    return "<h3>Where attention goes, mean of all layers</h3>" + stacked_shares(shares)


def _figures(found: Explanation, place: int, token: int | None) -> str:
    """The picture, the map of attention, and the map of what happens when a part is covered."""
    image, figures = found.images[place], []
    if image.picture is None:
        return ""
    figures.append(
        f'<figure class="over"><div class="seen plain seen-{place}" role="img" '
        f'aria-label="{escape(image.name)}"></div><figcaption>As the model sees it.</figcaption>'
        "</figure>"
    )
    for kind in found.kinds:
        if kind == "text" and not image.text:
            continue
        own = _attention(found, place, token, kind).mean(dim=0)
        values = image.on_grid(own)
        if values is not None:
            figures.append(
                overlaid(place, values, f"{LEADS[kind]}, mean of all{_share(found, kind, own)}.")
            )
    covered = found.covered[place]
    if covered is not None:
        change = covered.map(token)
        most = float(change.min())
        stays = sum(covered.stays)
        figures.append(
            overlaid(
                place,
                -change,
                largest=max(float(change.abs().max()), LEAST_CHANGE),
                "Each part covered by itself. Orange: without it less likely, down to "
                f"{_times(most)}. Blue: more likely. "
                f"The answer stays with {stays} of {len(covered.stays)} covered.",
            )
        )
    return f'<div class="figures">{"".join(figures)}</div>'


def _times(change: float) -> str:
    """How many times as likely, of a change of a logarithm.

    Example:
        >>> _times(0.0), _times(-4.6)
        ('1 times as likely', '0.01 times as likely')
    """
    return f"{math.exp(change):.2g} times as likely"


def _by_layer(found: Explanation, place: int, token: int | None, kind: str) -> str:
    """Attention by layer: small maps, or bars where visual tokens are no parts of the image."""
    image = found.images[place]
    source = found.text if kind == "text" else found.blocks
    assert source is not None
    own = _attention(found, place, token, kind)
    maps = image.on_grid(own)
    if maps is None or image.picture is None:
        return _bars(found, place, own, source.layers)
    kept = _spread(len(source.layers), MOST_LAYERS)
    small = "".join(
        overlaid(
            place,
            maps[k],
            f"{_layer(found, kind, k)}{_share(found, kind, own[k])}",
            small=True,
        )
        for k in kept
    )
    return (
        f"<h3>{LEADS[kind]}, by layer</h3>"
        + note(
            "Each map has a scale of its own, from 0 to its largest value: where all is orange, "
            "all was read alike."
        )
        + f'<div class="figures">{small}</div>'
    )


def _layer(found: Explanation, kind: str, number: int) -> str:
    """What a layer, or a block with its gate, is called."""
    if kind == "text" or found.blocks is None:
        assert found.text is not None
        return f"layer {found.text.layers[number]}"
    gate = found.blocks.gates[number].get("attention")
    told = "" if gate is None else f", gate {gate:.2g}"
    return f"before layer {found.blocks.layers[number]}{told}"


def _share(found: Explanation, kind: str, weights: Tensor) -> str:
    """The share of attention that goes to an image, where it could go elsewhere."""
    alone = kind == "blocks" and len(found.images) == 1
    return "" if alone else f": {percent(float(weights.sum()))} of it"


def _spread(count: int, most: int) -> list[int]:
    """Numbers from 0 to count, at most so many, evenly spread.

    Example:
        >>> _spread(3, 5), _spread(30, 4)
        ([0, 1, 2], [0, 10, 19, 29])
    """
    if count <= most:
        return list(range(count))
    return [round(k * (count - 1) / (most - 1)) for k in range(most)]


def _bars(found: Explanation, place: int, own: Tensor, layers: tuple[int, ...]) -> str:
    """Attention (K, M) to visual tokens as bars, with a strip of the layers."""
    image, near = found.images[place], found.words[place]
    means, largest = own.mean(dim=0), float(own.max())
    most = float(means.max())
    listed = range(len(means))
    if len(means) > MOST_BARS:
        listed = sorted(means.topk(MOST_BARS).indices.tolist())  # type: ignore[assignment]
    rows = []
    for m in listed:
        word = escape(_word(near.words[0][m][0][0])) if near else ""
        rows.append(
            f'<tr><td>{escape(image.labels[m])}</td><td class="word">{word}</td>'
            f"<td>{bar(float(means[m]), most)}</td><td>{percent(float(means[m]), 2)}</td>"
            f"<td>{strip(own[:, m], largest)}</td></tr>"
        )
    span = f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"
    left = len(means) - len(rows)
    return (
        "<h3>Attention to visual tokens</h3>"
        f'<div class="table"><table class="bars"><thead><tr><th>visual token</th>'
        f"<th>{'nearest word' if near else ''}</th><th>attention</th><th></th><th>{span}</th></tr>"
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
        + note(f"{left} more that were looked at less are left out." if left else "")
    )


def _word(word: str) -> str:
    """A word with its white space in sight.

    Example:
        >>> _word(" cat\\n"), _word("\\t")
        ('\u2423cat\u21b5', '\u21e5')
    """
    for space, sign in ((" ", "\u2423"), ("\n", "\u21b5"), ("\t", "\u21e5")):
        word = word.replace(space, sign)
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in word) or "\u2205"


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
        f"The answer above is then {_times(change)}.</p></section>"
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
            for m in _spread(len(maps), MOST_LATENTS)
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
    (word, value), *_ = words
    others = ", ".join(f"{_word(w)} {v:.2f}" for w, v in words)
    return f'<td title="{escape(others)}">{escape(_word(word))}<small>{value:.2f}</small></td>'


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


__all__ = ["explained_page", "png", "write_page"]
