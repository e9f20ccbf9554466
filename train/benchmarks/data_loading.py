"""Data speed: what opening, loading and auditing cost, each against its lower bound in the same run."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig

import data_recipes
from data_recipes.core.mixture import Source
from safety_modules.config import SafetyConfig
from safety_modules.evaluation import audit
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.pipeline import QUESTION
from safety_modules.prompt.images import load_image
from safety_modules.prompt.processor import SafeProcessor
from safety_modules.taxonomy import Taxonomy
from train.config import DataConfig
from train.data.dataset import ExchangeDataset
from train.experiments.harness import BASE

WIDTH, HEIGHT = 640, 480
REPEATS = 4  # rounds over the images in one run of the loader: starting its processes then counts little
WORDS = 'the a picture shows "some" man with {hat} and [two] dogs on \\ green grass near é house while it rains'.split()
OPEN = """
import resource, sys, time
from data_recipes._json import JsonRows
start = time.perf_counter()
rows = JsonRows(sys.argv[1])
seconds = time.perf_counter() - start
first = time.perf_counter()
for place in range(0, len(rows), max(1, len(rows) // 2000)):
    rows[place]
row = (time.perf_counter() - first) / len(range(0, len(rows), max(1, len(rows) // 2000)))
print(seconds, row, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(rows))
"""


def opening(folder: Path, rows: int) -> dict[str, float]:
    """Open a LLaVA JSON of so many rows in a fresh process: seconds, GiB at most, and microseconds for a row then."""
    path = folder / f"rows-{rows}.json"
    if not path.is_file():
        _write_conversations(path, rows)
    done = subprocess.run([sys.executable, "-c", OPEN, str(path)], check=True, capture_output=True, text=True)
    seconds, row, peak, count = (float(value) for value in done.stdout.split())
    return {
        "open_rows": count,
        "open_file_gib": path.stat().st_size / 2**30,
        "open_seconds": seconds,
        "open_peak_gib": peak / 2**20,
        "open_row_microseconds": row * 1e6,
    }


def loading(folder: Path, images: int, workers: int) -> dict[str, float]:
    """Rows per second of a LLaVA JSON with JPEGs, against decoding the same JPEGs, both with the same worker processes.

    `load`: recipe, row and decoded image. `encode`: with the base's pixel processing and the tokens, ready for the model.
    """
    root = _jpegs(folder / "jpegs", images)
    taxonomy = Taxonomy.default()
    rows = data_recipes.load("llava_instruct", root / "annotations.json", "train", taxonomy)
    rows = rows.take(np.tile(np.arange(images), REPEATS))
    processor = SafeProcessor.from_pretrained(BASE, 8)
    encoded = ExchangeDataset(rows, processor, taxonomy, DataConfig(root="", train=[Source("llava_instruct")]))
    files = sorted(root.glob("*.jpg"))[:images] * REPEATS
    speeds = alternate(
        {
            "decode": lambda: _consume(_Each(files, load_image), workers),
            "load": lambda: _consume(_Each(rows, _decoded), workers),
            "encode": lambda: _consume(encoded, workers),
        },
        images * REPEATS,
    )
    return {
        "load_ratio": speeds["load"] / speeds["decode"],
        "encode_ratio": speeds["encode"] / speeds["decode"],
        **{f"{name}_rows_per_second": speed for name, speed in speeds.items()},
    }


def auditing(folder: Path, images: int, workers: int, batch_size: int = 16) -> dict[str, float]:
    """Images per second of an audit, against the vision tower alone on pixel tensors that lie in memory.

    The model has random weights and LLaVA-1.5's proportions at a fifth of its width: 336-pixel images, 576 patches, 24 blocks,
    a language width of four times the tower's. The tower has one thread in both, as it would have one GPU; the audit's reader is
    a process beside it.
    """
    root = _jpegs(folder / "jpegs", images)
    files = sorted(root.glob("*.jpg"))[:images]
    model = _model()
    pixels = model.processor.pixels([load_image(file) for file in files[:batch_size]])["pixel_values"]
    batches = -(-images // batch_size)

    def tower() -> None:
        with torch.inference_mode():
            for _ in range(batches):
                model.vision_features(pixels)

    def run() -> None:
        assert (
            len(list(audit.judge(model, files, [file.name for file in files], batch_size, workers, QUESTION))) == images
        )

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        speeds = alternate({"tower": tower, "audit": run}, images)
    finally:
        torch.set_num_threads(threads)
    return {
        "audit_ratio": speeds["audit"] / speeds["tower"],
        **{f"{name}_pictures_per_second": s for name, s in speeds.items()},
    }


def alternate(runs: dict[str, Callable[[], None]], count: int, rounds: int = 2) -> dict[str, float]:
    """Units per second of several runs, taken in turns so that a busy machine slows all alike; the best of the rounds."""
    seconds = {name: float("inf") for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return {name: count / value for name, value in seconds.items()}


class _Each(Dataset):
    """What a function makes of each item; only that it was made comes back from the worker."""

    def __init__(self, items: Sequence[object], make: Callable[[object], object]) -> None:
        self.items, self.make = items, make

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> int:
        self.make(self.items[index])
        return index


def _decoded(sample: object) -> list[Image.Image]:
    return [load_image(image) for image in sample.images]


def _consume(rows: Dataset, workers: int) -> None:
    for _ in DataLoader(rows, batch_size=16, num_workers=workers, collate_fn=list):
        pass


def _write_conversations(path: Path, rows: int) -> None:
    """A LLaVA JSON of mix665k's manner: about a kilobyte a row, texts with quotes, brackets and backslashes."""
    rng = random.Random(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            turns = []
            for turn in range(rng.randint(1, 4)):
                question = ("<image>\n" if not turn else "") + " ".join(rng.choices(WORDS, k=12))
                turns += [
                    {"from": "human", "value": question},
                    {"from": "gpt", "value": " ".join(rng.choices(WORDS, k=40))},
                ]
            row = {"id": f"{number:012d}", "image": f"coco/train2017/{number:012d}.jpg", "conversations": turns}
            file.write(("[\n" if not number else ",\n") + json.dumps(row))
        file.write("\n]\n")


def _jpegs(root: Path, count: int) -> Path:
    """A folder of JPEGs of COCO's size, and their `annotations.json`."""
    root.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        path = root / f"{number:05d}.jpg"
        if not path.is_file():
            coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize(
                (WIDTH, HEIGHT), Image.BICUBIC
            )
            noisy = np.asarray(coarse, dtype=np.int16) + rng.integers(-12, 13, (HEIGHT, WIDTH, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        turns = [{"from": "human", "value": "<image>\nwhat is this ?"}, {"from": "gpt", "value": "it is a picture ."}]
        rows.append({"id": number, "image": path.name, "conversations": turns})
    (root / "annotations.json").write_text(json.dumps(rows), encoding="utf-8")
    return root


def _model() -> SafeVLM:
    """Random weights: a CLIP tower of 24 blocks on 336 pixels, and the tiny base's processor for that size."""
    torch.manual_seed(0)
    processor = AutoProcessor.from_pretrained(BASE)
    processor.image_processor.size, processor.image_processor.crop_size = (
        {"shortest_edge": 336},
        {"height": 336, "width": 336},
    )
    processor.patch_size = 14
    stock = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=192,
            intermediate_size=768,
            num_hidden_layers=24,
            num_attention_heads=3,
            image_size=336,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            vocab_size=len(processor.tokenizer),
            hidden_size=768,
            intermediate_size=768,
            num_hidden_layers=1,
            num_attention_heads=4,
        ),
        image_token_index=processor.tokenizer.convert_tokens_to_ids(processor.image_token),
    )
    base = AutoModelForImageTextToText.from_config(stock)
    return SafeVLM(base, SafeProcessor(processor, 8), SafetyConfig(projector_width=192), Taxonomy.default()).eval()
