"""Device and precision: what is possible where."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from biotune.finetuning.compute import Compute


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("cpu", "fp16", "precision must be one of fp32, tf32, bf16, got 'fp16'"),
        ("cpu", "tf32", "precision tf32 is for cuda alone, got device 'cpu'"),
    ],
)
def test_what_the_device_cannot_do_is_refused(device, precision, message):
    with pytest.raises(ValueError, match=message):
        Compute(device, precision)


@pytest.mark.parametrize(
    ("device", "precision", "dtype"),
    [
        ("cpu", "fp32", torch.float32),
        ("cuda:1", "tf32", torch.float32),
        ("cpu", "bf16", torch.bfloat16),
    ],
)
def test_features_have_the_precisions_type(device, precision, dtype):
    compute = Compute(device, precision)
    assert compute.dtype == dtype
    if device == "cpu":
        with compute.autocast():
            product = torch.ones(2, 2) @ torch.ones(2, 2)
        assert product.dtype == dtype


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "exact"), [("fp32", True), ("tf32", False)])
def test_on_cuda_fp32_is_exact_and_tf32_is_not(precision, exact):
    Compute("cuda", precision).set_up()
    values = torch.full((64, 64), 1 + 2.0**-20, device="cuda")  # beyond 10 bits of mantissa
    product = values @ torch.eye(64, device="cuda")
    assert torch.equal(product, values) == exact


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
def test_freed_memory_is_kept_and_taken_again_without_page_faults():
    program = """
import resource, sys
import torch
from biotune.finetuning.compute import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(10_000_000)  # 40 MB: beyond glibc's own thresholds
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""

    def counted(mode: str) -> int:
        asked = subprocess.run(
            [sys.executable, "-c", program, mode], capture_output=True, text=True, check=True
        )
        return int(asked.stdout)

    kept, returned = counted("kept"), counted("returned")
    assert kept < returned / 10, (kept, returned)
