"""Train one stage: `torchrun -m train.run --config train/configs/stage1.yaml --data.root DIR`."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from safetensors import SafetensorError

from safety_modules.checkpoints.control_files import copy_control
from safety_modules.checkpoints.format import ADAPTER, read_meta
from safety_modules.checkpoints.save import save_safety
from safety_modules.errors import user_errors_exit
from safety_modules.files import fresh_folder, write_text
from safety_modules.sample import DataError
from train.arguments import training_arguments
from train.build import StageModel, build_data, build_model, build_trainer
from train.config import TrainConfig, read_config
from train.loop.reshard import UniversalCheckpointFix, needs_resharding, reshard
from train.loop.resume import (
    CheckpointManifest,
    StopOnSignal,
    disk_error,
    is_incomplete,
    last_complete_checkpoint,
    remove_incomplete_checkpoints,
    worker_message,
)
from train.loop.trainer import SafetyTrainer
from train.loop.zero_weights import gather_weights

logger = logging.getLogger(__name__)

FINAL, MIXTURE, HISTORY = "final", "mixture.json", "history.json"


def main(args: list[str] | None = None) -> None:
    """Read the configuration and train."""
    with user_errors_exit():
        train(read_config(sys.argv[1:] if args is None else args))


def train(config: TrainConfig) -> Path:
    """Build, train from the last complete checkpoint if there is one, save.

    Returns:
        The folder of the result, `<output>/final`: `safety/`, with `adapter/` beside it where LoRA was trained, or the
        whole model where the base itself was.
    """
    checkpoint = last_complete_checkpoint(config.output)
    arguments = training_arguments(config, checkpoint)
    model = build_model(config, arguments)
    data = build_data(config, arguments, model)
    trainer = build_trainer(config, arguments, model, data)
    if trainer.is_world_process_zero():
        write_text(Path(config.output) / MIXTURE, json.dumps([part.to_dict() for part in data.parts], indent=1) + "\n")
    fit(trainer, checkpoint)
    return save(config, model, trainer)


def fit(trainer: SafetyTrainer, checkpoint: Path | None) -> None:
    """Train to the end, continuing from `checkpoint` where there is one; incomplete checkpoints are removed first.

    Raises:
        DataError, TrainingError: a row cannot be read, a loss is not finite, a checkpoint cannot be written.
        SystemExit: stopped by a signal, after saving: 128 and its number.
    """
    output = Path(trainer.args.output_dir)
    remove_incomplete_checkpoints(output)
    stop = StopOnSignal()
    trainer.add_callback(stop)
    trainer.add_callback(CheckpointManifest())
    if checkpoint and trainer.is_deepspeed_enabled and needs_resharding(checkpoint, trainer.args.world_size):
        with trainer.args.main_process_first(desc="universal checkpoint"):
            reshard(checkpoint)
        trainer.add_callback(UniversalCheckpointFix())
    try:
        trainer.train(resume_from_checkpoint=checkpoint, ignore_keys_for_eval=["logits"])
    except DataError as error:
        raise DataError(worker_message(error)) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_incomplete(output, trainer.state.global_step):
            raise
        raise disk_error(error, output) from error
    if stop.received:
        step = trainer.state.global_step
        logger.warning("%s: stopped by signal %d after step %d; run it again to continue", output, stop.received, step)
        raise SystemExit(128 + stop.received)


def base_of(config: TrainConfig) -> str:
    """Where the base model of a stage is: a folder or hub name."""
    if not config.modules:
        return config.base
    base = read_meta(config.modules).base
    return config.modules if base == "." else base


def save(config: TrainConfig, model: StageModel, trainer: SafetyTrainer) -> Path:
    """Write `final/` and the run's history. Every process must call it; the first one writes.

    Calibration and policy of `config.modules` are copied where the head is still the same.
    """
    trainer.loss_watch.check()
    final, vlm = Path(config.output) / FINAL, model.vlm
    full = model.adapter is None and any(name.startswith("base.") for name in trainer.trained)
    prefixes = ("safety.", "base.") if full else ("safety.",)
    names = {name for name in vlm.state_dict() if name in trainer.trained or name.startswith(prefixes)}
    weights = gather_weights(vlm, names, trainer.is_deepspeed_enabled, keep=trainer.is_world_process_zero())
    if not trainer.is_world_process_zero():
        return final
    base, safety = (
        {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        for prefix in ("base.", "safety.")
    )
    with fresh_folder(final) as folder:
        if model.adapter is not None:
            layers = {f"base_model.model.{name}": value for name, value in base.items()}
            model.adapter.save_pretrained(folder / ADAPTER, state_dict=layers)
        if full:
            if trainer.is_deepspeed_enabled:
                # The one private name used here: under ZeRO-3 transformers (since 5.17) records in it renamings of keys
                # that loading did not make, and would undo them on saving. A test watches that it exists.
                vlm.base._weight_conversions = None
            state = {name: value.to(vlm.base.dtype) for name, value in base.items()}
            vlm.base.save_pretrained(folder, state_dict=state)
            vlm.processor.save_pretrained(folder)
        save_safety(vlm, folder, base="." if full else base_of(config), state=safety)
        if config.modules:
            copy_control(config.modules, folder)
    write_text(Path(config.output) / HISTORY, json.dumps(trainer.state.log_history, indent=1) + "\n")
    return final


if __name__ == "__main__":
    main()
