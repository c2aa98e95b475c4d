"""Decoding with a static KV cache and a CUDA graph: a step is recorded once and then replayed.

transformers' own loop launches every kernel of every layer again for each token, which takes longer than a small or
medium model computes. The recorded step reads the weights in place, so a trainer may update them in place between two
batches.
"""

from __future__ import annotations

from typing import Any

from rlaif_cli.models.transformers_internals import attention_name, compiles_whole


def recordable(model: Any) -> bool:
    """Whether a decoding step of the model can be recorded as a graph, the same for every cache position.

    It cannot if layers have their own state or window, if attention does not accept a 4-D mask, or if the rotary
    embedding depends on the sequence length.
    """
    from transformers import StaticCache
    from transformers.cache_utils import StaticLayer
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

    config = model.config
    if not compiles_whole(model) or any(kind in str(config.to_dict()) for kind in ("'dynamic'", "'longrope'")):
        return False
    masks = ALL_MASK_ATTENTION_FUNCTIONS.get(attention_name(config))
    return masks is sdpa_mask and all(type(layer) is StaticLayer for layer in StaticCache(config, 1).layers)


class Decoder:
    """Next-token logits for a fixed number of sequences, which grow by one token per step.

    Args:
        model: a causal LM of transformers.
        rows: number of sequences.
        length: maximum tokens of each, padding included.
    """

    def __init__(self, model: Any, rows: int, length: int) -> None:
        import torch
        from transformers import StaticCache

        self._torch, self._model = torch, model
        self.rows, self.length = rows, length
        self._cache = StaticCache(config=model.config, max_cache_len=length)
        self._token, self._position = torch.zeros(2, rows, 1, dtype=torch.long, device=model.device).unbind()
        self._visible = torch.zeros(rows, 1, 1, length, dtype=torch.bool, device=model.device)
        self._graph: Any = None
        self._logits: Any = None

    def start(self, ids: Any, mask: Any) -> Any:
        """Prefill with the prompts, left-padded [rows, width]; returns the next tokens' logits [rows, vocabulary]."""
        torch, width = self._torch, ids.shape[1]
        self._cache.reset()
        self._steps, self._at = 0, width
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        self._position.copy_(positions[:, -1:])
        self._visible.zero_()
        self._visible[:, 0, 0, :width] = mask.bool()
        causal = torch.ones(width, self.length, dtype=torch.bool, device=ids.device).tril()
        # Padding attends to itself: attention over nothing gives NaN, which would spread through the cache.
        own = torch.eye(width, self.length, dtype=torch.bool, device=ids.device)
        return self._forward(ids, positions, self._visible & causal | own)

    def next(self, tokens: Any) -> Any:
        """Append one token to each sequence, [rows]; returns the next logits, which the next call overwrites."""
        self._token.copy_(tokens[:, None])
        self._position += 1
        self._visible[..., self._at] = True
        self._at += 1
        self._steps += 1
        if not self._token.is_cuda or (self._graph is None and self._steps == 1):
            return self._step()  # the first step also loads and selects kernels, which cannot be recorded
        if self._graph is None:
            graph = self._torch.cuda.CUDAGraph()
            with self._torch.cuda.graph(graph):
                self._logits = self._step()
            self._graph = graph
        self._graph.replay()
        return self._logits

    def _step(self) -> Any:
        return self._forward(self._token, self._position, self._visible)

    def _forward(self, ids: Any, positions: Any, visible: Any) -> Any:
        output = self._model(
            input_ids=ids,
            attention_mask=visible,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()
