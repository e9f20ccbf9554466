"""Measure training and answering on a model of real proportions with random weights: ours against plain LLaVA, in one run."""

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
from train.benchmarks import against_plain as measure
from train.benchmarks.setup import SHAPES

LIBRARIES = ("torch", "transformers", "peft")


def main(args: list[str] | None = None) -> None:
    """Parse, measure, write, print."""
    parser = argparse.ArgumentParser(prog="scripts.benchmark", description=__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), default="tiny", help="of the model (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark.json"), help="file (default: %(default)s)")
    options = parser.parse_args(args)
    shape, device = SHAPES[options.shape], "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and options.shape != "tiny":
        parser.error(
            f"--shape {options.shape}: needs a GPU; on a CPU use --shape tiny, which counts the FLOPs of 7b as well"
        )
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    work, large = measure.flops(shape), measure.flops(SHAPES["7b"], limit=2)
    ways = measure.training(shape, device, dtype)
    with tempfile.TemporaryDirectory() as folder:
        head_only = measure.head_only(shape, device, dtype, Path(folder))
    answers = measure.answering(shape, device, dtype)
    best, source = measure.peak(device, dtype)
    seconds = ways["packed"]["seconds"]
    memory = ways["packed"].get("peak_memory_gib", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    found = {
        "packing_speedup": ways["packed"]["tokens_per_second"] / ways["labels"]["tokens_per_second"],
        "whole_speedup": ways["packed"]["tokens_per_second"] / ways["plain"]["tokens_per_second"],
        "guard_cache_speedup": head_only["guard_rows_per_second"] / head_only["stage1_rows_per_second"],
        "train_overhead": ways["packed"]["overhead"]
        if device == "cuda"
        else large["packed"] / large["plain_packed"] - 1,
        "train_overhead_is": "seconds"
        if device == "cuda"
        else "FLOPs at the 7b shape: a small model's are not in proportion",
        "train_overhead_seconds": ways["packed"]["overhead"],
        "train_overhead_flops": work["packed"] / work["plain_packed"] - 1,
        "generate_overhead": answers["overhead_batch_1"],
        "generate_overhead_batch_8": answers["overhead_batch_8"],
        "assess_ms": answers["assess_seconds_batch_1"] * 1000,
        "mfu": work["packed"] / seconds / best,
        "rows_per_second": ways["packed"]["rows_per_second"],
        "tokens_per_second": ways["packed"]["tokens_per_second"],
        "peak_memory_gib": memory,
        "raw": {
            "ways": {
                name: {"what": measure.WAYS[name], **values, "flops": work.get(name)} for name, values in ways.items()
            },
            "head_only": head_only,
            "answering": answers,
            "peak_flops": {"per_second": best, "source": source},
            "flops_7b": {"steps": 2, **large},
        },
        "shape": vars(shape),
        "hardware": {
            "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "dtype": str(dtype).removeprefix("torch."),
        },
        "versions": {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
    }
    write_text(options.out, json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: value for name, value in found.items() if isinstance(value, float)}, indent=1))


if __name__ == "__main__":
    main()
