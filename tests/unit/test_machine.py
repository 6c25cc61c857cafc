"""What is chosen for a machine, on this one and on machines that are made up."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import isthmus as im
from isthmus import cpu, machine
from isthmus.errors import ConfigError

PLAIN = machine.Machine(
    devices=("cpu",),
    gpu="",
    cpu="AVX2",
    cores=2,
    threads=2,
    half={"cpu": ()},
    packed=("float32",),
    int8="",
)
AMX = replace(PLAIN, cpu="AVX512", half={"cpu": ("bfloat16", "float16")})
GPU = replace(
    PLAIN, devices=("cuda", "cpu"), gpu="a GPU", half={"cpu": (), "cuda": ("bfloat16", "float16")}
)
OLD_GPU = replace(GPU, half={"cpu": (), "cuda": ("float16",)})
MAC = replace(PLAIN, devices=("mps", "cpu"), half={"cpu": (), "mps": ("float16",)})


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    machine._warn_once.cache_clear()
    yield monkeypatch
    machine._warn_once.cache_clear()


@pytest.mark.parametrize(
    ("found", "device", "dtype", "precision"),
    [
        (PLAIN, "cpu", torch.float32, "fp32"),
        (AMX, "cpu", torch.float32, "bf16"),
        (GPU, "cuda", torch.bfloat16, "bf16"),
        (OLD_GPU, "cuda", torch.float32, "fp32"),
        (MAC, "mps", torch.float32, "fp32"),
    ],
    ids=["AVX2", "AMX", "GPU", "old GPU", "Mac"],
)
def test_what_auto_takes(
    pretend: pytest.MonkeyPatch,
    found: machine.Machine,
    device: str,
    dtype: torch.dtype,
    precision: str,
) -> None:
    pretend.setattr(machine, "probe", lambda: found)
    assert machine.device_for("auto") == torch.device(device)
    assert machine.dtype_for("auto") == dtype
    assert machine.precision_for("auto") == precision
    auto = found.as_dict()["auto"]
    assert (auto["device"], auto["precision"]) == (device, precision)
    assert f"device {device}" in str(found)


def test_the_cpu_is_used_beside_a_gpu_where_it_is_asked_for(pretend: pytest.MonkeyPatch) -> None:
    pretend.setattr(machine, "probe", lambda: GPU)
    assert machine.device_for("cpu") == torch.device("cpu")
    assert machine.dtype_for("auto", "cpu") == torch.float32
    assert machine.precision_for("auto", "cpu") == "fp32"
    assert machine.attention_for("bfloat16", "cpu") == "eager"
    assert machine.attention_for("bfloat16", "cuda") == "sdpa"


def test_a_device_that_is_not_there(pretend: pytest.MonkeyPatch) -> None:
    pretend.setattr(machine, "probe", lambda: PLAIN)
    for call in (
        lambda: im.load("tiny", device="cuda"),
        lambda: im.compose("tiny-vit", "tiny-lm", im.Linear(), device="cuda"),
        lambda: im.load("tiny-clip", device="cuda"),
        lambda: im.ZeroShotClassifier("tiny", ["a", "b"], device="cuda"),
        lambda: im.evaluate("tiny", "parity", device="cuda"),
    ):
        with pytest.raises(ConfigError, match="no cuda device on this machine: expected auto or c"):
            call()


@pytest.mark.parametrize("name", ["cdua", "cuda:x", "cpu:1", "", "meta"])
def test_no_device(name: str) -> None:
    with pytest.raises(ConfigError, match="unknown device"):
        machine.device_for(name)


def test_a_misspelt_dtype_and_precision() -> None:
    with pytest.raises(ConfigError, match='did you mean "bfloat16"'):
        machine.dtype_for("bfloat")
    with pytest.raises(ConfigError, match="unknown precision"):
        machine.precision_for("fp8")


def test_what_is_set_is_obeyed_and_warned_about_once(
    pretend: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend.setattr(machine, "probe", lambda: PLAIN)
    pretend.setattr(cpu, "slowdown", lambda dtype: 12.3)
    machine._warn_once.cache_clear()  # an earlier test may have measured the same ratio
    with caplog.at_level(logging.WARNING, logger="isthmus"):
        assert machine.dtype_for("bfloat16", "cpu") == torch.bfloat16
        assert machine.precision_for("bf16", "cpu") == "bf16"
        assert machine.dtype_for("float32", "cpu") == torch.float32
    assert [r.getMessage() for r in caplog.records] == [
        "bfloat16 was asked for: this CPU has no instructions for it, and a matrix product takes "
        "12 times as long as in float32 (measured here)"
    ]
    caplog.clear()
    pretend.setattr(machine, "probe", lambda: AMX)
    machine.dtype_for("float16", "cpu")
    assert caplog.records == []


def test_the_slowdown_is_measured() -> None:
    assert cpu.slowdown("bfloat16") > 0


def test_models_go_where_and_become_what_is_asked_for() -> None:
    model = im.compose("tiny-vit", "tiny-lm", im.Linear(), device="cpu", dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    kept = im.compose("tiny-vit", "tiny-lm", im.Linear())
    assert next(kept.connector.parameters()).dtype == torch.float32  # it is to be trained


def test_a_loaded_model_has_the_dtype_that_is_asked_for(tmp_path: Path) -> None:
    folder = im.save(im.compose("tiny-vit", "tiny-lm", im.Linear(), device="cpu"), tmp_path)
    assert im.load(folder, device="cpu").language.model.dtype == torch.float32
    assert im.load(folder, device="cpu", dtype="bfloat16").language.model.dtype == torch.bfloat16


def test_a_dual_encoder_in_half_precision_keeps_its_temperature() -> None:
    whole = im.load("tiny-clip", device="cpu")
    half = im.load("tiny-clip", device="cpu", dtype="bfloat16")
    assert next(half.image.parameters()).dtype == torch.bfloat16
    assert torch.equal(half.logit_scale, whole.logit_scale)
    image = Image.linear_gradient("L").convert("RGB")
    near = half.encode_images([image]) @ whole.encode_images([image]).T
    assert float(near) == pytest.approx(1, abs=0.02)


# --- Threads ------------------------------------------------------------------------------------


def test_idle_threads_sleep_soon_unless_the_user_said_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in machine._WAITING:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.environ", environment := {})
    machine.wait_briefly()
    assert environment == machine.BRIEFLY
    for name, value in (("OMP_WAIT_POLICY", "ACTIVE"), ("GOMP_SPINCOUNT", "9")):
        monkeypatch.setattr("os.environ", environment := {name: value})
        machine.wait_briefly()
        assert environment == {name: value}


def test_threads_are_set_and_refused() -> None:
    before = torch.get_num_threads()
    machine.probe.cache_clear()  # earlier tests may have set PyTorch's own number
    try:
        assert machine.set_threads(1) == torch.get_num_threads() == machine.probe().threads == 1
        with pytest.raises(ConfigError, match="expected at least 1"):
            machine.set_threads(0)
    finally:
        torch.set_num_threads(before)
        machine.probe.cache_clear()


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_a_containers_quota(tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine._quota(tmp_path) == cores


@pytest.mark.parametrize(("levels", "auto"), [(127, True), (63, False)])
def test_int8_is_taken_unasked_with_all_levels_alone(
    levels: int, auto: bool, pretend: pytest.MonkeyPatch
) -> None:
    pretend.setattr(machine, "probe", lambda: replace(PLAIN, int8="fbgemm", int8_levels=levels))
    assert machine.int8_for("auto", "cpu") is auto
    assert machine.int8_for("int8", "cpu")
