"""Stores of features: what their tests share."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from safety_modules.prompt.messages import ask

ROOT = Path(__file__).parents[2]
OLD = 1_700_000_000  # seconds; a file that young has no hash in the index


START = """
import os, sys, json
sys.path.insert(0, "tests")
from helpers import tiny
from pathlib import Path
from safety_modules import SafeVLM
from safety_modules.errors import user_errors_exit
from train.features import store as features
from train.features.store import FeatureStore
features.SHARD_IMAGES, features.BATCH = 2, 1
base, data, folder = sys.argv[1:]
model = SafeVLM.attach(base, tiny.safety_config())
images = sorted(Path(data).glob("*.png"))
"""


def script(code, *args, **options):
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = options.pop("launcher", [sys.executable])
    return subprocess.run(
        [*command, str(code), *map(str, args)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=150,
        **options,
    )


def tower(model, image):
    """Features and size as the model itself computes them of one image."""
    row = model.processor.encode(ask("", [image]))
    return model.vision_features(row["pixel_values"], row.get("image_sizes")), row.get("image_sizes")


def same(store, other, images):
    return all(torch.equal(value, other.of(images)[name]) for name, value in store.of(images).items())


def shards(folder):
    return sorted(folder.glob("*/*.safetensors"))
