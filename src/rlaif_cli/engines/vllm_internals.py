"""The internals of vLLM that rlaif changes: here, and in no other file.

Seen in vLLM 0.32. Each function says what happens where a later version no longer has the names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


def discard_packed_experts(worker: Any) -> None:
    """Let a CPU worker read new weights of expert layers as it read the first ones.

    vLLM packs the experts' weights for its kernel on the first load but not on a reload: it would read new weights as
    if they were packed. Without its kernel, a layer initialises itself as on the first load.

    Without the names nothing is discarded. If vLLM still packs, PPO's comparison of the engine's and the trainer's
    log-probs stops the run.
    """
    for module in worker.get_model().modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


@contextlib.contextmanager
def keep_process_group() -> Iterator[None]:
    """Keep the process group of distributed training, which vLLM's shutdown would destroy.

    Without the name: AttributeError when an engine is closed, rather than a run that hangs at its next all-reduce.
    """
    import torch.distributed as dist
    from vllm.distributed import parallel_state

    end = parallel_state.destroy_distributed_environment
    if dist.is_initialized() and dist.get_world_size() > 1:
        parallel_state.destroy_distributed_environment = lambda: None
    try:
        yield
    finally:
        parallel_state.destroy_distributed_environment = end
