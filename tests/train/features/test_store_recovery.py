"""A store of features that is killed, cut off, damaged or out of disk."""

import json
import logging
import os
import resource
import shutil
import socket
import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from helpers import tiny
from helpers.feature_runs import OLD, START, same, script, shards, tower

from safety_modules import SafeVLM
from safety_modules.errors import UserError
from safety_modules.sample import DataError
from train.features import store as module
from train.features.store import FeatureStore

Usage = namedtuple("Usage", "total used free")


def test_a_killed_run_continues_after_its_last_complete_shard(bases, images, tmp_path, computed):
    folder, code = tmp_path / "features", tmp_path / "killed.py"
    code.write_text(
        START + "calls = []\n"
        "os.fsync = lambda file: calls.append(file) or (os.kill(os.getpid(), 9) if len(calls) == 3 else None)\n"
        "FeatureStore.compute(model, images, folder)\n"
    )
    assert script(code, bases["llava_next"], images[0].parent, folder).returncode == -9
    assert len(shards(folder)) == 2 and len(list(folder.glob("*/*.partial"))) == 1  # killed within the third
    model = SafeVLM.attach(bases["llava_next"], tiny.safety_config())
    store = FeatureStore.compute(model, images, folder)
    assert len(computed) == 2 and not list(folder.glob("*/*.partial"))
    assert same(FeatureStore.compute(model, images, None), store, images[4:])
    for image in images:
        assert torch.allclose(store.of([image])["features"].float(), tower(model, image)[0], atol=0.02)


def test_only_files_of_processes_that_are_gone_are_removed(bases, images, tmp_path):
    model, folder = SafeVLM.attach(bases["llava"], tiny.safety_config()), tmp_path / "features"
    FeatureStore.compute(model, images, folder)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    place, here = shards(folder)[0].parent, socket.gethostname()
    names = {name: place / f"{name}.safetensors.{owner}.partial" for name, owner in {
        "writing": f"{os.getpid()}-{here}", "ended": f"{ended.pid}-{here}", "far": "1-far.away", "long": "1-far.away",
    }.items()}  # fmt: skip
    for path in names.values():
        path.write_bytes(b"half")
    os.utime(names["long"], (OLD, OLD))
    FeatureStore.compute(model, images, folder)
    assert {name for name, path in names.items() if path.exists()} == {"writing", "far"}


@pytest.mark.parametrize("length", [0, 5, 300, -1])
def test_a_cut_off_shard_is_named_and_computed_again(bases, images, tmp_path, computed, caplog, length, monkeypatch):
    monkeypatch.setattr(module, "SHARD_IMAGES", 2)
    model, folder = SafeVLM.attach(bases["llava"], tiny.safety_config()), tmp_path / "features"
    FeatureStore.compute(model, images, folder)
    cut = shards(folder)[1]
    cut.write_bytes(cut.read_bytes()[:length])
    with caplog.at_level(logging.WARNING):
        store = FeatureStore.compute(model, images, folder)
    assert f"{cut}: is damaged" in caplog.text and len(computed) == 6 + 2 and len(shards(folder)) == 3
    for image in images:
        assert torch.allclose(store.of([image])["features"].float(), tower(model, image)[0], atol=0.02)


@pytest.mark.parametrize("place", ["features", "sizes"])
def test_a_changed_byte_is_never_read_as_a_feature(bases, images, tmp_path, place):
    model, folder = SafeVLM.attach(bases["llava_next"], tiny.safety_config()), tmp_path / "features"
    good = FeatureStore.compute(model, images, folder).of(images)
    (shard,) = shards(folder)
    data = bytearray(shard.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    start, _ = json.loads(data[8:header])["notes"]["data_offsets"]
    data[header + start + 8 if place == "sizes" else -100] ^= (
        1  # the first image's height, or one of the last's numbers
    )
    shard.write_bytes(data)
    store = FeatureStore.compute(model, images, folder)
    with pytest.raises(DataError, match=f"{shard.name}: is damaged and was removed; start again"):
        [store.of([image]) for image in images]
    assert not shard.exists()
    assert torch.equal(FeatureStore.compute(model, images, folder).of(images)["features"], good["features"])


def test_a_broken_image_is_named(model, images, tmp_path):
    images[3].write_bytes(images[3].read_bytes()[:60])
    with pytest.raises(DataError, match="3.png: not a readable image"):
        FeatureStore.compute(model, images, tmp_path / "features")


def test_a_disk_that_is_too_full_is_an_error_before_anything_is_computed(
    model, images, tmp_path, computed, monkeypatch
):
    def free(size):
        monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(0, 0, size))

    folder = tmp_path / "features"
    free(10**12)
    FeatureStore.compute(model, images, folder)
    stored = sum(path.stat().st_size for path in shards(folder))
    shutil.rmtree(folder)
    computed.clear()
    free(stored - 1)
    message = r"features of 6 images need [\d.]+ kB there and [\d.]+ kB were free.*data.features"
    with pytest.raises(UserError, match=message):
        FeatureStore.compute(model, images, folder)
    assert computed == [] and shards(folder) == []
    # one image of LLaVA-NeXT counts with the tiles that it would have if EXIF turned it
    free(stored + module.HEADER * len(images) + (8192 if "next" in model.config.model_type else 0))
    FeatureStore.compute(model, images, folder)
    free(0)
    FeatureStore.compute(model, images, folder)  # all is there


def test_a_write_that_fails_leaves_nothing_behind(bases, images, tmp_path):
    folder, code = tmp_path / "features", tmp_path / "full.py"
    code.write_text(START + "with user_errors_exit():\n    FeatureStore.compute(model, images, folder, workers=0)\n")
    arguments = (code, bases["llava"], images[0].parent, folder)
    limit = 2100  # a shard of two images is larger: 2 x 16 patches x 32 numbers x 2 bytes
    full = script(*arguments, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert full.returncode == 2
    (line,) = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert "cannot be written to (File too large); the features of 6 images need" in line
    assert [path.name for path in folder.glob("*/*")] == []
    assert script(*arguments).returncode == 0 and len(shards(folder)) == 3
