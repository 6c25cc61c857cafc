"""`resampler`: order of patches and frames, and the temporal embedding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from isthmus.errors import ConfigError
from isthmus.model.connectors.resampler import PerceiverResampler
from isthmus.testing import check_gradients


def resampler(width: int = 6, **options: Any) -> PerceiverResampler:
    return PerceiverResampler(6, width, latents=3, depth=2, heads=2, head_dim=5, **options)


def ramp(frames: int) -> PerceiverResampler:
    """A resampler whose temporal embedding counts 0, 1, 2, ... in every channel."""
    made = resampler(max_frames=frames)
    assert made.frames is not None
    made.frames.data.copy_(torch.arange(float(frames))[:, None].expand(frames, 6))
    return made


def test_the_order_of_patches_does_not_matter() -> None:
    made, features = resampler(), torch.randn(2, 7, 6)
    torch.testing.assert_close(made(features[:, torch.randperm(7)]), made(features))


def test_the_order_of_frames_does() -> None:
    made, clip = resampler(max_frames=3), torch.randn(1, 3, 4, 6)
    made.frames.data.mul_(50)  # type: ignore[union-attr]
    assert (made(clip.flip(1)) - made(clip)).abs().max() > 1e-3
    within = clip[:, :, torch.randperm(4)]  # inside a frame it still does not
    torch.testing.assert_close(made(within), made(clip))


def test_a_image_has_no_place_in_time() -> None:
    made, image = resampler(max_frames=3), torch.randn(2, 4, 6)
    without = resampler()
    without.load_state_dict({n: t for n, t in made.state_dict().items() if n != "frames"})
    assert torch.equal(made(image), without(image))
    assert not torch.allclose(made(image[:, None]), made(image))  # a clip of one frame has


def test_short_clips_take_the_first_embeddings() -> None:
    assert ramp(4).frame_embedding(3)[:, 0].tolist() == [0, 1, 2]
    assert ramp(4).frame_embedding(4)[:, 0].tolist() == [0, 1, 2, 3]


def test_clips_of_twice_the_length_stretch_the_embedding() -> None:
    """From the first to the last frame evenly, as training did: eighths of 0, 1, 2, 3."""
    stretched = ramp(4).frame_embedding(8)
    expected = torch.linspace(0, 3, 8)
    torch.testing.assert_close(stretched, expected[:, None].expand(8, 6))


def test_stretched_embeddings_are_added_frame_by_frame() -> None:
    made, clip = ramp(4), torch.randn(1, 8, 5, 6)
    placed: Tensor = clip + torch.linspace(0, 3, 8).view(1, 8, 1, 1)
    torch.testing.assert_close(made(clip), made(placed.flatten(1, 2)))


def test_without_a_temporal_embedding_clips_are_refused() -> None:
    with pytest.raises(ConfigError, match="a clip needs max_frames of at least 1"):
        resampler()(torch.zeros(1, 2, 4, 6))


def test_a_clip_trains_everything() -> None:
    made = resampler(width=9, max_frames=3)
    made(torch.randn(2, 5, 4, 6)).square().sum().backward()  # stretched: 5 frames of 3
    check_gradients(made)
    assert all(p.grad.abs().max() > 0 for p in made.parameters() if p.grad is not None)


def test_another_width_is_one_linear_map_at_the_end() -> None:
    same, other = resampler(), resampler(width=9)
    other.load_state_dict(same.state_dict(), strict=False)
    assert not any(n.startswith("projection") for n in same.state_dict())
    features = torch.randn(2, 7, 6)
    torch.testing.assert_close(other(features), other.projection(same(features)))
