import json
import shutil
import signal
import subprocess
import time

import pytest
from helpers import stage_runs as runs

from train.loop.resume import MANIFEST, last_complete_checkpoint

pytestmark = pytest.mark.recipe
LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}
SAVING = {"save_strategy": "steps", "save_steps": 2}
LONG = {"max_steps": 60, "save_strategy": "steps", "save_steps": 10, "save_total_limit": 2}
ZERO2, ZERO3 = ({"deepspeed": str(runs.ROOT / "train" / "configs" / f"{name}.json")} for name in ("zero2", "zero3"))
TWO = {"per_device_train_batch_size": 2}
CPU = {"DS_ACCELERATOR": "cpu"}
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.table(tmp_path_factory.mktemp("resume") / "data")


@pytest.fixture(scope="module")
def short(bases, data, tmp_path_factory):
    """Eight steps of LoRA with dropout, undisturbed."""
    output = tmp_path_factory.mktemp("resume") / "short"
    runs.run("--config", runs.config(data, output, runs.LORA, bases["llava"], lora=LORA))
    return output


@pytest.fixture(scope="module")
def long(bases, data, tmp_path_factory):
    """Sixty steps, undisturbed."""
    output = tmp_path_factory.mktemp("resume") / "long"
    runs.run("--config", runs.config(data, output, runs.LORA, bases["llava"], lora=LORA, max_steps=60))
    return output


def started(output, *args, processes=1, **more):
    """A run in the background, once its second checkpoint is complete."""
    log = (output / "log").open("w")
    run = subprocess.Popen(
        runs.command(*args, processes=processes), cwd=runs.ROOT, env=runs.environment(**more), stdout=log, stderr=log
    )
    until = time.monotonic() + 120
    while not (output / "checkpoint-20" / MANIFEST).is_file():
        assert run.poll() is None and time.monotonic() < until, (output / "log").read_text()[-3000:]
        time.sleep(0.01)
    return run


def test_contract_7_killed_in_a_step_it_continues_on_the_same_curve(bases, data, long, tmp_path):
    config = runs.config(data, tmp_path / "run", runs.LORA, bases["llava"], lora=LORA, **LONG)
    run = started(tmp_path / "run", "--config", config)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL and not (tmp_path / "run" / "final").exists()
    runs.run("--config", config)
    assert runs.losses(tmp_path / "run") == runs.losses(long)  # to the last digit: order, optimizer, schedule, dropout


@pytest.mark.parametrize("place,processes", [("model", 1), ("optimizer", 1), ("optimizer", 2)])
def test_contract_7_killed_in_a_save_it_continues_from_the_checkpoint_before(
    bases, data, short, tmp_path, place, processes
):
    changes = {**SAVING, "per_device_train_batch_size": 4 // processes}
    config = runs.config(data, tmp_path / "run", runs.LORA, bases["llava"], lora=LORA, **changes)
    runs.run("--config", config, processes=processes, rc=-signal.SIGKILL if processes == 1 else 1, DIE_IN=f"{place}:2")
    broken = tmp_path / "run" / "checkpoint-4"
    assert (broken / "model.safetensors").is_file() and (broken / "optimizer.pt").is_file() == (place == "optimizer")
    text = runs.run("--config", config, processes=processes)
    assert text.count(f"{broken} is not used: it has no {MANIFEST}: the run ended while it was written") >= 1
    if processes == 1:
        assert runs.losses(tmp_path / "run") == runs.losses(short)
    assert [row["step"] for row in runs.losses(tmp_path / "run")] == list(range(1, 9))


@pytest.mark.parametrize("processes,number", [(1, signal.SIGTERM), (2, signal.SIGTERM), (1, signal.SIGUSR1)])
def test_contract_7_a_signal_to_stop_saves_and_ends(bases, data, long, tmp_path, processes, number):
    changes = {**LONG, "per_device_train_batch_size": 4 // processes}
    config = runs.config(data, tmp_path / "run", runs.LORA, bases["llava"], lora={**LORA, "dropout": 0.1}, **changes)
    run = started(tmp_path / "run", "--config", config, processes=processes)
    run.send_signal(number)
    code = run.wait()
    assert code == 128 + number if processes == 1 else code != 0
    saved = last_complete_checkpoint(tmp_path / "run")
    step = int(saved.name.partition("-")[2])
    assert 20 <= step < 60 and not (tmp_path / "run" / "final").exists()
    assert (
        f"stopped by signal {int(number)} after step {step}; run it again to continue"
        in (tmp_path / "run" / "log").read_text()
    )
    runs.run("--config", config, processes=processes)
    mine, other = runs.losses(tmp_path / "run"), runs.losses(long)
    if processes == 1:
        assert mine == other
    assert [row["step"] for row in mine] == list(range(1, 61))


def test_contract_7_a_full_disk_leaves_the_last_good_checkpoint(bases, data, short, tmp_path):
    config = runs.config(data, tmp_path / "run", runs.LORA, bases["llava"], lora=LORA, **SAVING)
    text = runs.run("--config", config, rc=2, SMALL_DISK="2")
    line = text.strip().splitlines()[-1]
    assert "a checkpoint could not be written" in line and f"{tmp_path / 'run' / 'checkpoint-2'} is complete" in line
    runs.run("--config", config)
    assert runs.losses(tmp_path / "run") == runs.losses(short)


def test_a_truncated_file_of_a_checkpoint_is_named_and_not_used(bases, data, short, tmp_path):
    config = runs.config(data, tmp_path / "run", runs.LORA, bases["llava"], lora=LORA, **SAVING)
    runs.run("--config", config)
    shutil.rmtree(tmp_path / "run" / "final")
    path = tmp_path / "run" / "checkpoint-8" / "optimizer.pt"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:1000])
    text = runs.run("--config", config)
    assert f"checkpoint-8 is not used: optimizer.pt is 1000 bytes, not {size} bytes" in text
    assert runs.losses(tmp_path / "run") == runs.losses(short)


@pytest.mark.parametrize("processes", [1, 2])
def test_contract_7_a_loss_that_is_not_a_number_names_its_rows_and_saves_nothing(bases, data, tmp_path, processes):
    changes = {**SAVING, "save_steps": 1, "logging_steps": 5, "per_device_train_batch_size": 4 // processes}
    config = runs.config(data, tmp_path / "run", runs.STAGE1, bases["llava"], **changes)
    text = runs.run("--config", config, processes=processes, rc=2 if processes == 1 else 1, NAN_ROW="train.csv:11")
    lines = [line for line in text.splitlines() if "the loss is not a number" in line]
    assert len(lines) == 1 and "train.csv:11" in lines[0], text[-3000:]
    step = int(lines[0].partition("step ")[2].partition(":")[0])
    saved = sorted(int(path.name.partition("-")[2]) for path in (tmp_path / "run").glob("checkpoint-*"))
    assert step > 1 and saved and max(saved) == step - 1


def test_contract_7_a_workers_bad_image_names_its_row(bases, data, tmp_path):
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "3.png").write_bytes((data / "3.png").read_bytes()[:90])
    config = runs.config(tmp_path / "data", tmp_path / "run", runs.STAGE1, bases["llava"], dataloader_num_workers=2)
    text = runs.run("--config", config, rc=2)
    assert "Traceback" not in text
    assert "train.csv:" in text and "3.png" in text.strip().splitlines()[-1]


def test_contract_7_other_numbers_of_processes_continue_at_the_right_row(bases, data, tmp_path):
    """Two processes, then one, then two again: one curve."""
    lora = {**LORA, "dropout": 0.0}
    runs.run("--config", runs.config(data, tmp_path / "one", runs.LORA, bases["llava"], lora=lora))
    config = runs.config(
        data, tmp_path / "run", runs.LORA, bases["llava"], lora=lora, **TWO, **SAVING, save_total_limit=9
    )
    runs.run("--config", config, processes=2)
    rewind(tmp_path / "run", 2)
    text = runs.run("--config", config)
    assert "gradient_accumulation_steps goes from 1 to 2, so that a step still has 4 rows" in text
    assert close(tmp_path / "run", tmp_path / "one")
    rewind(tmp_path / "run", 6)
    runs.run("--config", config, processes=2)
    assert close(tmp_path / "run", tmp_path / "one")
    rewind(tmp_path / "run", 6)
    text = runs.run("--config", config, "--trainer.per_device_train_batch_size", 3, rc=2)
    assert "its steps have 4 rows, which 1 processes with a batch of 3 cannot make up" in text and "[1, 2, 4]" in text


def test_contract_7_two_processes_continue_within_a_later_epoch_on_the_same_curve(bases, data, tmp_path):
    changes = {**TWO, **SAVING, "max_steps": 18, "save_steps": 5, "save_total_limit": 9}
    config = runs.config(data, tmp_path / "run", runs.LORA, bases["llava"], lora=LORA, **changes)
    runs.run("--config", config, processes=2)
    whole = runs.losses(tmp_path / "run")
    rewind(tmp_path / "run", 15)  # six steps make an epoch
    runs.run("--config", config, processes=2)
    assert runs.losses(tmp_path / "run") == whole


@pytest.mark.parametrize("zero", [ZERO2, ZERO3], ids=["ZeRO-2", "ZeRO-3"])
def test_contract_7_deepspeed_resumes_exactly_and_on_other_numbers_of_processes(bases, data, tmp_path, zero):
    base, lora = bases["llava"], {**LORA, "dropout": 0.0}
    runs.run("--config", runs.config(data, tmp_path / "one", runs.LORA, base, lora=lora))
    config = runs.config(
        data, tmp_path / "run", runs.LORA, base, lora=lora, **TWO, **SAVING, **zero, save_total_limit=9
    )
    runs.run("--config", config, processes=2, **CPU)
    whole = runs.losses(tmp_path / "run")
    rewind(tmp_path / "run", 4)
    runs.run("--config", config, processes=2, **CPU)
    assert runs.losses(tmp_path / "run") == whole
    rewind(tmp_path / "run", 4)
    text = runs.run("--config", config, **CPU, **ALONE)
    assert "is resharded for another number of processes" in text
    assert close(tmp_path / "run", tmp_path / "one")


def rewind(output, step):
    """Remove the result and what was saved after a step."""
    shutil.rmtree(output / "final")
    for path in output.glob("checkpoint-*"):
        if int(path.name.partition("-")[2]) > step:
            shutil.rmtree(path)


def close(output, expected):
    mine, other = runs.losses(output), runs.losses(expected)
    assert [row["step"] for row in mine] == [row["step"] for row in other]
    return all(row["loss"] == pytest.approx(reference["loss"], rel=1e-4) for row, reference in zip(mine, other))


def test_checkpoints_hold_what_is_trained_alone(bases, data, tmp_path):
    """A few kilobytes beside a base of some hundred; with DeepSpeed as well."""
    base = bases["llava"]
    size = (base / "model.safetensors").stat().st_size
    config = runs.config(data, tmp_path / "run", runs.LORA, base, lora={**LORA, "rank": 1}, **TWO, **ZERO3, **SAVING)
    runs.run("--config", config, processes=2, **CPU)
    files = json.loads((tmp_path / "run" / "checkpoint-8" / MANIFEST).read_text())["files"]
    weights = sum(length for name, length in files.items() if name.endswith((".safetensors", ".pt")))
    assert weights < size / 2, files
