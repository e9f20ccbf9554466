"""Know before you start: `python -m train.plan --config FILE [overrides of train.run] [--gpus 8] [--probe 20]`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
from pathlib import Path

from rich.console import Console
from rich.table import Table

from safety_modules.config import ConfigError
from safety_modules.errors import user_errors_exit
from safety_modules.files import write_text
from train.config import TrainConfig, read_config
from train.planning.estimate import Plan, plan
from train.planning.memory import CUDA, GIB, Strategy
from train.planning.throughput import measure


def main(args: list[str] | None = None) -> None:
    """Parse, plan, probe, print."""
    parser = argparse.ArgumentParser(prog="train.plan", description=__doc__, allow_abbrev=False, add_help=False)
    parser.add_argument("--gpus", type=int, default=int(os.environ.get("WORLD_SIZE", 8)))
    parser.add_argument("--memory", type=float, help="GiB of a card; default: of the GPU there is, else 80")
    parser.add_argument("--probe", type=int, default=20, help="steps to measure; 0 for none")
    parser.add_argument("--json", type=Path, help="file to write, too")
    options, rest = parser.parse_known_args(args)
    with user_errors_exit():
        if options.gpus < 1 or options.probe < 0 or options.probe == 1:
            raise ConfigError(
                f"--gpus {options.gpus} --probe {options.probe}: at least 1 GPU, and 0 or at least 2 steps"
            )
        made = plan(config := read_config(rest), options.gpus, options.memory)
        first = int(os.environ.get("RANK", 0)) == 0
        if first:
            show(made, config, rest)
        if options.probe:
            made = dataclasses.replace(made, speed=measure(config, options.probe))
            if first:
                show_speed(made)
        if first and options.json:
            write_text(options.json, json.dumps(made.to_dict(), indent=1) + "\n")


def show(made: Plan, config: TrainConfig, args: list[str]) -> None:
    """Print parts, memory, command and steps."""
    console = Console(highlight=False)
    table = _table("Parameters", "part", "dtype", "trained", "frozen", "GiB")
    for count in made.counts:
        number = f"{count.parameters:,}"
        table.add_row(
            count.part, count.dtype, *((number, "") if count.trained else ("", number)), f"{count.bytes / GIB:.2f}"
        )
    sums = [sum(c.parameters for c in made.counts if c.trained is fate) for fate in (True, False)]
    table.add_row("all", "", *(f"{n:,}" for n in sums), f"{sum(c.bytes for c in made.counts) / GIB:.2f}", style="bold")
    console.print(table)
    batch = made.batch
    table = _table(
        f"GiB on each of {made.processes} GPUs; micro-batch of {batch.rows} x {batch.tokens:,} tokens, {batch.images} images",
        *("", "weights", "gradients", "optimizer", "32-bit copies", "buffers", "activations", "peak"),
        *("host", f"of {made.memory / GIB:.0f} GiB"),
    )
    for row in made.rows:
        held = row.states
        parts = (
            held.weights,
            held.gradients,
            held.optimizer,
            held.copies,
            held.buffers,
            sum(row.activations.values()),
            row.peak,
        )
        numbers = [f"{value / GIB:.1f}" for value in (*parts, held.host)]
        table.add_row(row.strategy.name, *numbers, row.verdict, style="bold" if row is made.cheapest() else "")
    console.print(table)
    best = made.cheapest()
    if best is None:
        console.print(f"Nothing fits {made.memory / GIB:.0f} GiB: {remedies(config)}")
    else:
        console.print(
            f"{best.strategy.name} {best.verdict}:\n  {command(best.strategy, config, args, made.processes)}",
            soft_wrap=True,
        )
    steps = made.steps
    console.print(
        f"{steps.rows:,} rows, {steps.rows_of_step:,} in a step; {steps.per_epoch:,} steps in an epoch, {steps.total:,} in all\n"
        f"{steps.checkpoints:,} checkpoints of {steps.checkpoint / GIB:.2f} GiB; with final/ at most {steps.disk / GIB:.2f} GiB "
        f"at a time, {steps.free / GIB:.1f} GiB are free",
        soft_wrap=True,
    )
    if steps.disk > steps.free:
        console.print(
            f"The disk of {config.output} is too small: make room, or set trainer.save_total_limit to 1", style="bold"
        )
    if steps.done:
        console.print(f"{config.output} has an unfinished run: it would go on from step {steps.done:,}", soft_wrap=True)


def show_speed(made: Plan) -> None:
    """Print what the probe measured."""
    speed, console = made.speed, Console(highlight=False)
    on = "this machine's CPU" if speed.device == "cpu" else speed.device
    console.print(
        f"{speed.rows_per_second:.3g} rows per second with {speed.processes} process(es) on {on}: median of {speed.steps} steps; "
        f"{speed.waiting:.0%} of the time waiting for data\n"
        f"{made.hours():.3g} hours to the end so, without evaluations and checkpoints",
        soft_wrap=True,
    )
    if speed.device == "cpu":
        console.print("The hours are those of this machine, not of a GPU", soft_wrap=True)
    elif speed.processes != made.processes:
        hours = made.hours() * speed.processes / made.processes
        console.print(
            f"{made.processes} such GPUs: {hours:.3g} hours if they do not wait for each other", soft_wrap=True
        )
    if speed.peak:
        console.print(
            f"{speed.peak / GIB:.1f} GiB of the GPU at most, without CUDA's own {CUDA / GIB:.0f}", soft_wrap=True
        )


def command(chosen: Strategy, config: TrainConfig, args: list[str], processes: int) -> str:
    """The command line that trains so."""
    more = ["--trainer.deepspeed", chosen.file] if chosen.file else []
    if not chosen.file and config.trainer.get("deepspeed"):
        more = ["--trainer.deepspeed", "null"]
    return shlex.join(["torchrun", "--nproc_per_node", str(processes), "-m", "train.run", *args, *more])


def remedies(config: TrainConfig) -> str:
    """What takes less memory and is not set yet."""
    found = {
        "trainer.gradient_checkpointing true": not config.trainer.get("gradient_checkpointing"),
        "a smaller trainer.per_device_train_batch_size": config.trainer.get("per_device_train_batch_size", 8) > 1,
        "dtype bfloat16 for a frozen base": config.dtype != "bfloat16",
        "lora with quantize nf4": not config.quantize,
    }
    return "; ".join(name for name, open_ in found.items() if open_) or "take more or larger GPUs"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left")
    return table


if __name__ == "__main__":
    main()
