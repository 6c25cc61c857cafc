"""What this machine can do, asked once, and what is chosen for it.

One meaning of device, dtype, precision and threads for every verb and function: "auto" takes what
`probe` found, anything else is obeyed. A choice that is far slower here is warned about, with a
ratio that was measured on this machine.

| "auto" is | on a CPU | on a GPU (cuda) | on mps |
|---|---|---|---|
| a model's dtype | int8 if faster, else float32 | bfloat16 if in hardware, else float32 | float32 |
| a run's precision | bf16 if the CPU has instructions for it, else fp32 | likewise | fp32 |

Nothing here imports torch until it is asked something.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from isthmus import cpu
from isthmus.errors import ConfigError, MissingExtraError, suggestion

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

AUTO = "auto"
DEVICES = (AUTO, "cpu", "cuda", "mps")
DTYPES = (AUTO, "float32", "bfloat16", "float16", "int8")
ENGINES = ("torch", "llama")
"""Who may run the language model of inline models where texts are generated."""
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
Precision = Literal["fp32", "bf16", "fp16"]
Attention = Literal["sdpa", "eager"]
MEASURED_LEVELS = 127
"""What int8 changes was measured with so many levels; with fewer it is not taken unasked."""
FAR_SLOWER = 1.5
"""A choice that takes so many times as long as float32 is warned about."""
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
BRIEFLY = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
"""How idle threads wait: turns in libgomp, milliseconds in LLVM's and Intel's OpenMP."""


@dataclass(frozen=True)
class Machine:
    """What a machine has.

    Attributes:
        devices: Kinds of devices, the best first: "cuda", "mps", "cpu".
        gpu: Name of the first GPU; empty without one.
        cpu: Widest vector instructions that PyTorch uses on the CPU, such as "AVX2" or "AVX512".
        cores: CPU cores that this process may use.
        threads: Threads that PyTorch computes with.
        half: Data types narrower than float32 that each device has instructions for.
        packed: Data types whose linear layers can be packed for oneDNN on the CPU (see
            `generation.packed`); empty where PyTorch lacks the operators.
        int8: Library that multiplies int8 on the CPU, faster than float32 and without an error (see
            `cpu.int8_kernel`); empty where there is none.
        int8_levels: The largest number that activations are rounded to, 127 or 63 (see
            `cpu.Kernel`); 0 without such a library.
    """

    devices: tuple[str, ...]
    gpu: str
    cpu: str
    cores: int
    threads: int
    half: dict[str, tuple[str, ...]]
    packed: tuple[str, ...]
    int8: str
    int8_levels: int = 0

    @property
    def device(self) -> str:
        """The kind of device that "auto" takes."""
        return self.devices[0]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with what "auto" chooses here."""
        chosen = {
            "device": self.device,
            "dtype": "int8" if int8_for(AUTO, self.device) else _name(dtype_for(AUTO, self.device)),
            "precision": precision_for(AUTO, self.device),
            "attention": attention_for(PRECISIONS[precision_for(AUTO, self.device)], self.device),
        }
        return {**asdict(self), "engines": engines(), "auto": chosen}

    def __str__(self) -> str:
        auto = self.as_dict()["auto"]
        has = f"{self.gpu}, " if self.gpu else ""
        half = ", ".join(self.half[self.device]) or "none"
        packed = ", ".join(self.packed) or "none"
        return (
            f"machine: {has}{self.cpu} CPU, {self.cores} cores, {self.threads} threads; "
            f"half precision in hardware: {half}; packed linear layers: {packed}; int8 "
            f"by: {self.int8 or 'none'}; engines: {', '.join(engines())}\n"
            f"auto: device {auto['device']}, dtype {auto['dtype']}, training in "
            f"{auto['precision']}, {auto['attention']} attention"
        )


@functools.cache
def probe() -> Machine:
    """Looks at this machine; the first call imports torch.

    Example:
        >>> probe().devices[-1]
        'cpu'
    """
    import torch

    kernel = cpu.int8_kernel()
    devices, half, gpu = ["cpu"], {"cpu": cpu.half_types()}, ""
    if torch.backends.mps.is_available():
        devices.insert(0, "mps")
        half["mps"] = ("float16",)
    if torch.cuda.is_available():
        devices.insert(0, "cuda")
        gpu = torch.cuda.get_device_name(0)
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        half["cuda"] = ("bfloat16", "float16") if bf16 else ("float16",)
    return Machine(
        devices=tuple(devices),
        gpu=gpu,
        cpu=torch.backends.cpu.get_cpu_capability(),
        cores=cores(),
        threads=torch.get_num_threads(),
        half=half,
        packed=cpu.packed_types(),
        int8="" if kernel is None else kernel.name,
        int8_levels=0 if kernel is None else kernel.largest,
    )


def check_engine(engine: str) -> None:
    """Refuses the name of no engine, and one whose binding is not installed.

    Raises:
        ConfigError: If there is none of that name.
        MissingExtraError: If it is not installed.

    Example:
        >>> check_engine("torch")
    """
    if engine not in ENGINES:
        raise ConfigError(f'unknown engine "{engine}": {suggestion(engine, ENGINES)}')
    if engine not in engines():
        raise MissingExtraError(f'engine "{engine}"', engine)


def engines() -> tuple[str, ...]:
    """The engines that are installed; imports none.

    Example:
        >>> engines()[0]
        'torch'
    """
    there = importlib.util.find_spec("llama_cpp") is not None
    return ENGINES if there else ENGINES[:1]


# --- Devices and data types ---------------------------------------------------------------------


def check(device: str = AUTO, dtype: str = AUTO) -> None:
    """Refuses names of no device or data type; imports no torch.

    Raises:
        ConfigError: If one is unknown.
    """
    kind, _, number = device.partition(":")
    if kind not in DEVICES or (number and not (number.isdecimal() and kind == "cuda")):
        raise ConfigError(f'unknown device "{device}": {suggestion(device, DEVICES)}')
    if dtype not in DTYPES:
        raise ConfigError(f'unknown dtype "{dtype}": {suggestion(dtype, DTYPES)}')


def device_for(device: str | torch.device = AUTO) -> torch.device:
    """The device to compute on.

    Args:
        device: "auto" (the best there is), "cpu", "cuda", "cuda:1" or "mps", or a `torch.device`,
            which is taken as it is.

    Raises:
        ConfigError: If it is unknown, or this machine has none.

    Example:
        >>> device_for("cpu")
        device(type='cpu')
    """
    import torch

    if isinstance(device, torch.device):
        return device
    check(device)
    found = probe().devices
    kind, _, number = device.partition(":")
    if kind == AUTO:
        return torch.device(found[0])
    if kind not in found:
        raise ConfigError(
            f'device is "{device}", but PyTorch sees no {kind} device on this machine: expected '
            f"auto or {' or '.join(found)}"
        )
    if number and int(number) >= torch.cuda.device_count():
        raise ConfigError(
            f'device is "{device}", but this machine has {torch.cuda.device_count()} GPUs, '
            "counted from cuda:0"
        )
    return torch.device(device)


def dtype_for(
    dtype: str | torch.dtype | None = AUTO, device: str | torch.device = AUTO
) -> torch.dtype:
    """The data type of a loaded model's weights.

    Args:
        dtype: "auto", "float32", "bfloat16", "float16" or a `torch.dtype`; None is float32.
        device: Where the weights will be.

    Raises:
        ConfigError: If it is unknown.

    Example:
        >>> dtype_for("auto", "cpu")
        torch.float32
    """
    import torch

    kind = device_for(device).type
    if dtype is None:
        return torch.float32
    if isinstance(dtype, str):
        check(dtype=dtype)
        if dtype == AUTO:
            fast = kind == "cuda" and "bfloat16" in probe().half[kind]
            return torch.bfloat16 if fast else torch.float32
        if dtype == "int8":  # `int8_for` is asked first, by those who have it
            raise ConfigError(
                'dtype is "int8", in which only the language model of a vision-language model '
                "computes, and only without gradients: expected auto, float32, bfloat16 or float16"
            )
        dtype = getattr(torch, dtype)
    assert isinstance(dtype, torch.dtype)
    _warn_where_slow(dtype, kind)
    return dtype


def int8_for(dtype: str | torch.dtype | None = AUTO, device: str | torch.device = AUTO) -> bool:
    """Whether a loaded model's language model computes in int8.

    Args:
        dtype: As for `dtype_for`, or "int8"; "auto" does so on a CPU that is faster in it and has
            all levels.
        device: Where the weights will be.

    Raises:
        ConfigError: If "int8" is asked for and this machine or device does not have it.
    """
    if not isinstance(dtype, str) or dtype not in (AUTO, "int8"):
        return False
    kind = device_for(device).type
    if dtype == AUTO:
        return kind == "cpu" and probe().int8_levels == MEASURED_LEVELS
    if kind != "cpu" or not probe().int8:
        where = "runs only on a CPU" if kind != "cpu" else "is no faster on this machine"
        raise ConfigError(
            f'dtype is "int8" on {kind}, and int8 {where}: expected auto, float32 or bfloat16'
        )
    return True


def precision_for(precision: str = AUTO, device: str | torch.device = AUTO) -> Precision:
    """The precision of a training run.

    Args:
        precision: "auto", "fp32", "bf16" or "fp16". What is set is obeyed.
        device: Where the run computes.

    Returns:
        For "auto" bf16 where the device has instructions for it, otherwise fp32.

    Raises:
        ConfigError: If it is unknown.

    Example:
        >>> precision_for("fp32", "cpu")
        'fp32'
    """
    import torch

    kind = device_for(device).type
    if precision == AUTO:
        return "bf16" if "bfloat16" in probe().half.get(kind, ()) else "fp32"
    if precision not in PRECISIONS:
        names = (AUTO, *PRECISIONS)
        raise ConfigError(f'unknown precision "{precision}": {suggestion(precision, names)}')
    _warn_where_slow(getattr(torch, PRECISIONS[precision]), kind)
    return precision  # type: ignore[return-value]


def attention_for(dtype: str | torch.dtype, device: str | torch.device = AUTO) -> Attention:
    """The faster implementation of attention, by Transformers' name.

    On a CPU the fused kernel in half precision is slower than its parts at the lengths that are
    trained on here; everywhere else it is the faster one.
    """
    on_cpu = device_for(device).type == "cpu"
    return "eager" if on_cpu and _name(dtype) != "float32" else "sdpa"


def _warn_where_slow(dtype: torch.dtype, kind: str) -> None:
    """Says so where a data type was asked for that this CPU has no instructions for."""
    name = _name(dtype)
    if kind == "cpu" and name in ("bfloat16", "float16") and name not in probe().half["cpu"]:
        ratio = cpu.slowdown(name)
        if ratio > FAR_SLOWER:
            _warn_once(
                f"{name} was asked for: this CPU has no instructions for it, and a matrix product "
                f"takes {ratio:.0f} times as long as in float32 (measured here)"
            )


@functools.cache
def _warn_once(message: str) -> None:
    log.warning(message)


def _name(dtype: str | torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- Threads ------------------------------------------------------------------------------------


def wait_briefly() -> None:
    """Lets OpenMP's idle threads sleep soon. Has an effect only before torch is loaded.

    They wait by spinning. Beside another busy process they then take the cores from the ones that
    still work; but to wake one that sleeps takes as long as a small product. Ten thousand turns,
    some 0.1 ms, last from one product to the next (`benchmarks/threads.py`).
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ.update(BRIEFLY)


def set_threads(threads: int | None = None) -> int:
    """Sets how many threads PyTorch computes with on the CPU.

    Args:
        threads: How many; None leaves PyTorch's own number, and lowers it to the cores that this
            process may use, which a container often limits, unless OMP_NUM_THREADS is set.

    Returns:
        The number.

    Raises:
        ConfigError: If it is less than 1.
    """
    import torch

    if threads is not None and threads < 1:
        raise ConfigError(f"threads is {threads}: expected at least 1")
    most = torch.get_num_threads()
    wanted = threads or (most if "OMP_NUM_THREADS" in os.environ else min(most, cores()))
    if wanted != most:
        torch.set_num_threads(wanted)
        probe.cache_clear()
    return wanted


def cores() -> int:
    """CPU cores that this process may use: its affinity, and its control group's quota."""
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        usable = os.cpu_count() or 1
    return max(1, min(usable, math.ceil(_quota(Path("/sys/fs/cgroup")) or usable)))


def _quota(root: Path) -> float | None:
    """The control group's limit in cores, version 2 or 1; None without one."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            parts = " ".join((root / name).read_text(encoding="ascii") for name in names).split()
            quota, period = float(parts[0]), float(parts[1])
        except (OSError, ValueError, IndexError):  # no such file, or "max"
            continue
        if quota > 0 and period > 0:
            return quota / period
    return None
