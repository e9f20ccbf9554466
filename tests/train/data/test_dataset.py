"""Stages on other data than a table of files: images in Parquet, folders, a LLaVA JSON, mixed."""

import json

import pytest
from helpers import tiny
from helpers.dataset_files import drawn, write_json, write_parquet

from train.config import read_config
from train.run import train

SHAPE = {"head_tokens": 2, "llm_tokens": 2, "projector_width": 16, "projector_depth": 1}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A hub data set's Parquet file, a folder of images and a LLaVA JSON."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf-cache")
    labels = [("Safe", "Hate"), ("Unsafe", "Hate"), ("Unsafe", "Political"), ("Unsafe", "Sexual")] * 3
    rows = [
        {"image": drawn(n), "safety_label": label, "category": name, "source": "x"}
        for n, (label, name) in enumerate(labels)
    ]
    write_parquet(tmp_path / "data/unsafebench", "data/train-00000-of-00001.parquet", rows)
    for number in range(4):
        place = tmp_path / "data/image_folder/privacy"
        place.mkdir(parents=True, exist_ok=True)
        tiny.image(number).save(place / f"{number}.png")
        tiny.image(50 + number).save(tmp_path / f"data/{number}.png")
    turns = [{"from": "human", "value": "<image>\nwhat is this?"}, {"from": "gpt", "value": "a red key"}]
    talk = [{"id": number, "image": f"{number}.png", "conversations": turns} for number in range(4)]
    write_json(
        tmp_path / "data/annotations.json", [*talk, {"id": 9, "conversations": [{**turns[0], "value": "hi"}, turns[1]]}]
    )
    return tmp_path / "data"


def stage(root, output, bases, data=None, **changes):
    sources = [
        {"recipe": "unsafebench", "split": "train+validation"},
        {"recipe": "image_folder", "split": "train+validation", "weight": 2},
        {"recipe": "llava_instruct", "root": str(root / "annotations.json")},
    ]
    trainer = {"max_steps": 3, "per_device_train_batch_size": 4, "dataloader_num_workers": 1, "save_strategy": "no"}
    values = {
        "output": str(output),
        "base": str(bases["llava"]),
        "safety": SHAPE,
        "data": {"root": str(root), "train": sources, **(data or {})},
        "rules": {r"safety\.llm_tokens\..*": None, r"safety\..*": 1e-2, r"base\..*": None},
        "trainer": {**trainer, "disable_tqdm": True, "report_to": "none"},
        **changes,
    }
    path = output.with_suffix(".yaml")
    path.write_text(json.dumps(values))
    return read_config(["--config", str(path)])


@pytest.mark.parametrize("head_only", [False, True])
def test_images_in_tables_folders_and_text_alone_are_trained_on_together(root, tmp_path, bases, head_only):
    data = {"features": str(tmp_path / "features")} if head_only else {}
    final = train(stage(root, tmp_path / "run", bases, data, head_only=head_only))
    parts = json.loads((tmp_path / "run/mixture.json").read_text())
    assert [part["used"] for part in parts] == [12, 8, 5] and parts[2]["labels"] == {"clean:0": 5}
    assert list((final / "safety").glob("*.safetensors"))


def test_training_on_a_benchmark_is_an_error_before_anything_is_written(root, tmp_path, bases):
    data = {"train": [{"recipe": "xstest", "split": "all"}]}
    with pytest.raises(ValueError, match="recipe 'xstest' is for evaluation only: .*Licence: CC BY 4.0"):
        train(stage(root, tmp_path / "run", bases, data))
    assert not (tmp_path / "run").exists()
