"""Start `train.run` in a process of its own, with the accident that a test wants. DeepSpeed compiles nothing for CPU.

DIE_IN=model:N or optimizer:N   killed (-9) in the Nth save, before or in the middle of the optimizer's file
SMALL_DISK=N                    no file may grow over 20 kB from the Nth save on
NAN_ROW=name                    the pixels of this row are not numbers
SHOW_PARTS=1                    no training: prints how much of the base this process holds, and the modules' sum
"""

import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path


def at_save(number: int, accident: Callable[[], None]) -> None:
    """Call `accident` when the weights of the Nth checkpoint were written."""
    from train.loop.trainer import SafetyTrainer

    save, count = SafetyTrainer.save_model, iter(range(1, 10_000))

    def saved(self: SafetyTrainer, *args: object, **options: object) -> None:
        save(self, *args, **options)
        if next(count) == number:
            accident()

    SafetyTrainer.save_model = saved


def die() -> None:
    """End this process as the kernel would."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_optimizer() -> None:
    """End in the middle of the optimizer's file."""
    import torch

    save = torch.save

    def half(state: object, path: str) -> None:
        save(state, path)
        if Path(path).name == "optimizer.pt":
            os.truncate(path, Path(path).stat().st_size // 2)
            die()

    torch.save = half


def small_disk() -> None:
    """Let no file grow over 20 kB: a write beyond fails, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def spoil(name: str) -> None:
    """Make a row's pixels NaN."""
    from train.data.dataset import ExchangeDataset

    read = ExchangeDataset.__getitem__

    def spoiled(self: ExchangeDataset, index: int) -> dict:
        row = read(self, index)
        if row["row"].endswith(name):
            row["pixel_values"] = row["pixel_values"] * float("nan")
        return row

    ExchangeDataset.__getitem__ = spoiled


def show_parts(args: list[str]) -> None:
    """Print PARTS, the base's weights here and in all, and the sum of the modules' absolute weights."""
    from train.arguments import training_arguments
    from train.build import load_model
    from train.config import read_config

    config = read_config(args)
    arguments = training_arguments(config)  # ZeRO-3 begins with them
    model = load_model(config)
    base = list(model.base.parameters())
    held = sum(value.ds_tensor.numel() + value.data.numel() for value in base)
    modules = sum(value.detach().double().abs().sum().item() for value in model.safety.parameters())
    sys.stdout.write(f"PARTS {held} {sum(value.ds_numel for value in base)} {modules}\n")
    assert arguments.deepspeed


if __name__ == "__main__":
    if os.environ.get("DS_ACCELERATOR"):
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if place := os.environ.get("DIE_IN"):
        kind, _, number = place.partition(":")
        at_save(int(number), die if kind == "model" else die_in_optimizer)
    if number := os.environ.get("SMALL_DISK"):
        at_save(int(number), small_disk)
    if row := os.environ.get("NAN_ROW"):
        spoil(row)
    if os.environ.get("SHOW_PARTS"):
        show_parts(sys.argv[1:])
    else:
        from train.run import main

        main(sys.argv[1:])
