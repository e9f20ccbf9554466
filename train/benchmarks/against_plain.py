"""Benchmark measure: seconds, FLOPs and memory of training and answering, each way against another in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from safety_modules.model.losses import lm_loss, safety_losses
from safety_modules.model.packing import enable_packing
from safety_modules.model.safe_vlm import SafeVLM
from train.benchmarks import setup
from train.benchmarks.setup import Plain, Shape
from train.data.dataset import Collator
from train.data.head_only import collate_features
from train.features.shards import Shards
from train.features.store import FeatureStore
from train.loop.sampler import StepSampler
from train.loop.trainer import TARGETS
from train.run import linear_layers

HEAD_WEIGHT = 10.0
WAYS = {  # each with one thing more than the one before, but for plain_packed, which is measured beside packed
    "plain": "the base as transformers trains it: padded, rows in random order, loss over all positions",
    "safety": "the same with the safety modules",
    "labels": "logits only where labels are",
    "grouped": "steps of like lengths",
    "packed": "without padding",
    "plain_packed": "as packed, without the safety modules: what they cost is the difference",
    "stored": "as packed, with the features of the vision tower read, not computed",
}
COUNTED = ("packed", "stored", "plain_packed")
PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
}  # bf16 FLOP/s, dense, data sheets


class Training:
    """One model in one way of training it: LoRA on the language model, and the safety modules."""

    def __init__(self, shape: Shape, way: str, device: str, dtype: torch.dtype, limit: int | None = None) -> None:
        """Args: limit: of steps; None for all."""
        self.way, self.device = way, torch.device(device)
        plain = way.startswith("plain")
        self.model = setup.build(shape, device, dtype, Plain if plain else SafeVLM)
        if plain:
            self.model.safety.requires_grad_(False)
        with torch.device(device):
            get_peft_model(
                self.model.base, LoraConfig(r=shape.rank, lora_alpha=16, target_modules=linear_layers(self.model.base))
            )
        packing = way in ("packed", "stored", "plain_packed")
        if packing:
            enable_packing(self.model.base)
        self.model.train()
        trained = [value for value in self.model.parameters() if value.requires_grad]
        self.optimizer = None if device == "meta" else torch.optim.AdamW(trained, lr=1e-5)
        sizes = setup.lengths(shape, shape.pool)
        made = setup.rows(shape, self.model, sizes, not plain, way == "stored")
        grouped = way not in ("plain", "safety", "labels")
        order = list(StepSampler(len(made), shape.batch, seed=0, lengths=sizes if grouped else None))
        steps = [[made[i] for i in order[start : start + shape.batch]] for start in range(0, len(order), shape.batch)]
        collator = Collator(self.model.processor, packing)
        steps = steps[:limit]
        self.batches = [self._stock(step) if way == "plain" else self._all(step, collator) for step in steps]
        patches = self.model.backbone.patches(self.model.config)
        self.rows = len(order)
        self.tokens = sum(sizes[i][0] + 1 + (patches if sizes[i][1] else 0) for i in order)  # without safety tokens

    def _stock(self, step: list[dict]) -> dict[str, Tensor]:
        rows = [{name: value for name, value in row.items() if name != "row"} for row in step]
        batch = self.model.processor.collate(rows, side="right")
        return {
            name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values", "labels") if name in batch
        }

    def _all(self, step: list[dict], collator: Collator) -> dict[str, object]:
        if self.way != "safety":
            return collator(step)
        rows = [{name: value for name, value in row.items() if name != "row"} for row in step]
        batch = self.model.processor.collate(rows, side="right")
        return {**batch, "labels": torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)}

    def run(self) -> None:
        """All steps, once."""
        half = self.device.type == "cuda"
        for batch in self.batches:
            given = {k: v.to(self.device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}
            with torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext():
                loss = self._loss(given)
            loss.backward()
            if self.optimizer:
                self.optimizer.step()
                self.optimizer.zero_grad()
            else:
                self.model.zero_grad()

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        if self.way == "plain":
            return self.model.base(**batch, use_cache=False).loss
        output = self.model(**{name: value for name, value in batch.items() if name not in TARGETS})
        if self.way == "plain_packed":
            return lm_loss(output.logits, batch["labels"], batch["tokens"])
        heads = (output.type_logits, output.level_logits, batch["risk_type"], batch["risk_level"])
        return safety_losses(output.logits, batch["labels"], *heads, HEAD_WEIGHT).loss


def flops(shape: Shape, limit: int | None = None) -> dict[str, float]:
    """Floating-point operations of the steps of a way, forward and backward, counted without weights.

    Of the ways without padding: to padded rows transformers asks the device a question, which has no answer there.
    """
    found = {}
    for way in COUNTED:
        training = Training(shape, way, "meta", torch.float32, limit)
        with FlopCounterMode(display=False) as counter:
            training.run()
        found[way] = counter.get_total_flops()
    return found


def training(shape: Shape, device: str, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """For each way seconds, rows, tokens and GiB at most, medians of the shape's repeats; one way after the other, in turn.

    On a GPU one model is there at a time, so there the ways are measured one by one.
    """
    found = {way: {"seconds": []} for way in WAYS}
    alone = device == "cuda"
    trainings = {way: None if alone else Training(shape, way, device, dtype) for way in WAYS}
    for way in WAYS if alone else ():
        torch.cuda.reset_peak_memory_stats()
        only = Training(shape, way, device, dtype)
        only.run()
        found[way] |= {"rows": only.rows, "tokens": only.tokens}
        found[way]["seconds"] += [_seconds(only.run, device) for _ in range(shape.repeats)]
        found[way]["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        del only
        torch.cuda.empty_cache()
    for repeat in range(0 if alone else shape.repeats + 1):
        for way, one in trainings.items():
            seconds = _seconds(one.run, device)
            found[way] |= {"rows": one.rows, "tokens": one.tokens}
            found[way]["seconds"] += [seconds] if repeat else []  # the first is for warming up
    pairs = zip(found["packed"]["seconds"], found["plain_packed"]["seconds"])
    found["packed"]["overhead"] = statistics.median(ours / plain - 1 for ours, plain in pairs)
    for values in found.values():
        values["seconds"] = statistics.median(values["seconds"])
        values["rows_per_second"] = values["rows"] / values["seconds"]
        values["tokens_per_second"] = values["tokens"] / values["seconds"]
    return found


def head_only(shape: Shape, device: str, dtype: torch.dtype, folder: Path) -> dict[str, float]:
    """Rows per second of stage 1 (images and language model) and of the head alone from stored features."""
    model = setup.build(shape, device, dtype)
    enable_packing(model.base)
    sizes = [(max(8, round(60 * shape.scale)), True)] * shape.pool  # risk data: a short question, a short answer
    whole = setup.rows(shape, model, sizes)
    width = model.backbone.vision_width(model.config)
    shards = Shards(folder)
    features = torch.randn(1, model.backbone.patches(model.config), width).to(torch.bfloat16)
    keys = {f"picture {i}": f"{i:064x}" for i in range(shape.pool)}
    folder.mkdir(parents=True, exist_ok=True)
    shards.find([shards.write({key: (features + i, None) for i, key in enumerate(keys.values())})], keys.values())
    store = FeatureStore(keys, features[:0], shards)
    optimizer = torch.optim.AdamW(model.safety.parameters(), lr=1e-5)
    collate = Collator(model.processor, packing=True)
    heads = [{name: row[name] for name in ("risk_type", "risk_level", "row")} for row in whole]
    for head, row in zip(heads, whole):
        kept = (row["question_mask"] > 0).index_fill(0, torch.tensor(0), True)
        head |= {"input_ids": row["input_ids"][kept], "question_mask": row["question_mask"][kept]}

    def step(batch: dict[str, object]) -> None:
        given = {k: v.to(device, non_blocking=True) if torch.is_tensor(v) else v for k, v in batch.items()}
        with torch.autocast("cuda", torch.bfloat16) if device == "cuda" else nullcontext():
            output = model(**{name: value for name, value in given.items() if name not in TARGETS})
            scores = (output.type_logits, output.level_logits, given["risk_type"], given["risk_level"])
            safety_losses(output.logits, given.get("labels"), *scores, HEAD_WEIGHT).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def stage1() -> None:
        for part in _parts(range(shape.pool), shape.batch):
            step(collate([whole[i] for i in part]))

    def alone() -> None:
        for part in _parts(range(shape.pool), 4 * shape.batch):  # what fits, where no language model is
            read = (store.of([f"picture {i}"]) for i in part)
            step(collate_features([{**heads[i], **seen} for i, seen in zip(part, read)]))

    times = _in_turn({"stage1": stage1, "head_only": alone}, shape.repeats, device)
    return {f"{name}_rows_per_second": shape.pool / statistics.median(seconds) for name, seconds in times.items()}


@torch.no_grad()
def answering(shape: Shape, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of an answer by the base and by the base with verdict and safety tokens, their parts, and of a verdict alone."""
    model = setup.build(shape, device, dtype).eval()
    found = {}
    for count in (1, 8):
        times = _in_turn(_answers(shape, model, count, device, dtype), 5 * shape.repeats, device)
        found |= {f"{name}_seconds_batch_{count}": statistics.median(seconds) for name, seconds in times.items()}
        pairs = (safe / base - 1 for base, safe in zip(times["base"], times["safe"]))  # each with its neighbour in time
        found[f"overhead_batch_{count}"] = statistics.median(pairs)
    return found


def _answers(
    shape: Shape, model: SafeVLM, count: int, device: str, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    """Ways to answer `count` exchanges; without tokens to answer with, the first one alone: prefill."""
    sizes = [(max(8, round(60 * shape.scale)), True)] * count
    inputs = []
    for tokens in (False, True):
        rows = [{name: row[name] for name in row if name != "row"} for row in setup.rows(shape, model, sizes, tokens)]
        batch = model.processor.collate(rows, side="left")
        inputs.append({name: value.to(device) for name, value in batch.items()})
    plain, safe = inputs
    pixels = plain["pixel_values"].to(dtype)

    def base(new: int) -> None:
        model.generate(plain["input_ids"], plain["attention_mask"], pixels, max_new_tokens=new)

    def assess() -> Tensor:
        features = model.vision_features(pixels)
        model.assess(safe["head_inputs"], features=features)
        return features

    def both(new: int) -> None:
        model.generate(safe["input_ids"], safe["attention_mask"], features=assess(), max_new_tokens=new)

    return {
        "base": lambda: base(shape.answer),
        "safe": lambda: both(shape.answer),
        "base_prefill": lambda: base(1),
        "safe_prefill": lambda: both(1),
        "assess": assess,
    }


def peak(device: str, dtype: torch.dtype) -> tuple[float, str]:
    """FLOP/s that the device can do at most, and where the figure is from."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
        for known, value in PEAKS.items():
            if known in name:
                return value, f"data sheet of {known}, bf16 dense"
    size = 8192 if device == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / min(
        _seconds(lambda: a @ a, device) for _ in range(8)
    ), f"product of two matrices of {size} x {size}"


def _in_turn(ways: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each, measured one after the other in turn, after one round that does not count."""
    found = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            seconds = _seconds(way, device)
            found[name] += [seconds] if repeat else []
    return found


def _seconds(way: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    way()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _parts(numbers: range, size: int) -> Iterator[range]:
    return (numbers[start : start + size] for start in range(0, len(numbers), size))
