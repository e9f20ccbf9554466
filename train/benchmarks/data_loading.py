"""What opening a data set, loading its rows and auditing cost, each against its lower bound in the same run."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import data_recipes
from data_recipes.core.data_config import Source
from data_recipes.riskworld import BASE
from safety_modules.evaluation import audit
from safety_modules.prompt.images import load_image
from safety_modules.prompt.messages import QUESTION
from safety_modules.prompt.processor import SafeProcessor
from safety_modules.sample import Sample
from safety_modules.taxonomy import Taxonomy
from train.benchmarks.shapes import BenchmarkShape, build_model, layers
from train.benchmarks.timing import time_in_turns
from train.config import DataConfig
from train.data.dataset import ExchangeDataset

WIDTH, HEIGHT = 640, 480
ROUNDS = 2  # of each measurement; the best counts
PASSES = 4  # over the images in one run of the loader, so that starting its processes counts little
WORDS = 'the a picture shows "some" man with {hat} and [two] dogs on \\ green grass near é house while it rains'.split()
AUDITED = BenchmarkShape(  # LLaVA-1.5's proportions at a fifth of its width; the language model is not run
    "audited",
    layers(192, 768, 24, 3, image_size=336, patch_size=14),
    layers(768, 768, 1, 4, vocab_size=1024),
    {"projector_width": 192},
)
OPEN_SCRIPT = """
import resource, sys, time
from data_recipes.readers.indexed_json import JsonRows
start = time.perf_counter()
rows = JsonRows(sys.argv[1])
opened = time.perf_counter()
places = range(0, len(rows), max(1, len(rows) // 2000))
for place in places:
    rows[place]
row_seconds = (time.perf_counter() - opened) / len(places)
print(opened - start, row_seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(rows))
"""


def measure_opening(folder: Path, rows: int) -> dict[str, float]:
    """Open a LLaVA JSON of so many rows in a fresh process: seconds, peak GiB, then microseconds for a row."""
    path = folder / f"rows-{rows}.json"
    if not path.is_file():
        _write_conversations(path, rows)
    process = subprocess.run([sys.executable, "-c", OPEN_SCRIPT, path], check=True, capture_output=True, text=True)
    seconds, row_seconds, peak_kib, count = (float(value) for value in process.stdout.split())
    return {
        "open_rows": count,
        "open_file_gib": path.stat().st_size / 2**30,
        "open_seconds": seconds,
        "open_peak_gib": peak_kib / 2**20,
        "open_row_microseconds": row_seconds * 1e6,
    }


def measure_loading(folder: Path, images: int, workers: int) -> dict[str, float]:
    """Rows per second of a LLaVA JSON with JPEGs, against decoding them alone, with as many worker processes.

    `load`: recipe, row and decoded image. `encode`: also the base's pixel processing and the tokens.
    """
    root = _write_jpegs(folder / "jpegs", images)
    taxonomy = Taxonomy.default()
    samples = data_recipes.load("llava_instruct", root / "annotations.json", "train", taxonomy)
    samples = samples.take(np.tile(np.arange(images), PASSES))
    config = DataConfig(root="", train=[Source("llava_instruct")])
    encoded = ExchangeDataset(samples, SafeProcessor.from_pretrained(BASE, 8), taxonomy, config)
    files = sorted(root.glob("*.jpg"))[:images] * PASSES
    datasets = {"decode": _Applied(load_image, files), "load": _Applied(_load_images, samples), "encode": encoded}

    def consume(rows: Dataset) -> None:
        for _ in DataLoader(rows, batch_size=16, num_workers=workers, collate_fn=list):
            pass

    speeds = _speeds({name: lambda rows=rows: consume(rows) for name, rows in datasets.items()}, len(files))
    return {
        "load_ratio": speeds["load"] / speeds["decode"],
        "encode_ratio": speeds["encode"] / speeds["decode"],
        **{f"{name}_rows_per_second": speed for name, speed in speeds.items()},
    }


def measure_auditing(folder: Path, images: int, workers: int, batch_size: int = 16) -> dict[str, float]:
    """Images per second of an audit, against the vision tower alone on pixel tensors in memory.

    The tower has one thread in both, as it would have one GPU; the audit reads images in processes beside it.
    """
    root = _write_jpegs(folder / "jpegs", images)
    files = sorted(root.glob("*.jpg"))[:images]
    model = build_model(AUDITED, "cpu", torch.float32).eval()
    pixels = model.processor.pixels([load_image(file) for file in files[:batch_size]])["pixel_values"]

    @torch.inference_mode()
    def run_tower() -> None:
        for _ in range(0, images, batch_size):
            model.vision_features(pixels)

    def run_audit() -> None:
        rows = audit.judge(model, files, [file.name for file in files], batch_size, workers, QUESTION)
        assert len(list(rows)) == images

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        speeds = _speeds({"tower": run_tower, "audit": run_audit}, images)
    finally:
        torch.set_num_threads(threads)
    per_second = {f"{name}_images_per_second": speed for name, speed in speeds.items()}
    return {"audit_ratio": speeds["audit"] / speeds["tower"], **per_second}


def _speeds(functions: dict[str, Callable[[], None]], count: int) -> dict[str, float]:
    """Units per second of functions that each process `count` of them."""
    return {name: count / min(timing.seconds) for name, timing in time_in_turns(functions, ROUNDS).items()}


def _load_images(sample: Sample) -> list[Image.Image]:
    return [load_image(image) for image in sample.images]


class _Applied(Dataset):
    """Applies a function to each item in the loader's worker, which sends back the index alone."""

    def __init__(self, function: Callable[[object], object], items: Sequence[object]) -> None:
        self.function, self.items = function, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> int:
        self.function(self.items[index])
        return index


def _write_conversations(path: Path, rows: int) -> None:
    """A LLaVA JSON like mix665k: about a kilobyte a row, texts with quotes, brackets and backslashes."""
    rng = random.Random(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            turns = []
            for turn in range(rng.randint(1, 4)):
                question = ("<image>\n" if not turn else "") + " ".join(rng.choices(WORDS, k=12))
                turns.append({"from": "human", "value": question})
                turns.append({"from": "gpt", "value": " ".join(rng.choices(WORDS, k=40))})
            row = {"id": f"{number:012d}", "image": f"coco/train2017/{number:012d}.jpg", "conversations": turns}
            file.write(("[\n" if not number else ",\n") + json.dumps(row))
        file.write("\n]\n")


def _write_jpegs(root: Path, count: int) -> Path:
    """A folder of JPEGs of COCO's size, and their `annotations.json`."""
    root.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(0), []
    turns = [{"from": "human", "value": "<image>\nwhat is this ?"}, {"from": "gpt", "value": "it is a picture ."}]
    for number in range(count):
        path = root / f"{number:05d}.jpg"
        if not path.is_file():
            coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.BICUBIC), dtype=np.int16)
            noisy = smooth + rng.integers(-12, 13, (HEIGHT, WIDTH, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        rows.append({"id": number, "image": path.name, "conversations": turns})
    (root / "annotations.json").write_text(json.dumps(rows), encoding="utf-8")
    return root
