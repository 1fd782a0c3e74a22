"""The machine is looked at once; requests it cannot meet are refused in words."""

import pytest
import torch

from regpt import UserError, find_runtime
from regpt.system import runtime as module


def test_a_runtime_is_a_value() -> None:
    runtime = find_runtime("cpu", dtype="fp32")
    assert runtime.device == torch.device("cpu")
    assert runtime.dtype == torch.float32
    assert runtime.threads == torch.get_num_threads()
    assert runtime.describe().startswith("cpu (")


@pytest.mark.parametrize("has_bf16", [True, False])
def test_auto_takes_bf16_where_the_hardware_has_it(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool
) -> None:
    monkeypatch.setattr(module, "gains_from_bf16", lambda device: has_bf16)
    expected = torch.bfloat16 if has_bf16 else torch.float32
    assert find_runtime("cpu").dtype == expected
    assert find_runtime("cpu", dtype="fp32").dtype == torch.float32
    assert find_runtime("cpu", dtype="bf16").dtype == torch.bfloat16


@pytest.mark.parametrize(("variant", "has_bf16"), [("", True), ("amx", True), ("avx2", False)])
def test_a_processor_asked_to_be_less_has_less(
    monkeypatch: pytest.MonkeyPatch, variant: str, has_bf16: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setenv("REGPT_CPU", variant)
    assert module.gains_from_bf16(torch.device("cpu")) == has_bf16


def test_tf32_is_float32_with_products_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_device", lambda request: torch.device("cuda", 0))
    monkeypatch.setattr(module, "gains_from_bf16", lambda device: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    before = torch.get_float32_matmul_precision()
    try:
        runtime = find_runtime(dtype="tf32")
        assert torch.get_float32_matmul_precision() == "high"
        assert (runtime.dtype, runtime.describe()) == (torch.float32, "cuda:0 (a card), tf32")
        assert find_runtime(dtype="fp32").describe() == "cuda:0 (a card), fp32"
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def test_autocast_follows_the_dtype() -> None:
    x = torch.randn(2, 2)
    with find_runtime("cpu", dtype="bf16").autocast():
        assert (x @ x).dtype == torch.bfloat16
    with find_runtime("cpu", dtype="fp32").autocast():
        assert (x @ x).dtype == torch.float32


@pytest.mark.parametrize(
    ("available", "expected"),
    [((True, True), "cuda"), ((False, True), "mps"), ((False, False), "cpu")],
)
def test_auto_prefers_cuda_then_mps_then_cpu(
    monkeypatch: pytest.MonkeyPatch, available: tuple[bool, bool], expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available[0])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: available[1])
    assert module.find_device("auto").type == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "device 'tpu' is not one of"),
        ({"device": "cuda:99"}, "device 'cuda:99': this machine has"),
        ({"dtype": "fp8"}, "dtype 'fp8' is not one of auto, tf32, fp32, bf16"),
        ({"dtype": "tf32"}, "dtype 'tf32' needs cuda of compute capability 8.0 or more; use fp32"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"threads": 2**40}, "threads must be at most 4096"),
    ],
)
def test_impossible_requests_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_runtime(**{"device": "cpu", **arguments})
