"""nanoVLM's forward pass as published, over the tensors of its file by their names in it.

Written for the tests from the description of the model (huggingface.co/blog/nanovlm): a SigLIP, a
pixel shuffle with one linear map, a Llama. Letters: T tiles, N patches, M visual tokens, L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as T


@dataclass
class Reference:
    """The model.

    Args:
        state: Tensors by their names in the file.
        told: `config.json`.
    """

    state: Mapping[str, Tensor]
    told: Mapping[str, Any]

    # --- images -------------------------------------------------------------------------------

    def tiles(self, image: Image.Image) -> tuple[Tensor, tuple[int, int]]:
        """Tiles (T, 3, H, W), the whole image first where the model has it, and their grid."""
        side = self.told["vit_img_size"]
        image = image.convert("RGB")
        if "max_img_size" not in self.told:
            return T.to_tensor(T.resize(image, [side, side]))[None], (1, 1)
        width, height = image.size
        most = self.told["max_img_size"]
        long = math.ceil(max(width, height) / side) * side
        long = most if self.told["resize_to_max_side_len"] else min(most, long)
        scale = long / max(width, height)
        short = max(side, math.ceil(min(width, height) * scale / side) * side)
        size = [short, long] if width >= height else [long, short]
        pixels = T.to_tensor(T.resize(image, size, InterpolationMode.BICUBIC))
        rows, columns = size[0] // side, size[1] // side
        cut = [
            pixels[:, r * side : (r + 1) * side, c * side : (c + 1) * side]
            for r in range(rows)
            for c in range(columns)
        ]
        if "global_image_token" in self.told["vlm_extra_tokens"] and len(cut) > 1:
            cut = [T.resize(pixels, [side, side], antialias=True), *cut]
        return torch.stack(cut), (rows, columns)

    def text(self, grid: tuple[int, int]) -> str:
        """What stands in the text for an image."""
        tokens = self.told["vlm_extra_tokens"]
        image = tokens["image_token"] * self.told["mp_image_token_length"]
        if "max_img_size" not in self.told:
            return image
        text = ""
        if "global_image_token" in tokens:
            text = tokens["global_image_token"] + image
            if grid == (1, 1):
                return text
        for row in range(grid[0]):
            for column in range(grid[1]):
                text += tokens[f"r{row + 1}c{column + 1}"] + image
        return text

    def visual(self, tiles: Tensor) -> Tensor:
        """Visual tokens (T, M, D) of tiles."""
        x = F.conv2d(
            tiles,
            self._of("vision_encoder.patch_embedding.conv.weight"),
            self._of("vision_encoder.patch_embedding.conv.bias"),
            stride=self.told["vit_patch_size"],
        )
        x = x.flatten(2).mT + self._of("vision_encoder.patch_embedding.position_embedding")
        for number in range(self.told["vit_n_blocks"]):
            at = f"vision_encoder.blocks.{number}"
            y = self._norm(f"{at}.ln1", x)
            q, k, v = self._linear(f"{at}.attn.qkv_proj", y).chunk(3, dim=-1)
            heads = self.told["vit_n_heads"]
            y = self._attend(q, k, v, heads, heads, causal=False)
            x = x + self._linear(f"{at}.attn.out_proj", y)
            y = self._linear(f"{at}.mlp.fc1", self._norm(f"{at}.ln2", x))
            x = x + self._linear(f"{at}.mlp.fc2", F.gelu(y, approximate="tanh"))
        x = self._norm("vision_encoder.layer_norm", x)
        factor, side = self.told["mp_pixel_shuffle_factor"], math.isqrt(x.shape[1])
        squares = x.view(len(x), side // factor, factor, side // factor, factor, -1)
        squares = squares.transpose(2, 3).reshape(len(x), -1, factor**2 * x.shape[-1])
        return self._linear("MP.proj", squares)

    # --- text ---------------------------------------------------------------------------------

    @torch.no_grad()
    def logits(self, ids: Tensor, tiles: Tensor | None, image_id: int) -> Tensor:
        """Logits (L, V) of token ids (L,), tiles in the places of the image's token."""
        name = "decoder.token_embedding.weight"
        table = self.state[name] if name in self.state else self._of("decoder.head.weight")
        x = table[ids.clamp(max=len(table) - 1)]
        if tiles is not None:
            x[ids == image_id] = self.visual(tiles).flatten(0, 1)
        x = x[None]
        for number in range(self.told["lm_n_blocks"]):
            at = f"decoder.blocks.{number}"
            y = self._rms(f"{at}.norm1", x)
            q, k, v = (self._linear(f"{at}.attn.{part}_proj", y) for part in "qkv")
            heads, keys = self.told["lm_n_heads"], self.told["lm_n_kv_heads"]
            y = self._attend(self._turned(q), self._turned(k), v, heads, keys, causal=True)
            x = x + self._linear(f"{at}.attn.out_proj", y)
            y = self._rms(f"{at}.norm2", x)
            gate = F.silu(self._linear(f"{at}.mlp.gate_proj", y))
            x = x + self._linear(f"{at}.mlp.down_proj", gate * self._linear(f"{at}.mlp.up_proj", y))
        head = self.state.get("decoder.head.weight", table)
        return (self._rms("decoder.norm", x) @ head.T)[0]

    def greedy(self, ids: Tensor, tiles: Tensor | None, image_id: int, new: int) -> list[int]:
        """The most likely tokens, one after another, the image's left out."""
        made: list[int] = []
        for _ in range(new):
            last = self.logits(torch.cat([ids, ids.new_tensor(made)]), tiles, image_id)[-1]
            if image_id < len(last):
                last[image_id] = -math.inf
            made.append(int(last.argmax()))
        return made

    def _turned(self, x: Tensor) -> Tensor:
        """Queries or keys (1, L, ...) turned by their positions."""
        width = self.told["lm_hidden_dim"] // self.told["lm_n_heads"]
        x = x.unflatten(-1, (-1, width))
        angles = torch.arange(x.shape[1])[:, None] * self._of("decoder.rotary_embd.inv_freq")
        angles = torch.cat([angles, angles], dim=-1)[:, None]
        half = torch.cat([-x[..., width // 2 :], x[..., : width // 2]], dim=-1)
        return (x * angles.cos() + half * angles.sin()).flatten(-2)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, heads: int, keys: int, *, causal: bool
    ) -> Tensor:
        q = q.unflatten(-1, (heads, -1)).transpose(1, 2)
        k, v = (
            t.unflatten(-1, (keys, -1)).transpose(1, 2).repeat_interleave(heads // keys, dim=1)
            for t in (k, v)
        )
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if causal:
            later = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._of(f"{name}.weight"), self.state.get(f"{name}.bias"))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self._of(f"{name}.weight"), self._of(f"{name}.bias")
        return F.layer_norm(x, weight.shape, weight, bias, self.told["vit_ln_eps"])

    def _rms(self, name: str, x: Tensor) -> Tensor:
        size = x.square().mean(dim=-1, keepdim=True) + self.told["lm_rms_eps"]
        return x * size.rsqrt() * self._of(f"{name}.weight")

    def _of(self, name: str) -> Tensor:
        return self.state[name]
