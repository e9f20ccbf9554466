"""Measure training and answering on a model of real proportions with random weights, against plain LLaVA in one run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

from safety_modules.files import write_text
from train.benchmarks import against_plain
from train.benchmarks.shapes import LLAVA_7B, SHAPES, BenchmarkShape


def main(args: list[str] | None = None) -> None:
    """Parse, measure, write, print."""
    parser = argparse.ArgumentParser(prog="scripts.benchmark", description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny", help="of the model (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/benchmark.json"), help="JSON file of the results (default: %(default)s)"
    )
    options = parser.parse_args(args)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and options.shape != "tiny":
        parser.error(f"--shape {options.shape} needs a GPU; use --shape tiny, which counts the FLOPs of 7b as well")
    results = measure(SHAPES[options.shape], device, torch.bfloat16 if device == "cuda" else torch.float32)
    write_text(options.out, json.dumps(results, indent=1) + "\n")
    print(json.dumps({name: value for name, value in results.items() if isinstance(value, float)}, indent=1))


def measure(shape: BenchmarkShape, device: str, dtype: torch.dtype) -> dict[str, object]:
    """All results of one shape: ratios first, then `raw` measurements and what they were measured on."""
    flops, flops_7b = against_plain.count_flops(shape), against_plain.count_flops(LLAVA_7B, max_steps=2)
    training = against_plain.measure_training(shape, device, dtype)
    with tempfile.TemporaryDirectory() as folder:
        head_only = against_plain.measure_head_only(shape, device, dtype, Path(folder))
    answering = against_plain.measure_answering(shape, device, dtype)
    peak_flops, source = against_plain.peak_flops(device, dtype)
    packed, gpu = training["packed"], device == "cuda"
    return {
        "packing_speedup": packed["tokens_per_second"] / training["labels"]["tokens_per_second"],
        "whole_speedup": packed["tokens_per_second"] / training["plain"]["tokens_per_second"],
        "head_only_speedup": head_only["head_only_rows_per_second"] / head_only["stage1_rows_per_second"],
        "train_overhead": packed["overhead"] if gpu else _overhead(flops_7b),
        "train_overhead_is": "seconds" if gpu else "FLOPs at the 7b shape: a small model's are out of proportion",
        "train_overhead_seconds": packed["overhead"],
        "train_overhead_flops": _overhead(flops),
        "generate_overhead": answering["overhead_batch_1"],
        "generate_overhead_batch_8": answering["overhead_batch_8"],
        "assess_ms": answering["assess_seconds_batch_1"] * 1000,
        "mfu": flops["packed"] / packed["seconds"] / peak_flops,
        "rows_per_second": packed["rows_per_second"],
        "tokens_per_second": packed["tokens_per_second"],
        "peak_memory_gib": packed.get("peak_memory_gib", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20),
        "raw": {
            "training": {
                name: {"what": against_plain.VARIANTS[name], **values, "flops": flops.get(name)}
                for name, values in training.items()
            },
            "head_only": head_only,
            "answering": answering,
            "peak_flops": {"per_second": peak_flops, "source": source},
            "flops_7b": {"steps": 2, **flops_7b},
        },
        "shape": vars(shape),
        "hardware": {
            "device": torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "dtype": str(dtype).removeprefix("torch."),
        },
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")}
        | {"python": platform.python_version()},
    }


def _overhead(flops: dict[str, float]) -> float:
    """What the safety modules add to a training step."""
    return flops["packed"] / flops["plain_packed"] - 1


if __name__ == "__main__":
    main()
