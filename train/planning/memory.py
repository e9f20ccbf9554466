"""Memory: what a stage takes on a GPU, on the host and on disk, from plain numbers. All results are bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

GIB = 2**30
CUDA = GIB  # context, libraries and the buffers of communication: no sum gives it
FULL, TIGHT = 1.0, 0.9  # shares of a card; the allocator cannot hand out its last pieces
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

    nf4: 4 for the code, 8 / 64 for the scale of 64 weights, 32 / (64 * 256) for the scale of 256 such scales: 4.127 (QLoRA,
    arXiv 2305.14314, section 3). int8: 8, and a 32-bit scale for each row of `inputs` weights (arXiv 2208.07339).
    """
    return 4 + 8 / 64 + 32 / (64 * 256) if kind == "nf4" else 8 + 32 / inputs


def optimizer_bytes(name: str, shapes: Iterable[tuple[int, ...]], embeddings: Iterable[tuple[int, ...]] = ()) -> int:
    """States of an optimizer over tensors of these shapes.

    AdamW: two 32-bit values for each parameter, 8 bytes; in 8 bits 2 bytes and a 32-bit scale for every 256 values (arXiv
    2110.02861), but for tensors below 4,096 values and for embeddings, which stay in 32 bits. Adafactor: a value for each row and
    column (arXiv 1804.04235). One that is not known here is taken for AdamW in 32 bits.

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
    """How the states are shared among processes.

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
    """What stays on one GPU over a step, in bytes; `host` is on the machine's CPU side, of all its processes together.

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

    Source: ZeRO, arXiv 1910.02054, section 3: with P parameters, N processes and Adam in mixed precision 2 P + 2 P + 12 P
    bytes, the 12 being a 32-bit copy and two states. Stage 2 keeps 2 P + 14 P / N, stage 3 16 P / N. What differs here:
    - frozen parameters have weights and nothing else, and DDP keeps every weight in its own dtype, without a copy;
    - DDP holds gradients a second time, in its buckets, where there are several processes (torch: `gradient_as_bucket_view`);
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


@dataclass(frozen=True)
class Blocks:
    """Blocks of a transformer that gradients pass through.

    Attributes:
        layers: how many. width: D. inner: F, of the feed-forward part. heads: of the attention.
        gated: the feed-forward part has a gate (Llama); else two layers and a quick GELU (CLIP).
        trained: their own weights are trained, so that each linear layer keeps its input.
        rank: of LoRA on all linear layers; 0 without. mask: bytes of LoRA's dropout mask for a value; 0 without dropout.
        apart: LoRA's inputs are no one's else: they are dropped out, or cast.
        weights: of one block's linear layers that are cast to the dtype of computing in each pass.
    """

    layers: int
    width: int
    inner: int
    heads: int
    gated: bool = True
    trained: bool = False
    rank: int = 0
    mask: int = 0
    apart: bool = False
    weights: int = 0


def block_bytes(blocks: Blocks, compute: int, stream: int) -> int:
    """What one block keeps of one token for the backward pass.

    After arXiv 2205.05198, section 4 (34 bytes x width for GPT in 16 bits, beside the scores), counted anew for these blocks:
    with D = width, F = inner, c = compute, s = stream
        norms       2 x 4 D, their 32-bit inputs; where they are trained 2 x s D more
        attention   4 c D, queries, keys, values (repeated where heads share them) and output, and 4 bytes for each head: the
                    kernels of SDPA and flash attention keep no T x T scores
        feed-forward 3 c F (gate, its activation, up), 2 c F without a gate
        linear      where trained their inputs: 2 c D and c F; 5 c D where each casts its own, s being another dtype than c
        LoRA        (6 D + F) x (c + mask) and 7 c rank; where the inputs are no one's else's, else 2 c D + c F and 7 c rank

    Args: compute: bytes of a value that is computed with. stream: bytes of a value between the blocks.
    """
    d, f, c, s = blocks.width, blocks.inner, compute, stream
    total = 8 * d + 4 * c * d + 4 * blocks.heads + (3 if blocks.gated else 2) * c * f
    inputs = (5 if blocks.gated else 4) * c * d if s != c else 2 * c * d
    if blocks.trained:
        total += 2 * s * d + inputs + c * f
    if blocks.rank:
        own = (6 * d + f) * (c + blocks.mask)
        total += (own if blocks.apart else 2 * c * d + c * f) + 7 * c * blocks.rank
    return total


def stack_bytes(
    blocks: Blocks, rows: int, tokens: int, compute: int, stream: int, checkpointing: bool, pairs: int = 0
) -> tuple[int, int]:
    """What all blocks keep of a micro-batch, and what comes on top while the backward pass goes through one of them.

    With checkpointing (arXiv 2205.05198, section 5; arXiv 1604.06174) the input of every block, s D a token, and all of the
    one block that is computed again. On top: the gradients of a block's widest values, 3 c F and 2 s D a token, an estimate.

    Args:
        rows: of a micro-batch. tokens: T, of its longest row, to which the others are padded.
        pairs: bytes kept for each pair of tokens of a row: see `pair_bytes`.

    Returns:
        Kept, working; both 0 without layers.
    """
    if not blocks.layers:
        return 0, 0
    one = rows * tokens * block_bytes(blocks, compute, stream) + pairs * rows * tokens**2 + compute * blocks.weights
    working = rows * tokens * (3 * compute * blocks.inner + 2 * stream * blocks.width)
    if checkpointing:
        return blocks.layers * rows * tokens * stream * blocks.width, one + working
    return blocks.layers * one, working


def pair_bytes(attention: str, heads: int, compute: int, padded: bool) -> int:
    """What attention keeps for each pair of tokens of a row, in one layer.

    "eager" keeps the scores after the softmax in 32 bits and as they are computed with. SDPA keeps none, but where rows are
    padded each layer makes numbers of the mask; flash attention needs no mask.
    """
    if attention == "eager":
        return heads * (4 + compute if compute != 4 else 4)
    return compute if padded and not attention.startswith("flash") else 0


def logit_bytes(positions: int, vocabulary: int, width: int, compute: int) -> int:
    """Output layer and cross-entropy at the positions that have labels, and nowhere else.

    A score as computed, its 32-bit copy (none where computed so), its log-probability and the gradients of all three: 14 bytes
    in 16 bits, 16 in 32; and the final norm's 32-bit input.
    """
    return positions * (vocabulary * (14 if compute == 2 else 16) + 4 * width)


def module_bytes(
    images: int,
    patches: int,
    vision: int,
    width: int,
    blocks: int,
    language: int,
    keys: int,
    compute: int,
    wide: int = 4,
) -> int:
    """What safety projector and head keep where they are trained; they are fp32, their convolutions compute in `compute`.

    A residual block (`projector.RegBlock`), of a patch: the inputs of three convolutions, c C each, and 7 values of 32 bits
    (three norms, three activations, the gate's input), C = width. Readout: c C and, around its activation, 2 c D. Head: of each
    key its norm's input and the key itself, 2 x 4 D.

    Args:
        images: that the projector sees in a micro-batch. patches: P. vision: V. width: C. blocks: residual blocks;
            0 for an MLP. language: D. keys: head tokens, patches and question, of all units of the micro-batch.
        wide: bytes of a value that is not multiplied; 4, because a GPU's autocast computes norms in 32 bits.
    """
    block = 3 * compute * width + 7 * wide * width
    shortcut = 2 * compute * vision + wide * width if blocks else compute * vision
    return images * patches * (blocks * block + shortcut + compute * (width + 2 * language)) + keys * 8 * language


def checkpoint_bytes(weights: Weights, optimizer: float, copies: bool) -> float:
    """A checkpoint: trained parameters in 32 bits, the optimizer's states and, of DeepSpeed, the 32-bit and the held copies."""
    own = 4 * weights.trained if copies else weights.trained_bytes
    return own + optimizer + (6 * weights.trained if copies else 0)
