"""Forecast: how large and how long a stage will be, from its configuration and its rows; no weight is read."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers import TrainingArguments

from safety_modules.config import ConfigError
from train.config import TrainConfig
from train.data.dataset import ExchangeDataset
from train.data.mixture import read_train
from train.loop.checks import check_settings
from train.loop.resume import last_complete_checkpoint, matching_accumulation
from train.planning.activations import Batch, activations, longest
from train.planning.memory import CUDA, FULL, GIB, TIGHT, States, Strategy, checkpoint_bytes, states
from train.planning.meta_model import Count, MetaModel
from train.planning.throughput import Speed
from train.run import training_arguments

CONFIGS = "train/configs"
STRATEGIES = ("", "zero2", "zero3", "zero2_offload", "zero3_offload")  # the faster first; "" is DDP
UNSEEN = ("tf32", "deepspeed")  # not asked here: one is of the GPU, the other is what is planned
SAFETY = ("safety projector", "head tokens", "language-model tokens", "head")


@dataclass(frozen=True)
class Row:
    """One strategy on the card: `peak` bytes on each GPU, and the verdict, "fits", "tight", "no", or why it cannot be."""

    strategy: Strategy
    states: States
    activations: dict[str, int]
    peak: float
    verdict: str


@dataclass(frozen=True)
class Steps:
    """How long the stage is. `disk` is in bytes: of one checkpoint, and of all that lie there at once with `final/`."""

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
    """All that is printed. `speed` is None without a probe; `memory` is the card's, in bytes."""

    counts: list[Count]
    batch: Batch
    rows: list[Row]
    steps: Steps
    speed: Speed | None
    processes: int
    memory: float

    def cheapest(self) -> Row | None:
        """The fastest strategy that fits, else the first that is tight."""
        for verdict in ("fits", "tight"):
            for row in self.rows:
                if row.verdict == verdict:
                    return row
        return None

    def hours(self) -> float | None:
        """From the next step to the end at the probe's speed, for its processes; without evaluations and checkpoints."""
        left = (self.steps.total - self.steps.done) * self.steps.rows_of_step
        return left / self.speed.rows_per_second / 3600 if self.speed else None

    def to_dict(self) -> dict:
        """Plain values, for JSON; sizes in bytes."""
        return {
            **asdict(self),
            "cheapest": row.strategy.name if (row := self.cheapest()) else None,
            "hours": self.hours(),
        }


def plan(config: TrainConfig, processes: int, memory: float | None = None) -> Plan:
    """Everything but the probe; no weight is read and nothing is written.

    Args: memory: GiB of a card; None for that of the GPU there is, else 80.

    Raises:
        ConfigError, CheckpointError, DataError: as in `train.run`.
    """
    if memory is None:
        memory = torch.cuda.get_device_properties(0).total_memory / GIB if torch.cuda.is_available() else 80.0
    arguments = _arguments(config)
    last = last_complete_checkpoint(config.output, clear=False)
    batch, parts = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    parts = matching_accumulation(last, batch, parts, processes) if last else parts
    meta_model = MetaModel.of(config)
    rows, _ = read_train(config.data, meta_model.model.taxonomy, arguments.seed, answers=not config.head_only)
    rows = ExchangeDataset(rows, meta_model.model.processor, meta_model.model.taxonomy, config.data, train=True)
    patches = meta_model.model.backbone.patches(meta_model.model.config)
    largest = longest(rows, patches, batch, config.data.packing and not config.head_only)
    table = [_row(name, meta_model, config, arguments, largest, processes, memory * GIB) for name in STRATEGIES]
    steps = _steps(config, arguments, meta_model, len(rows), batch * parts * processes, last)
    return Plan(meta_model.counts(), largest, table, steps, None, processes, memory * GIB)


def _arguments(config: TrainConfig) -> TrainingArguments:
    """The stage's arguments as a CPU has them, and not those of a run in its folder; what they refuse is refused."""
    values = {name: value for name, value in config.trainer.items() if name not in UNSEEN}
    with tempfile.TemporaryDirectory() as folder:
        trainer = {**values, "use_cpu": True, "report_to": "none"}
        arguments = training_arguments(dataclasses.replace(config, output=folder, trainer=trainer))
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


def _row(
    name: str,
    meta_model: MetaModel,
    config: TrainConfig,
    arguments: TrainingArguments,
    batch: Batch,
    processes: int,
    memory: float,
) -> Row:
    chosen = strategy(name, meta_model.model.backbone.language_width(meta_model.model.config))
    half = arguments.fp16 or arguments.bf16
    whole = torch.float32 if chosen.stage else meta_model.model.base.dtype
    compute = (torch.float16 if arguments.fp16 else torch.bfloat16) if half else whole
    held = states(meta_model.weights(), chosen, meta_model.optimizer(arguments.optim), processes, half)
    cast = half and not chosen.stage
    kept = activations(meta_model, config, batch, compute, arguments.gradient_checkpointing, cast)
    peak = CUDA + held.stay + max(sum(kept.values()), held.step)
    verdict = "fits" if peak <= TIGHT * memory else "tight" if peak <= FULL * memory else "no"
    if not chosen.stage and meta_model.short():
        verdict = "needs dtype float32"
    if chosen.stage == 3 and config.quantize:
        verdict = "not with quantize"
    return Row(chosen, held, kept, peak, verdict)


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
    each = arguments.save_steps if arguments.save_steps >= 1 else math.ceil(total * arguments.save_steps)
    count = {"no": 0, "epoch": math.ceil(total / per_epoch), "steps": math.ceil(total / each)}.get(
        str(arguments.save_strategy.value), 0
    )
    weights = meta_model.weights()
    size = checkpoint_bytes(weights, meta_model.optimizer(arguments.optim), bool(config.trainer.get("deepspeed")))
    kept = (
        min(count, arguments.save_total_limit + 1) if arguments.save_total_limit else count
    )  # one more while it is written
    full = not config.lora and meta_model.trains("vision tower", "base projector", "language model", "output layer")
    final = sum(c.bytes for c in meta_model.counts() if c.trained or full or c.part in SAFETY)
    place = next(
        folder
        for folder in (Path(config.output).absolute(), *Path(config.output).absolute().parents)
        if folder.is_dir()
    )
    done = int(last.name.rpartition("-")[2]) if last else 0
    free = shutil.disk_usage(place).free
    return Steps(rows, rows_of_step, per_epoch, total, done, count, size, kept * size + final, free)
