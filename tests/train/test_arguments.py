"""TrainingArguments of a stage, and the checkpoints that a run finds in its folder."""

import json
import re
from pathlib import Path

import pytest
from helpers import stage_runs as runs

from safety_modules.config import ConfigError
from train.arguments import training_arguments
from train.config import read_config
from train.loop.resume import MANIFEST, last_complete_checkpoint, remove_incomplete_checkpoints


@pytest.fixture
def output(tmp_path):
    """A run's folder: a complete checkpoint, a damaged one and one that was not finished."""
    for step, size in ((2, 4), (4, 99), (6, None)):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"four")
        if size:
            files = {"model.safetensors": size}
            manifest = {"step": step, "global_batch_size": 8, "processes": 2, "files": files}
            (folder / MANIFEST).write_text(json.dumps(manifest))
    (tmp_path / "run" / "checkpoint-6" / "rng_state_1.pth").touch()
    (tmp_path / "run" / "checkpoint-old").mkdir()
    return tmp_path / "run"


def arguments(output, checkpoint=None, **trainer):
    path = runs.config(output.parent, output, runs.STAGE1, Path("base"), use_cpu=True, **trainer)
    return training_arguments(read_config(["--config", str(path)]), checkpoint)


def contents(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_building_arguments_leaves_the_folder_as_it_was(output):
    arguments(output)
    before = contents(output)
    assert last_complete_checkpoint(output) == output / "checkpoint-2"
    arguments(output, last_complete_checkpoint(output))
    assert contents(output) == before
    new = output.parent / "new"
    training_arguments(read_config(["--config", str(output / "stage.yaml"), "--output", str(new)]))
    assert last_complete_checkpoint(new) is None and not new.exists()


def test_training_removes_the_incomplete_checkpoints_of_a_run_and_nothing_else(output, caplog, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    before = contents(output)
    remove_incomplete_checkpoints(output)  # the first process does
    assert contents(output) == before
    monkeypatch.setenv("RANK", "0")
    remove_incomplete_checkpoints(output)
    assert {path.name for path in output.iterdir()} == {"checkpoint-2", "checkpoint-old"}
    assert "checkpoint-4 is not used: model.safetensors is 4 bytes, not 99 bytes" in caplog.text
    assert f"checkpoint-6 is not used: it has no {MANIFEST}" in caplog.text


def test_a_folder_that_no_run_wrote_is_not_removed(output):
    (output / "checkpoint-6" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="checkpoint-6: is incomplete .* no run wrote notes.txt; move it away"):
        remove_incomplete_checkpoints(output)
    assert (output / "checkpoint-6" / "notes.txt").read_text() == "mine" and (output / "checkpoint-4").is_dir()


def test_a_run_continues_with_steps_of_as_many_rows(output, monkeypatch):
    last = output / "checkpoint-2"
    assert arguments(output, last).gradient_accumulation_steps == 2  # 4 rows at a time
    assert arguments(output).gradient_accumulation_steps == 1
    with pytest.raises(ConfigError, match=r"steps have 8 rows, which 1 processes with a batch of 3 .*\[1, 2, 4, 8\]"):
        arguments(output, last, per_device_train_batch_size=3)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="8 rows, which cannot be divided among 3 processes; use .*divides 8"):
        arguments(output, last)


def test_a_bare_no_of_yaml_is_no(output):
    assert arguments(output, save_strategy=False).save_strategy == "no"


@pytest.mark.parametrize(
    "trainer,message",
    [
        ({"save_strategy": "sometimes"}, "trainer: sometimes is not a valid SaveStrategy.*TrainingArguments"),
        ({"deepspeed": "none.json"}, "trainer.deepspeed: there is no file 'none.json'; name one, e.g. train/configs/"),
    ],
)
def test_values_that_transformers_refuses_are_one_line(output, trainer, message):
    with pytest.raises(ConfigError) as error:
        arguments(output, **trainer)
    assert re.match(message, str(error.value)) and "\n" not in str(error.value)
