"""The tensors of nanoVLM's `model.safetensors`, by the names of Transformers' classes.

nanoVLM keeps queries, keys and values of its vision tower in one matrix, and of a head that is tied
to the embedding one table under either name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from isthmus.errors import CheckpointError

TOWER = {
    "embeddings.patch_embedding": "patch_embedding.conv",
    "embeddings.position_embedding.weight": "patch_embedding.position_embedding",
    "post_layernorm": "layer_norm",
}
TOWER_LAYER = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp": "mlp",
}
DECODER = {
    "model.embed_tokens": "token_embedding",
    "model.norm": "norm",
    "lm_head": "head",
}
DECODER_LAYER = {
    "input_layernorm": "norm1",
    "post_attention_layernorm": "norm2",
    "self_attn.o_proj": "attn.out_proj",
    "self_attn": "attn",
    "mlp": "mlp",
}
"""nanoVLM's names by Transformers', of parts whose tensors keep theirs."""
EMBEDDING, HEAD = "decoder.token_embedding.weight", "decoder.head.weight"
BUFFER = "decoder.rotary_embd.inv_freq"
"""What nanoVLM saves besides its weights."""


def _begun(name: str, names: Mapping[str, str]) -> str:
    """A name whose beginning is nanoVLM's."""
    ours, theirs = next((o, t) for o, t in names.items() if name == o or name.startswith(f"{o}."))
    return theirs + name[len(ours) :]


def their_name(ours: str) -> tuple[str, int | None]:
    """The name in nanoVLM of a tensor of `NanoModules`, and which third of it this is.

    Example:
        >>> their_name("language.model.layers.3.self_attn.q_proj.weight")
        ('decoder.blocks.3.attn.q_proj.weight', None)
        >>> their_name("tower.encoder.layers.0.self_attn.k_proj.bias")
        ('vision_encoder.blocks.0.attn.qkv_proj.bias', 1)
    """
    part, _, name = ours.partition(".")
    if part == "projector":
        return f"MP.proj.{name}", None
    if part == "tower":
        name = name.removeprefix("vision_model.")  # which some versions of Transformers have
        if not (layer := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", name)):
            return f"vision_encoder.{_begun(name, TOWER)}", None
        at = f"vision_encoder.blocks.{layer[1]}"
        if third := re.fullmatch(r"self_attn\.([qkv])_proj\.(.+)", layer[2]):
            return f"{at}.attn.qkv_proj.{third[2]}", "qkv".index(third[1])
        return f"{at}.{_begun(layer[2], TOWER_LAYER)}", None
    if layer := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name):
        return f"decoder.blocks.{layer[1]}.{_begun(layer[2], DECODER_LAYER)}", None
    return f"decoder.{_begun(name, DECODER)}", None


def renamed(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], *, tied: bool, place: str
) -> dict[str, Tensor]:
    """A file's tensors by the names of `NanoModules`.

    Args:
        state: The file's.
        own: Those of `NanoModules`, which tell names and shapes.
        tied: Whether the head is the embedding's own table.
        place: Where the file is from, for messages.

    Raises:
        CheckpointError: If tensors are missing, unexpected or of another shape.
    """
    left = {name: tensor for name, tensor in state.items() if name != BUFFER}
    if tied:  # the file has the table once
        table = left.get(EMBEDDING, left.get(HEAD))
        left |= {} if table is None else {EMBEDDING: table, HEAD: table}
    found: dict[str, Tensor] = {}
    wrong: list[str] = []
    names = {ours: their_name(ours) for ours in own}
    for ours, (theirs, third) in names.items():
        if theirs not in left:
            wrong.append(f"{theirs} is missing")
            continue
        expected = tuple(own[ours].shape)
        if third is not None:
            expected = (3 * expected[0], *expected[1:])
        tensor = left[theirs]
        if theirs.endswith("position_embedding") and tensor.ndim == 3 and len(tensor) == 1:
            tensor = tensor[0]
        if tuple(tensor.shape) != expected:
            wrong.append(f"{theirs} is {tuple(tensor.shape)}, expected {expected}")
            continue
        found[ours] = tensor if third is None else tensor.chunk(3)[third]
    wrong = list(dict.fromkeys(wrong))  # three of ours may be of one of theirs
    known = {theirs for theirs, _ in names.values()}
    wrong += [f"{name} is unexpected" for name in sorted(left.keys() - known)]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise CheckpointError(
            f'the weights of "{place}" do not fit its config.json: {"; ".join(wrong[:3])}{more}'
        )
    return found
