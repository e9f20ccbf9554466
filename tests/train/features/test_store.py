"""The store of features: the tower's output by content, from shards that are whole or not there."""

import json
import os
import pickle
import shutil
import sys

import pytest
import torch
from helpers import tiny
from helpers.dataset_files import drawn, write_parquet
from helpers.feature_runs import OLD, START, same, script, shards, tower
from torch.utils.data import DataLoader

from data_recipes.core.held_out import ImageBytes, fingerprint
from data_recipes.readers import hub
from safety_modules import SafeVLM
from safety_modules.sample import DataError
from train.features import content_hashes as hashing
from train.features import store as module
from train.features.store import FeatureStore, tower_digest


@pytest.mark.parametrize("held", [False, True])
def test_a_row_has_the_features_of_its_images(model, images, tmp_path, held, monkeypatch):
    monkeypatch.setattr(module, "SHARD_IMAGES", 2)
    monkeypatch.setattr(module, "BATCH", 4)
    folder = None if held else tmp_path / "features"
    for _ in range(2):  # computed, then stored
        store = FeatureStore.compute(model, [*images, *images], folder)
        for image in images:
            row, (expected, sizes) = store.of([image]), tower(model, image)
            assert row["features"].dtype == torch.bfloat16 and row["features"].shape == expected.shape
            assert torch.allclose(row["features"].float(), expected, atol=0.02)  # eight bits, and another batch
            assert sizes is None or torch.equal(row["image_sizes"], sizes)
            assert ("image_sizes" in row) == (sizes is not None)
        both = store.of([images[2], images[0]])
        assert torch.equal(both["features"], torch.cat([store.of([images[i]])["features"] for i in (2, 0)]))
        assert len(both.get("image_sizes", [0, 0])) == 2
        nothing = store.of([])
        assert nothing.keys() == {"features", "tiles"} and nothing["features"].shape == (0, *expected.shape[1:])
    assert len(shards(tmp_path / "features")) == (0 if held else 3)
    with pytest.raises(DataError, match="none.png: has no features in this store"):
        store.of([tmp_path / "none.png"])


def test_an_image_is_recognised_by_its_content(bases, images, tmp_path, computed):
    model, folder = SafeVLM.attach(bases["llava"], tiny.safety_config()), tmp_path / "features"
    FeatureStore.compute(model, images, folder)
    assert computed == [*images[:5], images[6]]  # the last two are one, computed once
    moved = tmp_path / "moved"
    images[0].parent.rename(moved)
    (moved / "0.png").rename(moved / "another.png")
    FeatureStore.compute(model, sorted(moved.glob("*.png")), folder)
    assert len(computed) == 6
    before = FeatureStore.compute(model, [moved / "1.png"], folder).of([moved / "1.png"])
    tiny.image(9, (32, 90)).save(moved / "1.png")
    after = FeatureStore.compute(model, sorted(moved.glob("*.png")), folder).of([moved / "1.png"])
    assert computed[6:] == [moved / "1.png"] and not torch.equal(before["features"], after["features"])


def test_images_in_tables_and_streams_are_stored_too(bases, images, tmp_path, computed, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf-cache")
    model, folder = SafeVLM.attach(bases["llava_next"], tiny.safety_config()), tmp_path / "features"
    write_parquet(tmp_path / "set", "train.parquet", [{"image": drawn(number)} for number in range(3)])
    sources = [row.cells["image"][0] for row in hub.read_rows(tmp_path / "set", "train")]
    sources.append(ImageBytes(images[0].read_bytes(), "1/image"))
    for _ in range(2):
        store = FeatureStore.compute(model, [*sources, images[0]], folder)
    assert len(computed) == 4
    expected, sizes = tower(model, sources[1])
    assert torch.allclose(store.of([sources[1]])["features"].float(), expected, atol=0.02)
    assert torch.equal(store.of([sources[1]])["image_sizes"], sizes)
    assert same(FeatureStore.compute(model, sources, None), store, sources[3:])


def test_the_next_run_reads_no_unchanged_file(bases, images, tmp_path, monkeypatch, caplog):
    model, folder = SafeVLM.attach(bases["llava"], tiny.safety_config()), tmp_path / "features"
    FeatureStore.compute(model, images, folder)
    read = []
    monkeypatch.setattr(hashing, "fingerprint", lambda image, split: read.append(image) or fingerprint(image, split))
    FeatureStore.compute(model, images, folder)
    assert read == []
    os.utime(images[2], (OLD, OLD + 1))
    with open(images[4], "ab") as file:
        file.write(b"x")
    os.utime(images[4], (OLD, OLD))
    for _ in range(2):
        FeatureStore.compute(model, images, folder)
    assert read == [images[2], images[4]]
    os.utime(images[3])  # might change again in the same tick
    for _ in range(2):
        FeatureStore.compute(model, images, folder)
    assert read[2:] == [images[3]] * 2
    (folder / "images.json").write_text('{"a": [1')
    FeatureStore.compute(model, images, folder)
    assert len(read) == 4 + 7 and "images.json: cannot be read" in caplog.text
    images[5].unlink()
    with pytest.raises(DataError, match=r"5.png: cannot be read .*check the file"):
        FeatureStore.compute(model, images, folder)


def test_another_tower_or_other_pixels_have_a_folder_of_their_own(bases, tmp_path):
    def digest(family="llava", change=lambda model: None):
        model = SafeVLM.attach(bases[family], tiny.safety_config())
        change(model)
        return tower_digest(model)

    def weight(model):
        model.base.model.vision_tower.embeddings.class_embedding.data[3] += 1e-6

    images = {"image_mean": [0.1, 0.2, 0.3], "size": {"shortest_edge": 33}}
    digests = [
        digest(),
        digest("llava_next"),
        digest(change=weight),
        digest(change=lambda model: model.base.to(torch.bfloat16)),
        digest(change=lambda model: setattr(model.config, "vision_feature_layer", -1)),
        digest(change=lambda model: setattr(model.config, "vision_feature_select_strategy", "full")),
        digest(change=lambda model: setattr(model.config.vision_config, "hidden_act", "gelu")),
        *(
            digest(change=lambda m, k=k, v=v: setattr(m.processor.processor.image_processor, k, v))
            for k, v in images.items()
        ),
    ]
    assert len(set(digests)) == len(digests)
    shutil.copytree(bases["llava"], tmp_path / "elsewhere")
    for model in (
        SafeVLM.attach(tmp_path / "elsewhere", tiny.safety_config(llm_tokens=2)),
        SafeVLM.attach(bases["llava"], tiny.safety_config(), language_model=False),
    ):
        assert tower_digest(model) == digests[0]


def test_workers_read_images_and_rows(model, images, tmp_path):
    store = FeatureStore.compute(model, images, tmp_path / "features", workers=2)
    held = FeatureStore.compute(model, images, None, workers=1)
    assert all(same(store, held, [image]) for image in images)
    copy = pickle.loads(pickle.dumps(store))
    assert same(store, copy, images)

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, place):
            return store.of([images[place]])["features"].clone()

    for image, row in zip(images, DataLoader(Rows(), batch_size=None, num_workers=2)):
        assert torch.equal(row, held.of([image])["features"])


TOGETHER = (
    START
    + """
import shutil, time, torch
torch.distributed.init_process_group("gloo")
rank, folder = torch.distributed.get_rank(), Path(folder)
asked, real = [], features.ImageBatches
def batches(processor, images, size):
    asked.extend(path.name for path in images)
    return real(processor, images, size)
features.ImageBatches = batches
out = {}
def run(name, images, place):
    asked.clear()
    start = time.monotonic()
    try:
        store = FeatureStore.compute(model, images, place)
        out[name] = [list(asked), [float(store.of([p])["features"].float().sum()) for p in images]]
    except ValueError as error:
        out[name] = [str(error), time.monotonic() - start]
    torch.distributed.barrier()
run("half", images, folder / "a")
run("stored", images, folder / "a")
run("memory", images, None)
run("one", images[:1], folder / "b")
run("broken", [images[0], Path(data) / "broken.bmp", *images[1:]], folder / "c")
if rank == 1:
    features.Shards.write = lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
run("full", images, folder / "d")
(folder / f"{rank}.json").write_text(json.dumps(out))
torch.distributed.destroy_process_group()
"""
)


def test_processes_share_the_work_and_none_waits_for_one_that_fails(bases, images, tmp_path):
    folder, code = tmp_path / "features", tmp_path / "together.py"
    code.write_text(TOGETHER)
    (images[0].parent / "broken.bmp").write_bytes(b"none")
    folder.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = script(code, bases["llava_next"], images[0].parent, folder, launcher=launcher)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    names = ["0.png", "1.png", "2.png", "3.png", "4.png", "6.png"]
    for case in ("half", "memory"):
        assert len(first[case][0]) == len(second[case][0]) == 3 and sorted(first[case][0] + second[case][0]) == names
    assert first["stored"][0] == second["stored"][0] == []
    assert first["one"][0] == ["0.png"] and second["one"][0] == []
    alone = FeatureStore.compute(SafeVLM.attach(bases["llava_next"], tiny.safety_config()), images, None)
    sums = [float(alone.of([image])["features"].float().sum()) for image in images]
    for results in (first, second):
        assert all(results[case][1] == pytest.approx(sums, abs=0.5) for case in ("half", "stored", "memory"))
        assert results["one"][1] == pytest.approx(sums[:1], abs=0.5)
    assert "another process of this run has ended" in first["broken"][0] and "broken.bmp: not a" in second["broken"][0]
    assert (
        "another process of this run has ended" in first["full"][0] and "No space left on device" in second["full"][0]
    )
    assert max(results[case][1] for results in (first, second) for case in ("broken", "full")) < 30
    assert len(shards(folder / "d")) == 2  # what the first wrote by then stays
