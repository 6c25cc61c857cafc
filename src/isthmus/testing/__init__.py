"""The conformance suite: what a connector, and a model made with it, must hold.

Run a connector of your own through it:

    from isthmus import testing
    testing.check_connector(lambda shape, width: MyConnector(shape, width))

Each check is a plain function that raises AssertionError with what was expected; the project's own
tests run every connector, fusion and language-model family through the same functions.
"""

from isthmus.testing.connectors import SHAPE, check_connector, check_gradients
from isthmus.testing.models import (
    bare_logits,
    check_closed_gates,
    check_copies,
    check_decoding,
    check_evaluation_mode,
    check_gradient_checkpointing,
    check_language_model_is_free,
    check_packing,
    check_padding,
    check_save_and_load,
    check_sight,
    check_text_is_untouched,
    check_training_step,
    open_gates,
    prompts_of,
)

__all__ = [
    "SHAPE",
    "bare_logits",
    "check_closed_gates",
    "check_connector",
    "check_copies",
    "check_decoding",
    "check_evaluation_mode",
    "check_gradient_checkpointing",
    "check_gradients",
    "check_language_model_is_free",
    "check_packing",
    "check_padding",
    "check_save_and_load",
    "check_sight",
    "check_text_is_untouched",
    "check_training_step",
    "open_gates",
    "prompts_of",
]
