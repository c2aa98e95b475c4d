"""The private names of torch that rlaif uses: here, and in no other file.

Seen in torch 2.13. Each function says what happens where a later version no longer has the name.
"""

from __future__ import annotations

from typing import Any


def cpu_has_bf16() -> bool:
    """Whether the CPU has bf16 instructions.

    Without the names: False, so that models compute in fp32, which is slower.
    """
    import torch

    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check)() for check in checks if hasattr(torch.cpu, check))


def is_compiled(module: Any) -> bool:
    """Whether `module.compile()` was called.

    Without the name: False, so that layers are compiled once more for sampling, which is slower.
    """
    return getattr(module, "_compiled_call_impl", None) is not None
