"""The reference linear layer says what the precisions mean, and runs row by row where it promises to."""

from pathlib import Path

import pytest
import torch

from service.engine.backends.cpu.backend import CpuBackend
from service.engine.backends.cuda.backend import CudaBackend
from service.engine.backends.torch.backend import TorchBackend
from service.engine.backends.torch.linear import pack_linear
from service.engine.config import EngineConfig, Precision
from service.engine.model.linear import UnsupportedLinear, quantise_rows, quantise_weight

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "int8")


def make(width: int, columns: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(width + columns)
    shapes = ((width, columns), (columns,), (rows, width))
    weight, bias, x = (torch.randn(shape, generator=generator) for shape in shapes)
    return weight / width**0.5, bias, x


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.03), ("int8", 0.1)])
def test_every_precision_approximates_the_float32_product(precision: Precision, tolerance: float) -> None:
    weight, bias, x = make(96, 40, 9)
    layer = pack_linear(weight, bias, precision=precision)
    assert (layer(x) - (x @ weight + bias)).abs().max() < tolerance


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_deterministic_row_does_not_feel_its_batch(precision: Precision) -> None:
    weight, bias, x = make(768, 192, 40)
    layer = pack_linear(weight, bias, precision=precision, is_deterministic=True)
    together = layer(x)
    assert all(torch.equal(layer(x[i : i + 1])[0], together[i]) for i in range(0, 40, 7))


def test_activation_comes_before_the_residual() -> None:
    weight, bias, x = make(16, 8, 3)
    residual = torch.full((3, 8), -5.0)
    layer = pack_linear(weight, bias, precision="float32", activation="relu")
    torch.testing.assert_close(layer(x, residual), (x @ weight + bias).relu() - 5)


def test_codes_of_a_row_depend_on_that_row_only() -> None:
    x = torch.randn(5, 33, generator=torch.Generator().manual_seed(0))
    louder = torch.cat([x[:1], 100 * x[1:]])
    assert torch.equal(quantise_rows(x)[0][0], quantise_rows(louder)[0][0])


def test_a_lopsided_row_uses_all_codes() -> None:
    codes, _, _ = quantise_rows(torch.linspace(-0.1, 3.0, 500)[None])
    assert (int(codes.min()), int(codes.max())) == (0, 255)


def test_a_row_of_zeros_stays_zero() -> None:
    weight, _, _ = make(16, 8, 1)
    assert torch.equal(pack_linear(weight, None, precision="int8")(torch.zeros(1, 16)), torch.zeros(1, 8))


def test_a_column_of_zero_weights_is_not_a_division_by_zero() -> None:
    codes, scale = quantise_weight(torch.zeros(4, 2))
    assert torch.equal(codes, torch.zeros(4, 2, dtype=torch.int8)) and bool((scale > 0).all())


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(UnsupportedLinear, match="frobnicate"):
        pack_linear(torch.zeros(2, 2), None, precision="float32", activation="frobnicate")


def test_a_graphics_card_gets_bfloat16() -> None:
    config = EngineConfig(Path(), device="cuda")
    assert TorchBackend.for_config(config).precision == CudaBackend.for_config(config).precision == "bfloat16"


@pytest.mark.parametrize(("is_native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_torch_gets_bfloat16_only_where_the_processor_has_it_and_our_kernels_always(
    monkeypatch: pytest.MonkeyPatch, is_native: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: is_native)
    config = EngineConfig(Path())
    assert TorchBackend.for_config(config).precision == expected
    assert CpuBackend.for_config(config).precision == "bfloat16"
