"""`llava`: LLaVA-1.5 and what was built like it, Transformers' `LlavaForConditionalGeneration`.

The features of one layer of a CLIP or SigLIP tower go through two linear layers with a GELU between
them, and stand in the text in place of `<image>` (Liu et al. 2023, arXiv 2310.03744, section 3).
The strategy "default" drops the first token, CLIP's class token; "full" keeps all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from isthmus.config.registry import RELEASED
from isthmus.errors import ConfigError
from isthmus.model.backbones.released import Modules, Plan
from isthmus.model.connectors.mlp import MLP

TOWERS = ("clip_vision_model", "siglip_vision_model")
"""Vision towers that read pixels of one size, by their model types."""
LOGIT_OPTIONS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)
"""What causal language models of Transformers do behind their head, and LLaVA's class does not."""


def read_layer(config: Any, name: str) -> int:
    """The one layer of the vision tower that a model reads.

    Args:
        config: Its configuration.
        name: What messages call it.

    Raises:
        ConfigError: If it reads several side by side.
    """
    layers = config.vision_feature_layer
    if not isinstance(layers, int):
        if len(layers) != 1:
            raise ConfigError(
                f"this {name} reads the layers {list(layers)} of its vision tower side by side: "
                "expected one layer, since a vision encoder here reads one"
            )
        [layers] = layers
    return int(layers)


def refuse_other_projector(config: Any, name: str) -> None:
    """Refuses a projector with another activation than our connectors have.

    Raises:
        ConfigError: If it has another.
    """
    if config.projector_hidden_act != "gelu":
        raise ConfigError(
            f'this {name}\'s projector has the activation "{config.projector_hidden_act}": '
            'expected "gelu", which the connector mlp has'
        )


def refuse_logit_options(config: Any, name: str, architecture: str) -> None:
    """Refuses a language model that changes logits behind its head.

    Raises:
        ConfigError: If it does.
    """
    for option in LOGIT_OPTIONS:
        value = getattr(config.text_config, option, None)
        if value not in (None, 1):
            raise ConfigError(
                f"this {name}'s language model ({config.text_config.model_type}) has {option} = "
                f"{value}, which changes its logits and which {architecture} leaves out: "
                "expected a language model whose logits are those of its head"
            )


def named(layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Tensors of modules by the names that our connector has for these.

    Example:
        >>> list(named({"layers.0": nn.Linear(2, 2)}))
        ['layers.0.weight', 'layers.0.bias']
    """
    return {
        f"{place}.{name}": tensor
        for place, layer in layers.items()
        for name, tensor in layer.state_dict().items()
    }


@RELEASED.register("llava")
class Llava:
    """LLaVA-1.5: patches of CLIP or SigLIP, an MLP, tokens in the text."""

    architecture = "LlavaForConditionalGeneration"

    @staticmethod
    def plan(config: Any) -> Plan:
        """See `Family.plan`.

        Example:
            >>> from transformers import LlavaConfig
            >>> plan = Llava.plan(LlavaConfig())
            >>> plan.feature_layer, plan.prefix, plan.connector.depth, plan.image_id
            (-2, 1, 2, 32000)
        """
        tower = config.vision_config.model_type
        if tower not in TOWERS:
            raise ConfigError(
                f'this LLaVA has the vision tower "{tower}": expected one of {", ".join(TOWERS)}, '
                "whose images are all of one size"
            )
        layer = read_layer(config, "LLaVA")
        refuse_other_projector(config, "LLaVA")
        refuse_logit_options(config, "LLaVA", Llava.architecture)
        dropped = config.vision_feature_select_strategy == "default"
        return Plan(
            feature_layer=layer,
            keep_cls=not dropped,
            prefix=1 if dropped else None,  # SigLIP has no class token: its first patch goes
            connector=MLP(depth=2, bias=config.multimodal_projector_bias),
            image_id=config.image_token_id,
        )

    @staticmethod
    def parts(model: Any) -> Modules:
        """See `Family.parts`."""
        inner = model.model
        projector = inner.multi_modal_projector
        return Modules(
            tower=inner.vision_tower,
            decoder=inner.language_model,
            head=model.get_output_embeddings(),
            connector=named({"layers.0": projector.linear_1, "layers.2": projector.linear_2}),
        )
