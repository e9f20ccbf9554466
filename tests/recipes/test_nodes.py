"""Two nodes on one machine: two agents of torchrun, by hand and under scripts/slurm.sh with stand-ins for SLURM."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import stage_runs as runs

from train.loop.resume import MANIFEST, last_complete_checkpoint

pytestmark = pytest.mark.recipe
TWO = {"per_device_train_batch_size": 2}
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}
SRUN = """#!{python}
# As srun with proctrack/cgroup: one task for each node, and a signal for the tasks alone.
import os, signal, subprocess, sys
tasks = []
signal.signal(signal.SIGUSR1, lambda number, frame: [task.send_signal(number) for task in tasks])
command = sys.argv[[i for i, word in enumerate(sys.argv) if i and not word.startswith("--")][0]:]
for node in range(2):
    place = {{"SLURM_NODEID": str(node), "SLURMD_NODENAME": "127.0.0.1"}}
    tasks.append(subprocess.Popen(command, env={{**os.environ, **place}}))
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = """#!/bin/sh
[ "$1" = show ] && echo 127.0.0.1 && exit
echo "$@" >> "$CALLS"
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.table(tmp_path_factory.mktemp("nodes") / "data")


@pytest.fixture(scope="module")
def one(bases, data, tmp_path_factory):
    """Forty steps of one process."""
    output = tmp_path_factory.mktemp("nodes") / "one"
    runs.run("--config", runs.config(data, output, runs.LORA, bases["llava"], lora=LORA, max_steps=40))
    return output


def assert_same_curve(output, expected):
    mine, other = runs.losses(output), runs.losses(expected)
    assert [row["step"] for row in mine] == [row["step"] for row in other] == list(range(1, 41))
    for row, reference in zip(mine, other):
        assert row["loss"] == pytest.approx(reference["loss"], rel=1e-3), row["step"]


def test_two_nodes_by_hand_are_one_curve(bases, data, one, tmp_path):
    """The command of docs/scale.md, with this machine for both nodes."""
    config = runs.config(data, tmp_path / "run", runs.LORA, bases["llava"], lora=LORA, max_steps=40, **TWO)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "stage1"]
    command += ["-m", "train.run", "--config", str(config)]
    logs = [(tmp_path / f"log{node}").open("w") for node in range(2)]
    nodes = [subprocess.Popen(command, cwd=runs.ROOT, env=runs.environment(), stdout=log, stderr=log) for log in logs]
    codes = [node.wait(timeout=280) for node in nodes]
    assert codes == [0, 0], (tmp_path / "log0").read_text()[-3000:]
    assert_same_curve(tmp_path / "run", one)


def test_under_slurm_a_signal_saves_and_requeues_and_the_next_turn_ends_the_stage(bases, data, one, tmp_path):
    changes = {"max_steps": 40, "save_strategy": "steps", "save_steps": 5, **TWO}
    config = runs.config(data, tmp_path / "run two", runs.LORA, bases["llava"], lora=LORA, **changes)
    for name, text in (("srun", SRUN.format(python=sys.executable)), ("scontrol", SCONTROL)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    requeued = tmp_path / "calls"
    job = {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(requeued),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "1",
    }
    first = turn(tmp_path / "first", config, job)
    until = time.monotonic() + 120
    while not (tmp_path / "run two" / "checkpoint-5" / MANIFEST).is_file():
        assert first.poll() is None and time.monotonic() < until, (tmp_path / "first").read_text()[-3000:]
        time.sleep(0.01)
    first.send_signal(signal.SIGUSR1)  # to the batch shell alone, as --signal=B: does
    assert first.wait(timeout=120) != 0
    log = (tmp_path / "first").read_text()
    step = int(last_complete_checkpoint(tmp_path / "run two").name.partition("-")[2])
    assert f"stopped by signal {int(signal.SIGUSR1)} after step {step}; run it again to continue" in log
    assert 5 <= step < 40 and requeued.read_text() == f"requeue {job['SLURM_JOB_ID']}\n"
    second = turn(tmp_path / "second", config, job)
    assert second.wait(timeout=280) == 0, (tmp_path / "second").read_text()[-3000:]
    assert (tmp_path / "run two" / "final").is_dir() and requeued.read_text().count("\n") == 1
    assert_same_curve(tmp_path / "run two", one)


def test_under_slurm_a_failure_is_not_requeued(tmp_path, bases, data):
    test = tmp_path / "bin"
    test.mkdir()
    (test / "srun").write_text("#!/bin/sh\nexit 3\n")
    (test / "scontrol").write_text(SCONTROL)
    for path in test.iterdir():
        path.chmod(0o755)
    job = {"PATH": f"{test}{os.pathsep}{os.environ['PATH']}", "CALLS": str(tmp_path / "calls")}
    job |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_NNODES": "1"}
    assert turn(tmp_path / "log", "stage.yaml", job).wait(timeout=60) == 3
    assert not (tmp_path / "calls").exists()


def turn(log, config, job):
    """One turn of the job, in the background."""
    command = ["bash", str(runs.ROOT / "scripts" / "slurm.sh"), "--config", str(config)]
    with log.open("w") as file:
        return subprocess.Popen(command, cwd=runs.ROOT, env=runs.environment(**job), stdout=file, stderr=file)
