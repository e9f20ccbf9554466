"""Activations: the memory that a step's forward and backward pass take beside weights, gradients and optimizer.

There are no formulas: the stage's own model, loss and largest micro-batch run on tensors that have shapes and dtypes
but no data (torch's FakeTensorMode), and every living storage is counted. Attention runs as torch's fused kernel,
which, like flash attention, keeps no scores for pairs of tokens.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from safety_modules.model.losses import safety_losses
from safety_modules.model.packing import enable_packing
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.prompt.head_inputs import HeadInputs
from train.config import TrainConfig
from train.data.dataset import Collator, ExchangeDataset
from train.loop.trainer import TARGETS
from train.planning.meta_model import MetaModel

SAMPLE = 32  # rows at least that are read to find the longest


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch as the collator gives it.

    Attributes:
        inputs: of `SafeVLM.forward`, with labels.
        rows, tokens: B and T of `input_ids`; where rows are packed, 1 and the sum of their lengths.
        images: that the tower encodes.
    """

    inputs: dict[str, Any]
    rows: int
    tokens: int
    images: int


def largest_micro_batch(rows: ExchangeDataset, patches: int, size: int, packing: bool) -> MicroBatch:
    """A micro-batch of the longest rows: found by their characters and images, then read and measured.

    Args: patches: of an image. size: rows of a micro-batch.

    Raises:
        DataError: one of them does not fit, as it would in training.
    """
    lengths = rows.lengths(patches)
    longest_first = sorted(range(len(rows)), key=lambda i: -lengths[i][0])[: max(SAMPLE, size)]
    encoded = sorted((rows[i] for i in longest_first), key=lambda row: -len(row["input_ids"]))
    chosen = (encoded * size)[:size]
    inputs = Collator(rows.processor, packing)(chosen)
    images = sum(int(row["tiles"].sum()) for row in chosen)
    return MicroBatch(inputs, *inputs["input_ids"].shape, images)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that are made while it is active and still live, and their peak."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        """Args: known: tensors that are there already; their storages, and views of them, are not counted."""
        super().__init__()
        self.live = self.peak = 0
        self.storages = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.storages:
            self.storages[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.live -= self.storages.pop(key, 0)


def activation_bytes(
    config: TrainConfig, batch: MicroBatch, checkpointing: bool, compute: torch.dtype | None, cast: bool
) -> int:
    """Peak bytes of a forward and backward pass, gradients of parameters not counted.

    Args:
        checkpointing: of the blocks' activations.
        compute: dtype that linear layers multiply in; None for that of the weights.
        cast: from weights as they are loaded, by autocast; else all weights have that dtype (DeepSpeed).
    """
    meta_model = MetaModel.of(config, quantized=False)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        model = _without_data(meta_model.model, compute, cast).train()
        if config.data.packing and not config.head_only:
            enable_packing(model.base)
        if checkpointing:
            model.gradient_checkpointing_enable()
        inputs = {name: _fake(value, mode) for name, value in batch.inputs.items()}
        if config.head_only:
            shape = (batch.images, model.backbone.patches(model.config), model.backbone.vision_width(model.config))
            inputs = {name: inputs[name] for name in ("head_inputs", "risk_type", "risk_level")}
            inputs["features"] = torch.empty(shape, dtype=torch.bfloat16)
        with LiveBytes([*model.parameters(), *model.buffers()]) as memory:
            _step(model, inputs, config.head_weight, compute if cast else None)
    return memory.peak


def _step(model: SafeVLM, inputs: dict[str, Any], head_weight: float, autocast: torch.dtype | None) -> None:
    """Loss and gradients of a micro-batch; each parameter's gradient is released as soon as it is there."""
    read = {name: value for name, value in inputs.items() if name not in TARGETS}
    with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
        output = model(**read)
        losses = safety_losses(
            output.logits,
            inputs.get("labels"),
            output.type_logits,
            output.level_logits,
            inputs["risk_type"],
            inputs["risk_level"],
            head_weight,
            float(inputs.get("tokens", 1)),
        )
    losses.loss.backward()


def _without_data(model: SafeVLM, compute: torch.dtype | None, cast: bool) -> SafeVLM:
    """A model on the meta device -> the same with parameters and buffers that have no data but seem to be on the CPU.

    Args: as in `activation_bytes`.
    """

    def held(dtype: torch.dtype) -> torch.dtype:
        if not dtype.is_floating_point or compute is None:
            return dtype
        # A CPU's autocast cannot mix float16 and bfloat16; float32 gives the same copies and the same sums.
        mixed = cast and dtype.itemsize == compute.itemsize and dtype != compute
        return torch.float32 if mixed else dtype if cast else compute

    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            parameter = nn.Parameter(
                torch.empty(value.shape, dtype=held(value.dtype)), requires_grad=value.requires_grad
            )
            if value.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
            setattr(module, name, parameter)
        for name, value in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(value.shape, dtype=value.dtype))
    return model


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None


def _fake(value: object, mode: FakeTensorMode) -> object:
    """A batch's tensors without their data."""
    if isinstance(value, HeadInputs):
        return HeadInputs(*(mode.from_tensor(getattr(value, field.name)) for field in fields(value)))
    return mode.from_tensor(value) if isinstance(value, Tensor) else value
