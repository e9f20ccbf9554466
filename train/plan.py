"""Know before you start: `python -m train.plan --config FILE [overrides of train.run] [--gpus 8] [--measure 20]`."""

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
    """Parse, plan, measure, print."""
    parser = argparse.ArgumentParser(prog="train.plan", description=__doc__, allow_abbrev=False)
    parser.add_argument("--gpus", type=int, default=int(os.environ.get("WORLD_SIZE", 8)))
    parser.add_argument("--memory", type=float, help="GiB of a card (default: that of the GPU here, else 80)")
    parser.add_argument("--measure", type=int, default=20, help="real steps to time; 0 for none")
    parser.add_argument("--json", type=Path, help="also write the plan to this file")
    options, rest = parser.parse_known_args(args)
    with user_errors_exit():
        if options.gpus < 1 or options.measure < 0 or options.measure == 1:
            given = f"--gpus {options.gpus} --measure {options.measure}"
            raise ConfigError(f"{given}: give at least 1 GPU, and 0 or at least 2 steps")
        config = read_config(rest)
        result = plan(config, options.gpus, options.memory)
        first = int(os.environ.get("RANK", 0)) == 0
        if first:
            show(result, config, rest)
        if options.measure:
            result = dataclasses.replace(result, speed=measure(config, options.measure))
            if first:
                show_speed(result)
        if first and options.json:
            write_text(options.json, json.dumps(result.to_dict(), indent=1) + "\n")


def show(result: Plan, config: TrainConfig, args: list[str]) -> None:
    """Print parts, memory, command and steps."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(_parameters(result), soft_wrap=False)
    console.print(_memory(result), soft_wrap=False)
    best = result.cheapest()
    if best is None:
        console.print(f"Nothing fits {result.memory / GIB:.0f} GiB: {remedies(config)}")
    else:
        line = command(best.strategy, config, args, result.processes)
        console.print(f"{best.strategy.name} {best.verdict}:\n  {line}")
    steps = result.steps
    console.print(
        f"{steps.rows:,} rows, {steps.rows_of_step:,} in a step; {steps.per_epoch:,} steps in an epoch, "
        f"{steps.total:,} in all\n{steps.checkpoints:,} checkpoints of {steps.checkpoint / GIB:.2f} GiB; with final/ "
        f"at most {steps.disk / GIB:.2f} GiB at a time, {steps.free / GIB:.1f} GiB are free"
    )
    if steps.disk > steps.free:
        console.print(f"The disk of {config.output} is too small: make room, or set trainer.save_total_limit to 1")
    if steps.done:
        console.print(f"{config.output} has an unfinished run: it would continue from step {steps.done:,}")


def show_speed(result: Plan) -> None:
    """Print what the real steps measured."""
    speed, console = result.speed, Console(highlight=False, soft_wrap=True)
    on = "this machine's CPU" if speed.device == "cpu" else speed.device
    console.print(
        f"{speed.rows_per_second:.3g} rows per second with {speed.processes} process(es) on {on}: median of "
        f"{speed.steps} steps; {speed.waiting:.0%} of the time waiting for data\n"
        f"{result.hours():.3g} hours to the end at this speed, without evaluations and checkpoints"
    )
    if speed.device == "cpu":
        console.print("The hours are those of this machine, not of a GPU")
    elif speed.processes != result.processes:
        hours = result.hours() * speed.processes / result.processes
        console.print(f"{result.processes} such GPUs: {hours:.3g} hours if they do not wait for each other")
    if speed.peak:
        console.print(f"{speed.peak / GIB:.1f} GiB of the GPU at most, without CUDA's own {CUDA / GIB:.0f}")


def _parameters(result: Plan) -> Table:
    """Parameters of each part, trained and frozen."""
    table = _table("Parameters", "part", "dtype", "trained", "frozen", "GiB")
    for count in result.counts:
        numbers = (f"{count.parameters:,}", "") if count.trained else ("", f"{count.parameters:,}")
        table.add_row(count.part, count.dtype, *numbers, f"{count.bytes / GIB:.2f}")
    sums = [sum(c.parameters for c in result.counts if c.trained is trained) for trained in (True, False)]
    size = sum(c.bytes for c in result.counts) / GIB
    table.add_row("all", "", *(f"{number:,}" for number in sums), f"{size:.2f}", style="bold")
    return table


def _memory(result: Plan) -> Table:
    """GiB of each strategy on one GPU."""
    batch = result.batch
    table = _table(
        f"GiB on each of {result.processes} GPUs; micro-batch of {batch.rows} x {batch.tokens:,} tokens, "
        f"{batch.images} images",
        *("", "weights", "gradients", "optimizer", "32-bit copies", "buffers", "activations", "peak"),
        *("host", f"of {result.memory / GIB:.0f} GiB"),
    )
    for row in result.strategies:
        held = row.states
        sizes = (held.weights, held.gradients, held.optimizer, held.copies, held.buffers, row.activations, row.peak)
        numbers = [f"{value / GIB:.1f}" for value in (*sizes, held.host)]
        table.add_row(row.strategy.name, *numbers, row.verdict, style="bold" if row is result.cheapest() else "")
    return table


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
