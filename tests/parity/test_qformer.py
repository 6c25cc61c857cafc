"""The Q-Former against BLIP-2's in Transformers, queries only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from isthmus.model.connectors.qformer import QFormerConnector, Sublayer

from .reference import assert_parity, copy, scramble

IN_WIDTH, HIDDEN, HEADS, DEPTH, QUERIES, WIDTH = 10, 24, 3, 5, 4, 7


def copy_sublayer(ours: Sublayer, theirs: nn.Module) -> None:
    """BERT's attention with its output map and norm."""
    heads = theirs.attention
    copy(ours.attention.query_projection, heads.query)
    context = ours.attention.context_projection
    context.weight.data.copy_(torch.cat([heads.key.weight, heads.value.weight]))
    context.bias.data.copy_(torch.cat([heads.key.bias, heads.value.bias]))
    copy(ours.attention.out_projection, theirs.output.dense)
    copy(ours.norm, theirs.output.LayerNorm)


@pytest.mark.parametrize("cross_every", [1, 2, 3])
def test_equals_blip2(cross_every: int) -> None:
    theirs = Blip2QFormerModel(
        Blip2QFormerConfig(
            hidden_size=HIDDEN,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            intermediate_size=4 * HIDDEN,
            cross_attention_frequency=cross_every,
            encoder_hidden_size=IN_WIDTH,
            use_qformer_text_input=False,
        )
    ).eval()
    scramble(theirs)
    ours = QFormerConnector(
        IN_WIDTH,
        WIDTH,
        queries=QUERIES,
        depth=DEPTH,
        heads=HEADS,
        hidden=HIDDEN,
        cross_every=cross_every,
    )
    copy(ours.input_norm, theirs.layernorm)
    for layer, other in zip(ours.layers, theirs.encoder.layer, strict=True):
        copy_sublayer(layer.self_attention, other.attention)
        assert (layer.cross_attention is not None) == other.has_cross_attention
        if layer.cross_attention is not None:
            copy_sublayer(layer.cross_attention, other.crossattention)
        copy(layer.ffw[0], other.intermediate_query.dense)
        copy(layer.ffw[2], other.output_query.dense)
        copy(layer.norm, other.output_query.LayerNorm)

    def blip2(features: Tensor) -> Tensor:
        queries = ours.queries.expand(features.shape[0], -1, -1)
        read = theirs(query_embeds=queries, encoder_hidden_states=features).last_hidden_state
        return ours.projection(read)  # BLIP-2's language_projection

    assert_parity(ours, blip2, torch.randn(3, 6, IN_WIDTH))
