"""Seconds, FLOPs and memory of training and answering, with the safety modules against plain LLaVA, in one run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from safety_modules.model.losses import lm_loss, safety_losses
from safety_modules.model.packing import enable_packing
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.prompt.head_inputs import HeadInputs
from train.benchmarks.shapes import BenchmarkShape, build_model, random_rows, row_lengths
from train.benchmarks.timing import time_in_turns
from train.build import linear_layers
from train.data.dataset import Collator
from train.data.head_only import collate_features
from train.features.shards import Shards
from train.features.store import FeatureStore
from train.loop.sampler import StepSampler
from train.loop.trainer import TARGETS

HEAD_WEIGHT = 10.0
VARIANTS = {  # each adds one thing to the one before; plain_packed is measured beside packed
    "plain": "the base as transformers trains it: padded, rows in random order, loss over all positions",
    "safety": "the same with the safety modules",
    "labels": "logits only where labels are",
    "grouped": "steps of rows of about equal length",
    "packed": "without padding",
    "plain_packed": "packed, without the safety modules: the difference is what they cost",
    "features": "packed, with stored features in place of the vision tower's pass",
}
PACKED = ("packed", "features", "plain_packed")
STOCK_INPUTS = ("input_ids", "attention_mask", "pixel_values", "labels")
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # bf16, dense


class LoraTraining:
    """LoRA on the language model of a shape, and the safety modules, in one of VARIANTS.

    Attributes:
        rows: trained on in one `run`.
        tokens: of these rows, without safety tokens.
    """

    def __init__(
        self, shape: BenchmarkShape, variant: str, device: str, dtype: torch.dtype, max_steps: int | None = None
    ) -> None:
        self.variant, self.device = variant, device
        plain = variant.startswith("plain")
        self.model = build_model(shape, device, dtype, plain)
        lora = LoraConfig(r=shape.rank, lora_alpha=16, target_modules=linear_layers(self.model.base))
        with torch.device(device):
            get_peft_model(self.model.base, lora)
        if variant in PACKED:
            enable_packing(self.model.base)
        self.model.train()
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5)
        lengths = row_lengths(shape, shape.pool)
        rows = random_rows(shape, self.model, lengths, tokens=not plain, features=variant == "features")
        grouped = variant == "grouped" or variant in PACKED
        order = list(StepSampler(len(rows), shape.batch, seed=0, lengths=lengths if grouped else None))
        steps = [order[start : start + shape.batch] for start in range(0, len(order), shape.batch)][:max_steps]
        self.batches = [self._batch([rows[i] for i in step]) for step in steps]
        patches = self.model.backbone.patches(self.model.config)
        self.rows = len(order)
        self.tokens = sum(lengths[i][0] + 1 + (patches if lengths[i][1] else 0) for i in order)

    def _batch(self, rows: list[dict]) -> dict[str, object]:
        if self.variant not in ("plain", "safety"):
            return Collator(self.model.processor, self.variant in PACKED)(rows)
        batch = self.model.processor.collate([_without_name(row) for row in rows])
        if self.variant == "plain":
            return {name: batch[name] for name in STOCK_INPUTS if name in batch}
        return {**batch, "labels": torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)}

    def run(self) -> None:
        """All steps, once; on the device "meta" nothing is computed, and the optimizer is left out."""
        for batch in self.batches:
            with _autocast(self.device):
                loss = self._loss(_to(batch, self.device))
            loss.backward()
            if self.device != "meta":
                self.optimizer.step()
            self.optimizer.zero_grad()

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        if self.variant == "plain":
            return self.model.base(**batch, use_cache=False).loss
        if self.variant == "plain_packed":
            return lm_loss(self.model(**_inputs(batch)).logits, batch["labels"], batch["tokens"])
        return _safety_loss(self.model, batch)


def count_flops(shape: BenchmarkShape, max_steps: int | None = None) -> dict[str, float]:
    """Floating-point operations of all steps, forward and backward, counted without weights.

    Of the packed variants alone: for padded rows transformers looks at values of the mask, and there are none.
    """
    flops = {}
    for variant in PACKED:
        training = LoraTraining(shape, variant, "meta", torch.float32, max_steps)
        with FlopCounterMode(display=False) as counter:
            training.run()
        flops[variant] = counter.get_total_flops()
    return flops


def measure_training(shape: BenchmarkShape, device: str, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """For each variant seconds of all steps, rows and tokens per second, and on a GPU peak_memory_gib.

    The variants take turns on a CPU; a GPU holds one model at a time. `packed` has its overhead over `plain_packed`.
    """
    gpu, timings, measured = device == "cuda", {}, {}
    for group in [[variant] for variant in VARIANTS] if gpu else [list(VARIANTS)]:
        if gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        trainings = {variant: LoraTraining(shape, variant, device, dtype) for variant in group}
        runs = {variant: training.run for variant, training in trainings.items()}
        timings |= time_in_turns(runs, shape.repeats, warm_up=True)
        for variant, training in trainings.items():
            seconds = timings[variant].median
            measured[variant] = {"seconds": seconds, "rows": training.rows, "tokens": training.tokens}
            measured[variant]["rows_per_second"] = training.rows / seconds
            measured[variant]["tokens_per_second"] = training.tokens / seconds
            if gpu:
                measured[variant]["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        del trainings, runs, training
    measured["packed"]["overhead"] = timings["packed"].overhead(timings["plain_packed"])
    return measured


def measure_head_only(shape: BenchmarkShape, device: str, dtype: torch.dtype, folder: Path) -> dict[str, float]:
    """Rows per second of stage 1, which runs tower and language model, and of the head alone from stored features."""
    model = build_model(shape, device, dtype)
    enable_packing(model.base)
    rows = random_rows(shape, model, _short_lengths(shape, shape.pool))
    store = _random_features(model, folder, shape.pool)
    optimizer = torch.optim.AdamW(model.safety.parameters(), lr=1e-5)
    collate = Collator(model.processor, packing=True)
    head_rows = []
    for row in rows:
        question = (row["question_mask"] > 0).index_fill(0, torch.tensor(0), True)
        labels = {name: row[name] for name in ("risk_type", "risk_level", "row")}
        head_rows.append({**labels, **{name: row[name][question] for name in ("input_ids", "question_mask")}})

    def train(size: int, batch_of: Callable[[range], dict[str, object]]) -> None:
        for start in range(0, shape.pool, size):
            with _autocast(device):
                loss = _safety_loss(model, _to(batch_of(range(start, min(start + size, shape.pool))), device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def stored(numbers: range) -> dict[str, object]:
        return collate_features([{**head_rows[i], **store.of([f"image {i}"])} for i in numbers])

    functions = {
        "stage1": lambda: train(shape.batch, lambda numbers: collate([rows[i] for i in numbers])),
        "head_only": lambda: train(4 * shape.batch, stored),  # fits where there is no language model
    }
    timings = time_in_turns(functions, shape.repeats, warm_up=True)
    return {f"{name}_rows_per_second": shape.pool / timing.median for name, timing in timings.items()}


@torch.no_grad()
def measure_answering(shape: BenchmarkShape, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Seconds of an answer by the base, and by the base with verdict and safety tokens, and of the parts of both."""
    model, measured = build_model(shape, device, dtype).eval(), {}
    for count in (1, 8):
        timings = time_in_turns(_answering(shape, model, count, device, dtype), 5 * shape.repeats, warm_up=True)
        measured |= {f"{name}_seconds_batch_{count}": timing.median for name, timing in timings.items()}
        measured[f"overhead_batch_{count}"] = timings["safe"].overhead(timings["base"])
    return measured


def _answering(
    shape: BenchmarkShape, model: SafeVLM, count: int, device: str, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    """Ways to answer `count` exchanges; with one new token it is the prefill alone."""
    batches = []
    for tokens in (False, True):
        rows = random_rows(shape, model, _short_lengths(shape, count), tokens)
        batches.append(_to(model.processor.collate([_without_name(row) for row in rows], side="left"), device))
    plain, safe = batches
    pixels = plain["pixel_values"].to(dtype)

    def base(new_tokens: int) -> None:
        model.generate(plain["input_ids"], plain["attention_mask"], pixels, max_new_tokens=new_tokens)

    def assess() -> Tensor:
        features = model.vision_features(pixels)
        model.assess(safe["head_inputs"], features=features)
        return features

    def assess_and_answer(new_tokens: int) -> None:
        model.generate(safe["input_ids"], safe["attention_mask"], features=assess(), max_new_tokens=new_tokens)

    return {
        "base": lambda: base(shape.answer),
        "safe": lambda: assess_and_answer(shape.answer),
        "base_prefill": lambda: base(1),
        "safe_prefill": lambda: assess_and_answer(1),
        "assess": assess,
    }


def peak_flops(device: str, dtype: torch.dtype) -> tuple[float, str]:
    """FLOP/s that the device can reach, and the source of the figure."""
    if device == "cuda":
        for name, value in PEAK_FLOPS.items():
            if name in torch.cuda.get_device_name():
                return value, f"data sheet of {name}, bf16 dense"
    size = 8192 if device == "cuda" else 1024
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    product = time_in_turns({"product": lambda: matrix @ matrix}, 8)["product"]
    return 2 * size**3 / min(product.seconds), f"product of two matrices of {size} x {size}"


def _short_lengths(shape: BenchmarkShape, count: int) -> list[tuple[int, bool]]:
    """Of risk data: an image, a short question and a short answer."""
    return [(max(8, round(60 * shape.scale)), True)] * count


def _random_features(model: SafeVLM, folder: Path, count: int) -> FeatureStore:
    """A store of the images "image 0", "image 1", ..., in one shard."""
    shards = Shards(folder)
    width = model.backbone.vision_width(model.config)
    features = torch.randn(1, model.backbone.patches(model.config), width).to(torch.bfloat16)  # (1, P, V)
    keys = {f"image {i}": f"{i:064x}" for i in range(count)}
    folder.mkdir(parents=True, exist_ok=True)
    shards.add([shards.write({key: (features + i, None) for i, key in enumerate(keys.values())})], keys.values())
    return FeatureStore(keys, features[:0], shards)


def _safety_loss(model: SafeVLM, batch: dict[str, Tensor]) -> Tensor:
    output = model(**_inputs(batch))
    scores = (output.type_logits, output.level_logits, batch["risk_type"], batch["risk_level"])
    return safety_losses(output.logits, batch.get("labels"), *scores, HEAD_WEIGHT).loss


def _inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name not in TARGETS}


def _without_name(row: dict) -> dict[str, Tensor]:
    return {name: value for name, value in row.items() if name != "row"}


def _to(batch: dict[str, object], device: str) -> dict[str, object]:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, (Tensor, HeadInputs)) else value
        for name, value in batch.items()
    }


def _autocast(device: str) -> AbstractContextManager:
    return torch.autocast("cuda", torch.bfloat16) if device == "cuda" else nullcontext()
