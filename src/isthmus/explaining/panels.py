"""What the page shows of one token: where attention goes, maps over the images, layers, heads."""

from __future__ import annotations

from html import escape

from torch import Tensor

from isthmus.explaining.drawing import bar, overlaid, spread, stacked_shares, strip, times, word
from isthmus.explaining.explanation import Explanation
from isthmus.reports.html import folded, note, percent

MOST_LAYERS = 12
"""Small maps of a token, at most: others between them are left out."""
MOST_BARS = 160
"""Visual tokens that are listed, at most; of more, those that were looked at most."""
LEAST_CHANGE = 0.1
"""A change of a log-probability that is dense in a map, at least: a smaller one is hardly any."""
LEADS = {
    "text": "Attention from the text to the image",
    "blocks": "Attention of the gated blocks to the image",
}


def panel(found: Explanation, number: int, token: int | None) -> str:
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
                "Each part covered by itself. Orange: without it less likely, down to "
                f"{times(most)}. Blue: more likely. "
                f"The answer stays the same for {stays} of {len(covered.stays)} parts.",
                largest=max(float(change.abs().max()), LEAST_CHANGE),
            )
        )
    return f'<div class="figures">{"".join(figures)}</div>'


def _by_layer(found: Explanation, place: int, token: int | None, kind: str) -> str:
    """Attention by layer: small maps, or bars where visual tokens are no parts of the image."""
    image = found.images[place]
    source = found.text if kind == "text" else found.blocks
    assert source is not None
    own = _attention(found, place, token, kind)
    each = found.heads(place, kind)  # (T, K, H, M)
    heads = None if each is None else each.mean(dim=0) if token is None else each[token]
    maps = image.on_grid(own)
    if maps is None or image.picture is None:
        return _bars(found, place, own, source.layers, heads)
    kept = spread(len(source.layers), MOST_LAYERS)
    small = "".join(
        overlaid(
            place,
            maps[k],
            f"{_layer(found, kind, k)}{_share(found, kind, own[k])}",
            small=True,
        )
        for k in kept
    )
    by_head = "" if heads is None else _by_head(found, place, kind, heads[kept], kept)
    return (
        f"<h3>{LEADS[kind]}, by layer</h3>"
        + note(
            "Each map has a scale of its own, from 0 to its largest value: where all is orange, "
            "all was read alike."
        )
        + f'<div class="figures">{small}</div>{by_head}'
    )


def _by_head(found: Explanation, place: int, kind: str, heads: Tensor, layers: list[int]) -> str:
    """Maps of single heads (K, H, M) of some layers, to be opened."""
    image, parts = found.images[place], []
    for own, k in zip(heads, layers, strict=True):
        maps = image.on_grid(own)
        assert maps is not None
        small = "".join(
            overlaid(place, maps[h], f"head {h}{_share(found, kind, own[h])}", small=True)
            for h in range(len(maps))
        )
        parts.append(folded(_layer(found, kind, k), f'<div class="figures">{small}</div>'))
    return folded("By head", "".join(parts))


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


def _bars(
    found: Explanation,
    place: int,
    own: Tensor,
    layers: tuple[int, ...],
    heads: Tensor | None,
) -> str:
    """Attention (K, M) to visual tokens as bars, with a strip of the layers.

    Where there are heads (K, H, M), each has a row in the strip.
    """
    image, near = found.images[place], found.words[place]
    fine = own[:, None] if heads is None else heads
    means, largest = own.mean(dim=0), float(fine.max())
    most = float(means.max())
    listed = range(len(means))
    if len(means) > MOST_BARS:
        listed = sorted(means.topk(MOST_BARS).indices.tolist())  # type: ignore[assignment]
    rows = []
    for m in listed:
        nearest = escape(word(near.words[0][m][0][0])) if near else ""
        rows.append(
            f'<tr><td>{escape(image.labels[m])}</td><td class="word">{nearest}</td>'
            f"<td>{bar(float(means[m]), most)}</td><td>{percent(float(means[m]), 2)}</td>"
            f"<td>{strip(fine[..., m].T, largest)}</td></tr>"
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
