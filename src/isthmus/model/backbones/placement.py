"""Language models whose layers lie on several devices, or beside them in memory and on disk.

Transformers finds the map and Accelerate acts on it (`device_map` of `from_pretrained`): a hook of
each module moves its inputs to the device that computes it and, where its weights lie elsewhere,
brings these for as long as the module runs. In between such weights are on the meta device. Here
is what the rest of the package must know of that. A frozen part passes gradients of activations
on, so training works through it: the hooks are a part of the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.config.model import LanguageConfig
from isthmus.errors import ConfigError, loading


def _hook(module: nn.Module) -> Any:
    """Accelerate's hook of a module; None if it has none."""
    return getattr(module, "_hf_hook", None)


def is_dispatched(model: nn.Module) -> bool:
    """Whether Accelerate's hooks move activations between the devices of a model.

    Example:
        >>> is_dispatched(nn.Linear(2, 2))
        False
    """
    return any(_hook(module) is not None for module in model.modules())


def offloaded(model: nn.Module) -> list[nn.Module]:
    """The modules whose own weights lie in memory or on disk, beside the device that computes."""
    from accelerate.utils import has_offloaded_params

    return [module for module in model.modules() if has_offloaded_params(module)]


def computing_device(module: nn.Module) -> torch.device:
    """Where a module computes: its hook's device, or else that of its weights.

    A model that has a configuration and no weights (`without_weights`) counts as on the CPU.

    Args:
        module: A module with parameters of its own.
    """
    hook = _hook(module)
    own = getattr(hook, "execution_device", None)
    if own is not None:
        return torch.device(own)
    device = next(module.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


def in_memory(module: nn.Module) -> AbstractContextManager[None]:
    """Holds a module's weights on the device that computes it, if they lie elsewhere."""
    from accelerate.utils import align_module_device

    held: AbstractContextManager[None] = align_module_device(module)
    return held


def held_tensors(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """What gives each tensor of a model's state, those included that lie beside its devices.

    Tensors are read when they are asked for, so that one at a time need be in memory.

    Raises:
        ConfigError: If the model has no weights at all.
    """
    found: dict[str, Callable[[], Tensor]] = {}
    sources: dict[str, Mapping[str, Tensor]] = {}
    for path, module in model.named_modules():
        weights = getattr(_hook(module), "weights_map", None)
        if weights is not None:
            sources[path] = weights
    for name, tensor in model.state_dict().items():
        if not tensor.is_meta:
            found[name] = lambda tensor=tensor: tensor  # type: ignore[misc]
            continue
        path, _, own = name.rpartition(".")
        if path not in sources:
            raise ConfigError(f"{name} has no weights: expected a model that was loaded with them")
        found[name] = lambda weights=sources[path], own=own: weights[own]  # type: ignore[misc]
    return found


def loading_options(config: LanguageConfig, dtype: torch.dtype | None) -> dict[str, Any]:
    """What `from_pretrained` is told of a language model that is placed by a map.

    Weights keep the data type of their file unless another one is asked for: a second copy of
    such a model would not fit.
    """
    options = {
        "device_map": config.device_map,
        "max_memory": None if config.max_memory is None else dict(config.max_memory),
        "offload_folder": config.offload_folder,
    }
    return {**{k: v for k, v in options.items() if v is not None}, "dtype": dtype or "auto"}


def without_placement(config: LanguageConfig) -> LanguageConfig:
    """What a saved model says of its language model: where it lay is not part of what it is."""
    from dataclasses import replace

    return replace(config, device_map=None, max_memory=None, offload_folder=None)


def refuse_incomplete(name: str, device_map: Any) -> None:
    """Refuses a mapping that leaves parameters of a model without a device, before it is loaded.

    Args:
        name: "hf:REPO-OR-FOLDER"; only its configuration is read.
        device_map: As `LanguageConfig` has it; strategies fit every model.

    Raises:
        ConfigError: If a parameter has no device, or a name is no module of the model.
        CheckpointError: If the configuration cannot be read.
    """
    if not isinstance(device_map, Mapping) or "" in device_map:
        return
    model = meta_model(name)
    modules = {n for n, _ in model.named_modules()} | {n for n, _ in model.named_parameters()}
    for key in device_map:
        if key not in modules:
            raise ConfigError(
                f'device_map["{key}"]: {type(model).__name__} has no such module; it has '
                f"{_top(model)}"
            )
    for parameter, _ in model.named_parameters(remove_duplicate=False):
        if device_of(parameter, device_map) is None and parameter not in _tied(model):
            raise ConfigError(
                f'device_map names no device for "{parameter}" of {name}: expected one for each '
                f"of {_top(model)} or of their parts"
            )


def device_of(parameter: str, device_map: Mapping[str, Any]) -> Any:
    """The device of the longest name in a map that a parameter stands under; None if none does.

    Example:
        >>> device_of("model.layers.1.mlp.weight", {"model": 0, "model.layers.1": "cpu"})
        'cpu'
    """
    name = parameter
    while name and name not in device_map:
        name = name.rpartition(".")[0]
    return device_map.get(name)


def _tied(model: Any) -> set[str]:
    """Names of parameters that are another one."""
    return set(getattr(model, "all_tied_weights_keys", None) or ())


def _top(model: nn.Module) -> str:
    names = []
    for name, child in model.named_children():
        inner = [f"{name}.{own}" for own, _ in child.named_children()]
        names += inner or [name]
    return ", ".join(names)


def meta_model(name: str, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A causal language model of Transformers without weights, from its configuration alone.

    Args:
        name: "hf:REPO-OR-FOLDER".
        dtype: Data type that its parameters say.

    Raises:
        CheckpointError: If the configuration cannot be read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    place = name.partition(":")[2]
    with loading(name, "a folder with its config.json"), torch.device("meta"):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # what is planned for is weights in `dtype`
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False).eval()


def found_map(model: Any, config: LanguageConfig) -> dict[str, int | str]:
    """Where Accelerate puts each module of a model; it may be one without weights.

    Devices that `max_memory` names need not be in this machine.

    Args:
        model: A causal language model of Transformers.
        config: The map, or how one is found.
    """
    import logging

    from transformers.integrations.accelerate import get_balanced_memory, infer_auto_device_map

    if isinstance(config.device_map, Mapping):
        return dict(config.device_map)
    logger = logging.getLogger("accelerate.utils.modeling")
    before = logger.level
    logger.setLevel(logging.ERROR)  # it warns of each device that this machine lacks
    whole = tuple(model._no_split_modules or ())
    memory = None if config.max_memory is None else dict(config.max_memory)
    try:
        if config.device_map != "sequential":
            low = config.device_map == "balanced_low_0"
            memory = get_balanced_memory(model, memory, whole, low_zero=low)
        found: dict[str, int | str] = infer_auto_device_map(
            model, max_memory=memory, no_split_module_classes=whole
        )
    finally:
        logger.setLevel(before)
    return found


def dispatched(model: Any, config: LanguageConfig) -> Any:
    """A model that is in memory, laid over devices as `from_pretrained` would lay it.

    Raises:
        ConfigError: If this machine has no such device, or no folder is named for the disk.
    """
    from accelerate import dispatch_model

    try:
        with quiet_dispatch():
            own = found_map(model, config)
            return dispatch_model(model, own, offload_dir=config.offload_folder)
    except (RuntimeError, ValueError, AssertionError) as error:
        why = (str(error) or type(error).__name__).split("\n")[0]
        raise ConfigError(
            f"language.device_map = {config.device_map!r}: {why} Expected devices of this machine, "
            'and language.offload_folder beside "disk"'
        ) from error


@contextmanager
def quiet_dispatch() -> Iterator[None]:
    """Keeps Accelerate from telling that weights lie beside the device, which was asked for."""
    import logging

    logger = logging.getLogger("accelerate.big_modeling")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
