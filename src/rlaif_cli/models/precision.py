"""The number format that this machine computes fastest in."""

from __future__ import annotations

from rlaif_cli.models.torch_internals import cpu_has_bf16


def has_bf16() -> bool:
    """Whether this machine has native bf16 matrix multiplication, rather than emulating it."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512") and cpu_has_bf16()


def engine_dtype(dtype: str) -> str:
    """The dtype an engine computes in: "auto" is the checkpoint's, or float32 on a CPU that would have to emulate bf16.

    On two cores of an AMD EPYC with AVX2, a matrix product in emulated bf16 takes six times as long as in fp32.
    """
    import torch

    return "float32" if dtype == "auto" and not torch.cuda.is_available() and not has_bf16() else dtype
