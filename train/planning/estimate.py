"""Estimate: how large and how long a stage will be, from its configuration and its rows; no weight is read."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import TrainingArguments

from safety_modules.config import ConfigError
from train.arguments import training_arguments
from train.config import TrainConfig
from train.data.dataset import ExchangeDataset
from train.data.mixture import read_train
from train.loop.checks import check_settings
from train.loop.resume import last_complete_checkpoint, matching_accumulation
from train.planning.activations import MicroBatch, activation_bytes, largest_micro_batch
from train.planning.memory import CUDA, FULL, GIB, TIGHT, States, Strategy, checkpoint_bytes, states
from train.planning.meta_model import Count, MetaModel
from train.planning.throughput import Speed

CONFIGS = "train/configs"
STRATEGIES = ("", "zero2", "zero3", "zero2_offload", "zero3_offload")  # the faster first; "" is DDP
UNSEEN = ("tf32", "deepspeed")  # not asked here: one is of the GPU, the other is what is planned
SAFETY = ("safety projector", "head tokens", "language-model tokens", "head")


@dataclass(frozen=True)
class StrategyMemory:
    """One strategy on the card: `peak` bytes on each GPU, and "fits", "tight", "no", or why it is impossible."""

    strategy: Strategy
    states: States
    activations: int
    peak: float
    verdict: str


@dataclass(frozen=True)
class Steps:
    """How long the stage is. `checkpoint`: bytes of one. `disk`: of all that exist at once, with `final/`."""

    rows: int
    rows_of_step: int
    per_epoch: int
    total: int
    done: int
    checkpoints: int
    checkpoint: float
    disk: float
    free: int


@dataclass(frozen=True)
class Plan:
    """All that is printed. `speed` is None where no step was measured; `memory` is the card's, in bytes."""

    counts: list[Count]
    batch: MicroBatch
    strategies: list[StrategyMemory]
    steps: Steps
    speed: Speed | None
    processes: int
    memory: float

    def cheapest(self) -> StrategyMemory | None:
        """The fastest strategy that fits, else the first that is tight."""
        by_verdict = {row.verdict: row for row in reversed(self.strategies)}
        return by_verdict.get("fits", by_verdict.get("tight"))

    def hours(self) -> float | None:
        """From the next step to the end at the measured speed and processes; without evaluations and checkpoints."""
        rows = (self.steps.total - self.steps.done) * self.steps.rows_of_step
        return rows / self.speed.rows_per_second / 3600 if self.speed else None

    def to_dict(self) -> dict:
        """Plain values, for JSON; sizes in bytes."""
        cheapest = self.cheapest()
        return {
            "counts": [asdict(count) for count in self.counts],
            "batch": {name: getattr(self.batch, name) for name in ("rows", "tokens", "images")},
            "strategies": [asdict(row) for row in self.strategies],
            "steps": asdict(self.steps),
            "speed": asdict(self.speed) if self.speed else None,
            "processes": self.processes,
            "memory": self.memory,
            "cheapest": cheapest.strategy.name if cheapest else None,
            "hours": self.hours(),
        }


def plan(config: TrainConfig, processes: int, memory: float | None = None) -> Plan:
    """Everything but the measured speed; no weight is read and nothing is written.

    Args: memory: GiB of a card; None for that of the GPU there is, else 80.

    Raises:
        ConfigError, CheckpointError, DataError: as in `train.run`.
    """
    if memory is None:
        memory = torch.cuda.get_device_properties(0).total_memory / GIB if torch.cuda.is_available() else 80.0
    arguments = _arguments(config)
    last = last_complete_checkpoint(config.output)
    size, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    accumulation = matching_accumulation(last, size, accumulation, processes) if last else accumulation
    meta_model = MetaModel.of(config)
    model = meta_model.model
    samples, _ = read_train(config.data, model.taxonomy, arguments.seed, answers=not config.head_only)
    rows = ExchangeDataset(samples, model.processor, model.taxonomy, config.data, train=True)
    packing = config.data.packing and not config.head_only
    batch = largest_micro_batch(rows, model.backbone.patches(model.config), size, packing)
    strategies = _strategies(meta_model, config, arguments, batch, processes, memory * GIB)
    steps = _steps(config, arguments, meta_model, len(rows), size * accumulation * processes, last)
    return Plan(meta_model.counts(), batch, strategies, steps, None, processes, memory * GIB)


def _arguments(config: TrainConfig) -> TrainingArguments:
    """The stage's arguments as a CPU has them, checked as `train.run` checks them."""
    values = {name: value for name, value in config.trainer.items() if name not in UNSEEN}
    trainer = {**values, "use_cpu": True, "report_to": "none"}
    arguments = training_arguments(dataclasses.replace(config, trainer=trainer))
    path = config.trainer.get("deepspeed")
    if isinstance(path, str) and not Path(path).is_file():
        raise ConfigError(f"trainer.deepspeed: there is no file {path!r}; name one, e.g. {CONFIGS}/zero2.json")
    settings = json.loads(Path(path).read_text(encoding="utf-8")) if isinstance(path, str) else path or {}
    asked = SimpleNamespace(n_gpu=0, deepspeed=path, hf_deepspeed_config=SimpleNamespace(config=settings))
    check_settings(config, asked)
    return arguments


def strategy(name: str, width: int) -> Strategy:
    """What a file of `train/configs` says, or DDP for "". Args: width: D, from which transformers fills in "auto"."""
    if not name:
        return Strategy("DDP")
    file = Path(__file__).parents[1] / "configs" / f"{name}.json"
    zero = json.loads(file.read_text(encoding="utf-8"))["zero_optimization"]
    bucket = zero["reduce_bucket_size"]
    return Strategy(
        name.replace("zero", "ZeRO-").replace("_", " + "),
        f"{CONFIGS}/{file.name}",
        zero["stage"],
        "offload_optimizer" in zero,
        "offload_param" in zero,
        width**2 if bucket == "auto" else bucket,
        zero["stage3_max_live_parameters"] if zero["stage"] == 3 else 0,
        zero["overlap_comm"] and zero["stage"] == 2,
    )


def _strategies(
    meta_model: MetaModel,
    config: TrainConfig,
    arguments: TrainingArguments,
    batch: MicroBatch,
    processes: int,
    memory: float,
) -> list[StrategyMemory]:
    """Each strategy on a card of so many bytes. DeepSpeed's all compute alike, so activations are measured twice."""
    half = torch.float16 if arguments.fp16 else torch.bfloat16 if arguments.bf16 else None
    checkpointing = arguments.gradient_checkpointing
    ddp = activation_bytes(config, batch, checkpointing, half, cast=True)
    deepspeed = activation_bytes(config, batch, checkpointing, half or torch.float32, cast=False)
    optimizer, weights = meta_model.optimizer(arguments.optim), meta_model.weights()
    rows = []
    for name in STRATEGIES:
        chosen = strategy(name, meta_model.model.backbone.language_width(meta_model.model.config))
        held = states(weights, chosen, optimizer, processes, half is not None)
        activations = deepspeed if chosen.stage else ddp
        peak = CUDA + held.stay + max(activations, held.step)
        verdict = "fits" if peak <= TIGHT * memory else "tight" if peak <= FULL * memory else "no"
        if not chosen.stage and meta_model.short():
            verdict = "needs dtype float32"
        if chosen.stage == 3 and config.quantize:
            verdict = "not with quantize"
        rows.append(StrategyMemory(chosen, held, activations, peak, verdict))
    return rows


def _steps(
    config: TrainConfig,
    arguments: TrainingArguments,
    meta_model: MetaModel,
    rows: int,
    rows_of_step: int,
    last: Path | None,
) -> Steps:
    per_epoch = math.ceil(rows / rows_of_step)
    total = arguments.max_steps if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * per_epoch)
    interval = arguments.save_steps if arguments.save_steps >= 1 else math.ceil(total * arguments.save_steps)
    counts = {"epoch": math.ceil(total / per_epoch), "steps": math.ceil(total / interval)}
    count = counts.get(str(arguments.save_strategy.value), 0)
    optimizer = meta_model.optimizer(arguments.optim)
    size = checkpoint_bytes(meta_model.weights(), optimizer, bool(config.trainer.get("deepspeed")))
    at_once = min(count, (arguments.save_total_limit or count) + 1)  # one more while it is written
    full = not config.lora and meta_model.trains("vision tower", "base projector", "language model", "output layer")
    final = sum(c.bytes for c in meta_model.counts() if c.trained or full or c.part in SAFETY)
    output = Path(config.output).absolute()
    free = shutil.disk_usage(next(folder for folder in (output, *output.parents) if folder.is_dir())).free
    done = int(last.name.rpartition("-")[2]) if last else 0
    return Steps(rows, rows_of_step, per_epoch, total, done, count, size, at_once * size + final, free)
