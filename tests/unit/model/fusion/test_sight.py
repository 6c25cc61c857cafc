from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isthmus.model.fusion.sight import Sight, first_image, group_tokens, image_of_token


def brute_force(tags: list[list[int]], mask: list[list[int]]) -> list[list[int]]:
    """phi by the definition: the last image at or before the token, in reading order."""
    result, before = [], 0
    for row, kept in zip(tags, mask, strict=True):
        result.append(
            [
                (before + sum(row[: i + 1]) - 1) if sum(row[: i + 1]) and kept[i] else -1
                for i in range(len(row))
            ]
        )
        before += sum(row)
    return result


rows = st.integers(1, 7).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 1), min_size=n, max_size=n), min_size=1, max_size=4)
)


@given(rows, st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_image_of_token_is_the_definition(tags: list[list[int]], padding: int) -> None:
    length = len(tags[0])
    mask = [[0] * min(padding, length) + [1] * max(0, length - padding) for _ in tags]
    tags = [[t * m for t, m in zip(r, k, strict=True)] for r, k in zip(tags, mask, strict=True)]
    got = image_of_token(torch.tensor(tags).bool(), torch.tensor(mask))
    assert got.tolist() == brute_force(tags, mask)


@given(rows)
@settings(max_examples=200, deadline=None)
def test_segments_cover_each_seeing_token_once(tags: list[list[int]]) -> None:
    seen = image_of_token(torch.tensor(tags).bool(), torch.ones(len(tags), len(tags[0])))
    segments = group_tokens(seen)
    flat = seen.flatten()
    if segments is None:
        assert (flat < 0).all()
        return
    index = segments.index[segments.valid]
    assert sorted(index.tolist()) == (flat >= 0).nonzero().flatten().tolist()
    images = segments.image[:, None].expand_as(segments.index)[segments.valid]
    assert torch.equal(flat[index], images)
    rows_ = segments.row[:, None].expand_as(segments.index)[segments.valid]
    assert torch.equal(index // len(tags[0]), rows_)


def test_decoded_tokens_see_the_last_image_and_beams_repeat_rows() -> None:
    tags = torch.tensor([[1, 0, 1], [0, 0, 0]]).bool()
    prompt = image_of_token(tags, torch.ones(2, 3))
    sight = Sight(visual=torch.zeros(2, 1, 1), prompt=prompt, begin=first_image(tags))
    sight.advance(rows=4, length=2, past=2)
    assert sight.seen is not None
    assert sight.seen.tolist() == [[1, 1], [1, 1], [-1, -1], [-1, -1]]
    assert sight.segments is not None
    assert sight.segments.row.tolist() == [0, 1]


def test_narrowing_keeps_one_image_a_row() -> None:
    tags = torch.tensor([[1, 1], [0, 0], [1, 0]]).bool()
    prompt = image_of_token(tags, torch.ones(3, 2))
    visual = torch.arange(3.0)[:, None, None]
    kept = {0: (visual, visual)}
    sight = Sight(visual=visual, prompt=prompt, begin=first_image(tags), keys_values=kept)
    sight.narrow()
    assert sight.visual[[0, 2], 0, 0].tolist() == [1.0, 2.0]
    assert sight.last.tolist() == [0, -1, 2]
    assert sight.keys_values[0][0][[0, 2], 0, 0].tolist() == [1.0, 2.0]
