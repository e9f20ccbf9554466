"""Memory: what weights, gradients and optimizer take on a GPU, on the host and on disk. All results are bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

GIB = 2**30
CUDA = GIB  # context, libraries and the buffers of communication: no sum gives it
FULL, TIGHT = 1.0, 0.9  # fractions of a card; the allocator cannot hand out its last pieces
BLOCK, SMALL = 256, 4096  # of bitsandbytes' 8-bit optimizers: values that share a scale; tensors below stay in 32 bits
# Optimizer -> states of each parameter, and their bits. Those of torch also count their steps, a float for each tensor.
OPTIMIZERS = {
    "adamw_torch": (2, 32),
    "adamw_torch_fused": (2, 32),
    "adagrad": (1, 32),
    "rmsprop": (1, 32),
    "sgd": (0, 32),
    "paged_adamw_32bit": (2, 32),
    "adamw_bnb_8bit": (2, 8),
    "adamw_8bit": (2, 8),
    "paged_adamw_8bit": (2, 8),
    "lion_32bit": (1, 32),
    "paged_lion_32bit": (1, 32),
    "lion_8bit": (1, 8),
    "paged_lion_8bit": (1, 8),
    "ademamix": (3, 32),
    "paged_ademamix_32bit": (3, 32),
    "ademamix_8bit": (3, 8),
    "paged_ademamix_8bit": (3, 8),
    "rmsprop_bnb": (1, 8),
    "rmsprop_bnb_8bit": (1, 8),
    "rmsprop_bnb_32bit": (1, 32),
}
COUNTED = ("adamw_torch", "adamw_torch_fused", "adagrad", "rmsprop")  # have a step for each tensor


def quantised_bits(kind: str, inputs: int) -> float:
    """Bits of a weight that bitsandbytes holds.

    nf4: 4 for the code, 8 / 64 for the scale of 64 weights, 32 / (64 * 256) for the scale of 256 such scales: 4.127
    (QLoRA, arXiv 2305.14314, section 3). int8: 8, and a 32-bit scale for each row of `inputs` weights (arXiv
    2208.07339).
    """
    return 4 + 8 / 64 + 32 / (64 * 256) if kind == "nf4" else 8 + 32 / inputs


def optimizer_bytes(name: str, shapes: Iterable[tuple[int, ...]], embeddings: Iterable[tuple[int, ...]] = ()) -> int:
    """States of an optimizer over tensors of these shapes.

    AdamW: two 32-bit values for each parameter, 8 bytes; in 8 bits 2 bytes and a 32-bit scale for every 256 values
    (arXiv 2110.02861), except for tensors below 4,096 values and embeddings, which stay in 32 bits. Adafactor: a value
    for each row and column (arXiv 1804.04235). An optimizer that is not listed counts as AdamW in 32 bits.

    Args: embeddings: shapes of those tensors that are embeddings, not among `shapes`.
    """
    shapes, embeddings = list(shapes), list(embeddings)
    if name == "adafactor":
        each = (*shapes, *embeddings)
        return sum(4 * (prod(s) // s[-1] + prod(s) // s[-2] if len(s) > 1 else prod(s)) for s in each)
    states, bits = OPTIMIZERS.get(name, (2, 32))
    sizes = [(prod(shape), False) for shape in shapes] + [(prod(shape), True) for shape in embeddings]
    total = 4 * len(sizes) if name in COUNTED else 0
    for size, wide in sizes:
        total += states * (4 * size if bits == 32 or wide or size < SMALL else size + 4 * -(-size // BLOCK))
    return total


@dataclass(frozen=True)
class Weights:
    """Parameters of a model.

    Attributes:
        trained, frozen: numbers of parameters, quantised ones not counted.
        trained_bytes, frozen_bytes: what they take as they are loaded.
        quantised: bytes of the quantised ones.
    """

    trained: int
    frozen: int
    trained_bytes: int
    frozen_bytes: int
    quantised: int = 0


@dataclass(frozen=True)
class Strategy:
    """How the states are partitioned among processes.

    Attributes:
        name, file: for the reader; the DeepSpeed file, or None.
        stage: of ZeRO; 0 for DDP.
        offload: optimizer states and 32-bit copies are on the host.
        offload_weights: the weights too; stage 3 only.
        bucket: parameters whose gradients are sent together. live: that stage 3 has whole at a time, at most.
        overlap: buckets are sent while the next one is filled, so there are two.
    """

    name: str
    file: str | None = None
    stage: int = 0
    offload: bool = False
    offload_weights: bool = False
    bucket: int = 0
    live: int = 0
    overlap: bool = False


@dataclass(frozen=True)
class States:
    """What stays on one GPU over a step, in bytes; `host` is in the machine's memory, of all its processes together.

    `step` comes on top while the optimizer steps, when no activation is left.
    """

    weights: float
    gradients: float
    optimizer: float
    copies: float
    buffers: float
    step: float = 0
    host: float = 0

    @property
    def stay(self) -> float:
        """The sum of all but `step` and `host`."""
        return self.weights + self.gradients + self.optimizer + self.copies + self.buffers


def states(weights: Weights, strategy: Strategy, optimizer: float, processes: int, half: bool) -> States:
    """Weights, gradients and optimizer on each GPU.

    Source: ZeRO, arXiv 1910.02054, section 3: with P parameters, N processes and Adam in mixed precision 2 P + 2 P + 12
    P bytes, the 12 being a 32-bit copy and two states. Stage 2 keeps 2 P + 14 P / N, stage 3 16 P / N. What differs
    here:
    - frozen parameters have weights and nothing else, and DDP keeps every weight in its own dtype, without a copy;
    - DDP holds gradients a second time, in its buckets, where there are several processes (torch:
      `gradient_as_bucket_view`);
    - DeepSpeed's buckets for gradients, two where it overlaps, and what stage 3 has gathered at a time, at most;
    - DeepSpeed makes the gradients of a process's part 32-bit when it steps: `step`;
    - DeepSpeed keeps 32-bit copies of 32-bit weights too;
    - offloading (arXiv 2101.06840) moves copies, states and the 32-bit gradients to the host.

    Args:
        optimizer: bytes of the states of all trained parameters.
        half: DeepSpeed holds all weights in 16 bits (bf16 or fp16), else in 32.
    """
    if strategy.stage == 0:
        bucket = weights.trained_bytes if processes > 1 else 0
        held = weights.trained_bytes + weights.frozen_bytes + weights.quantised
        return States(held, weights.trained_bytes, optimizer, 0, bucket)
    size = 2 if half else 4
    whole = size * (weights.trained + weights.frozen) + weights.quantised
    part = weights.trained / processes
    buffers = size * strategy.bucket * (2 if strategy.overlap else 1)
    held, host = whole, 0.0
    if strategy.stage == 3:
        buffers += (
            size * min(strategy.live, weights.trained + weights.frozen)
            if processes > 1 or strategy.offload_weights
            else 0
        )
        held = 0.0 if strategy.offload_weights else whole / processes
        host += whole if strategy.offload_weights else 0
    if strategy.offload:
        return States(held, 0.0, 0.0, 0.0, buffers, host=host + 8 * weights.trained + optimizer)
    return States(held, size * part, optimizer / processes, 4 * part, buffers, step=4 * part, host=host)


def checkpoint_bytes(weights: Weights, optimizer: float, copies: bool) -> float:
    """A checkpoint: trained parameters, the optimizer's states and, of DeepSpeed, its 32-bit and 16-bit copies."""
    own = 4 * weights.trained if copies else weights.trained_bytes
    return own + optimizer + (6 * weights.trained if copies else 0)
