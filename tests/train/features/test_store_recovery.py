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


def test_a_killed_run_goes_on_after_its_last_whole_shard(bases, pictures, tmp_path, computed):
    folder, code = tmp_path / "features", tmp_path / "killed.py"
    code.write_text(
        START + "calls = []\n"
        "os.fsync = lambda file: calls.append(file) or (os.kill(os.getpid(), 9) if len(calls) == 3 else None)\n"
        "FeatureStore.compute(model, pictures, folder)\n"
    )
    assert script(code, bases["llava_next"], pictures[0].parent, folder).returncode == -9
    assert len(shards(folder)) == 2 and len(list(folder.glob("*/*.partial"))) == 1  # killed within the third
    model = SafeVLM.attach(bases["llava_next"], tiny.safety_config())
    store = FeatureStore.compute(model, pictures, folder)
    assert len(computed) == 2 and not list(folder.glob("*/*.partial"))
    assert same(FeatureStore.compute(model, pictures, None), store, pictures[4:])
    for picture in pictures:
        assert torch.allclose(store.of([picture])["features"].float(), tower(model, picture)[0], atol=0.02)


def test_only_files_of_processes_that_are_gone_are_removed(bases, pictures, tmp_path):
    model, folder = SafeVLM.attach(bases["llava"], tiny.safety_config()), tmp_path / "features"
    FeatureStore.compute(model, pictures, folder)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    place, here = shards(folder)[0].parent, socket.gethostname()
    names = {name: place / f"{name}.safetensors.{owner}.partial" for name, owner in {
        "writing": f"{os.getpid()}-{here}", "ended": f"{ended.pid}-{here}", "far": "1-far.away", "long": "1-far.away",
    }.items()}  # fmt: skip
    for path in names.values():
        path.write_bytes(b"half")
    os.utime(names["long"], (OLD, OLD))
    FeatureStore.compute(model, pictures, folder)
    assert {name for name, path in names.items() if path.exists()} == {"writing", "far"}


@pytest.mark.parametrize("kept", [0, 5, 300, -1])
def test_a_cut_off_shard_is_named_and_computed_anew(bases, pictures, tmp_path, computed, caplog, kept, monkeypatch):
    monkeypatch.setattr(module, "SHARD_PICTURES", 2)
    model, folder = SafeVLM.attach(bases["llava"], tiny.safety_config()), tmp_path / "features"
    FeatureStore.compute(model, pictures, folder)
    cut = shards(folder)[1]
    cut.write_bytes(cut.read_bytes()[:kept])
    with caplog.at_level(logging.WARNING):
        store = FeatureStore.compute(model, pictures, folder)
    assert f"{cut}: is damaged" in caplog.text and len(computed) == 6 + 2 and len(shards(folder)) == 3
    for picture in pictures:
        assert torch.allclose(store.of([picture])["features"].float(), tower(model, picture)[0], atol=0.02)


@pytest.mark.parametrize("place", ["features", "sizes"])
def test_a_changed_byte_is_never_read_as_a_feature(bases, pictures, tmp_path, place):
    model, folder = SafeVLM.attach(bases["llava_next"], tiny.safety_config()), tmp_path / "features"
    good = FeatureStore.compute(model, pictures, folder).of(pictures)
    (shard,) = shards(folder)
    data = bytearray(shard.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little")
    start, _ = json.loads(data[8:header])["notes"]["data_offsets"]
    data[header + start + 8 if place == "sizes" else -100] ^= (
        1  # the first picture's height, or one of the last's numbers
    )
    shard.write_bytes(data)
    store = FeatureStore.compute(model, pictures, folder)
    with pytest.raises(DataError, match=f"{shard.name}: was damaged and is removed; start again"):
        [store.of([picture]) for picture in pictures]
    assert not shard.exists()
    assert torch.equal(FeatureStore.compute(model, pictures, folder).of(pictures)["features"], good["features"])


def test_a_broken_picture_is_named(model, pictures, tmp_path):
    pictures[3].write_bytes(pictures[3].read_bytes()[:60])
    with pytest.raises(DataError, match="3.png: not a readable picture"):
        FeatureStore.compute(model, pictures, tmp_path / "features")


def test_a_disk_that_is_too_full_is_told_before_anything_is_computed(model, pictures, tmp_path, computed, monkeypatch):
    folder, needs = tmp_path / "features", []
    real = FeatureStore._room
    monkeypatch.setattr(FeatureStore, "_room", lambda self, count, need: needs.append(need) or real(self, count, need))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(0, 0, 10**12))
    FeatureStore.compute(model, pictures, folder)
    stored = sum(path.stat().st_size for path in shards(folder))
    assert (
        stored
        <= needs[0]
        <= stored + module.HEADER * len(pictures) + (8192 if "next" in model.config.model_type else 0)
    )
    shutil.rmtree(folder)
    computed.clear()
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(0, 0, needs[0] - 1))
    with pytest.raises(
        UserError, match=r"features of 6 pictures need [\d.]+ KiB there and [\d.]+ KiB were free.*data.features"
    ):
        FeatureStore.compute(model, pictures, folder)
    assert computed == [] and shards(folder) == []
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(0, 0, needs[0]))
    FeatureStore.compute(model, pictures, folder)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(0, 0, 0))
    FeatureStore.compute(model, pictures, folder)  # all is there


def test_a_write_that_fails_leaves_nothing_behind(bases, pictures, tmp_path):
    folder, code = tmp_path / "features", tmp_path / "full.py"
    code.write_text(START + "with user_errors_exit():\n    FeatureStore.compute(model, pictures, folder, workers=0)\n")
    arguments = (code, bases["llava"], pictures[0].parent, folder)
    limit = 2100  # a shard of two pictures is larger: 2 x 16 patches x 32 numbers x 2 bytes
    full = script(*arguments, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    assert full.returncode == 2
    (line,) = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert "cannot be written to (File too large); the features of 6 pictures need" in line
    assert [path.name for path in folder.glob("*/*")] == []
    assert script(*arguments).returncode == 0 and len(shards(folder)) == 3
