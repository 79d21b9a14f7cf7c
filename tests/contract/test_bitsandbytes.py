"""What the package leans on inside bitsandbytes: one test per fact, whose failure names the place to mend."""

from __future__ import annotations

import logging
from pathlib import Path

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit, Linear8bitLt

from tests.support.seams import moved

QUANTIZATION = "reference/model/quantization.py"
MEMORY = "reference/model/memory.py"


def seam(fact: str, mend: str) -> str:
    return moved("bitsandbytes", fact, mend)


def four_bit(double: bool = False, width: int = 64) -> Linear4bit:
    layer = Linear4bit(width, width, bias=False, quant_type="nf4", compress_statistics=double)
    return layer.to("cpu")  # which quantizes


def test_a_4_bit_layer_on_a_cpu_repacks_only_where_its_flag_says_so() -> None:
    mend = f"{QUANTIZATION} (disable_cpu_repacking)"
    layer = four_bit().eval()
    assert hasattr(layer, "support_avx512bf16_for_cpu"), seam("layer.support_avx512bf16_for_cpu", mend)
    layer.support_avx512bf16_for_cpu = False
    packed = layer.weight.data.clone()
    with torch.no_grad():
        layer(torch.randn(2, 64))
    assert torch.equal(layer.weight.data, packed), seam("without the flag, an evaluation forward keeps weights", mend)
    assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False), seam("packing_format_for_cpu", mend)


@pytest.mark.parametrize("double", [False, True])
def test_what_a_4_bit_weight_keeps_beside_its_bytes(double: bool) -> None:
    state = four_bit(double, width=512).weight.quant_state
    for name in ("absmax", "code", "offset", "state2"):
        assert hasattr(state, name), seam(f"quant_state.{name}", f"{MEMORY} (_tensor_bytes)")
    assert (state.state2 is not None) == double, seam("state2 is the state of quantized scales", MEMORY)
    assert state.code.numel() == 16, seam("code is the table of 16 values", MEMORY)
    if double:
        assert state.state2.state2 is None, seam("scales of scales are not quantized again", MEMORY)


def test_a_4_bit_weight_packs_two_values_into_a_byte() -> None:
    layer = four_bit()
    assert layer.weight.numel() * 2 == 64 * 64, seam("two weights per byte", MEMORY)
    assert not layer.weight.is_floating_point(), seam("packed weights are no floats", "reference/model/loading.py")
    assert isinstance(layer, torch.nn.Linear), seam("Linear4bit is a Linear", "reference/model/loading.py")
    assert (layer.in_features, layer.out_features) == (64, 64), seam("in_features, out_features", "the same")


def test_the_quantization_state_goes_into_the_state_dict() -> None:
    names = {*four_bit().state_dict()}
    assert {"weight", "weight.absmax", "weight.quant_map"} <= names, seam(
        "state_dict holds the quantization state", "reference/identity/weights.py (base_tensors)"
    )


def test_an_8_bit_weight_keeps_its_scales_as_scb() -> None:
    layer = Linear8bitLt(64, 32, bias=False, has_fp16_weights=False).to("cpu")
    assert layer.weight.dtype == torch.int8, seam("weights are int8 once they are on a device", MEMORY)
    assert layer.weight.SCB.numel() == 32, seam("weight.SCB is a scale for each row", f"{MEMORY} (_tensor_bytes)")


def test_the_note_of_a_cast_comes_from_the_logger_that_is_filtered(caplog: pytest.LogCaptureFixture) -> None:
    mend = f"{QUANTIZATION} (_mute_int8_casts)"
    logger = logging.getLogger("bitsandbytes.autograd._functions")
    saved, logger.filters = logger.filters, []
    try:
        layer = Linear8bitLt(64, 32, bias=False, has_fp16_weights=False).to("cpu").eval()
        with caplog.at_level(logging.WARNING, logger=logger.name), torch.no_grad():
            layer(torch.randn(2, 64))
    finally:
        logger.filters = saved
    notes = [record for record in caplog.records if "inputs will be cast" in record.getMessage()]
    assert notes, seam("int8 layers log 'inputs will be cast'", mend)
    assert {record.name for record in notes} == {logger.name}, seam(f"under the name {logger.name}", mend)


def test_the_devices_with_kernels_are_listed() -> None:
    assert {"cuda", "cpu"} <= {*bitsandbytes.supported_torch_devices}, seam(
        "supported_torch_devices", "reference/model/loading.py (_device_problems)"
    )


def test_the_line_about_a_kernel_is_logged_by_the_module_of_cpu_kernels() -> None:
    source = (Path(bitsandbytes.__file__).parent / "backends/cpu/ops.py").read_text()
    for fact in ('"Failed to load CPU gemm_4bit_forward from kernels-community', "logging.getLogger(__name__)"):
        assert fact in source, seam(fact, "logging_setup.py (mute_import_messages)")


@torch.no_grad()
def test_the_weights_of_quantized_layers_can_be_read() -> None:
    mend, eye = "reference/correction/layers.py (dequantized)", torch.eye(64)
    layer = four_bit()
    read = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    torch.testing.assert_close(read, layer(eye).T, msg=seam("dequantize_4bit(weight.data, weight.quant_state)", mend))
    layer = Linear8bitLt(64, 64, bias=False, has_fp16_weights=False).to("cpu")
    assert layer.weight.SCB is not None, seam("weight.SCB before the first forward", mend)
    multiplied = layer(eye).T
    assert layer.weight.SCB is None, seam("weight.SCB moves away in the first forward", f"{mend}, {MEMORY}")
    read = layer.weight.data * (layer.state.SCB / 127).unsqueeze(1)
    torch.testing.assert_close(read, multiplied.float(), rtol=0, atol=1e-2, msg=seam("weight * state.SCB / 127", mend))
