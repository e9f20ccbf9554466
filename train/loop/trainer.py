"""SafetyTrainer: transformers.Trainer with this method's loss, a learning rate for each rule, and lean checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainerState, TrainingArguments

from safety_modules.evaluation.metrics import head_metrics
from safety_modules.model.losses import safety_losses
from train.loop.loss_watch import LossWatch, TrainingError
from train.loop.param_groups import param_groups
from train.loop.sampler import StepSampler
from train.loop.zero_weights import SkipFrozenWeights, gather_weights

TARGETS = ("labels", "risk_type", "risk_level", "tokens", "rows")


class SafetyTrainer(Trainer):
    """Overrides public methods of Trainer alone. Only a step that logs or saves waits for the device.

    `rules` are those of `param_groups`; `head_weight` that of `safety_losses`; `lengths` that of `StepSampler`.
    """

    def __init__(
        self,
        model: nn.Module,
        rules: dict[str, float | None],
        head_weight: float,
        lengths: list[tuple[int, bool]] | None = None,
        **options: object,
    ) -> None:
        self.groups = param_groups(model, rules)
        self.trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.not_saved = model.state_dict().keys() - self.trained
        model.register_load_state_dict_post_hook(self._allow_lean_checkpoint)
        self.head_weight, self.lengths = head_weight, lengths
        self.local_batch_size = 0  # rows of the current step on this process
        super().__init__(model, compute_metrics=compute_head_metrics, **options)
        self.loss_watch = LossWatch(self.accelerator)
        if self.is_deepspeed_enabled:
            self.add_callback(SkipFrozenWeights(self))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that the arguments name, with the rules' learning rates."""
        if self.optimizer is None:
            optimizer, values = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = [{"weight_decay": self.args.weight_decay, **group} for group in self.groups]
            self.optimizer_cls_and_kwargs = optimizer, {**values, "params": groups}
        return super().create_optimizer(model)

    def get_train_dataloader(self) -> DataLoader:
        """Batches in the order of `StepSampler`, read ahead by the arguments' workers."""
        args = self.args
        global_batch_size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        sampler = StepSampler(len(self.train_dataset), global_batch_size, args.seed, self.lengths)
        self.add_callback(SetEpoch(sampler))
        names = ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor")
        options = {name: getattr(args, f"dataloader_{name}") for name in names}
        batches = {"batch_size": args.train_batch_size, "sampler": sampler, "collate_fn": self.data_collator}
        return self.accelerator.prepare(DataLoader(self.train_dataset, **batches, **options))

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict], Tensor]:
        """The micro-batches of a step, and its supervised tokens on all processes."""
        batches = list(islice(epoch_iterator, num_batches))
        self.local_batch_size = sum(len(batch["risk_type"]) for batch in batches)
        tokens = torch.tensor(float(sum(batch.get("tokens", 0) for batch in batches))).to(device, non_blocking=True)
        return batches, self.accelerator.reduce(tokens, "sum")

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch, scaled so that the sum over a step's micro-batches is the loss of the whole step.

        The language-model term is a mean over the supervised tokens of the step on all processes, each head term a mean
        over its rows.
        """
        risk_type, risk_level = inputs["risk_type"], inputs["risk_level"]
        output = model(**{name: value for name, value in inputs.items() if name not in TARGETS})
        row_fraction, tokens = 1.0, None
        if model.training and num_items_in_batch is not None:
            row_fraction = len(risk_type) / self.local_batch_size
            tokens = num_items_in_batch / self.accelerator.num_processes  # gradients are averaged over the processes
        losses = safety_losses(
            *(output.logits, inputs.get("labels"), output.type_logits, output.level_logits, risk_type, risk_level),
            *(self.head_weight * row_fraction, tokens),
        )
        if model.training:
            terms = torch.stack([losses.lm, losses.type * row_fraction, losses.level * row_fraction]).detach()  # (3,)
            self.loss_watch.add(self.state.global_step + 1, inputs["rows"], terms)
        return (losses.loss, {"loss": losses.loss, **output}) if return_outputs else losses.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each loss term since the last log, on all processes; a TrainingError where one is NaN."""
        if "loss" in logs:
            logs |= {name: round(value, 5) for name, value in zip(("lm", "type", "level"), self.loss_watch.means())}
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained parameters alone, for a 7B base has 14 GB; a TrainingError, and no file, after a NaN."""
        self.loss_watch.check()
        folder = Path(output_dir or self.args.output_dir)
        state = gather_weights(self.model, self.trained, self.is_deepspeed_enabled, keep=self.args.should_save)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    def _allow_lean_checkpoint(self, model: nn.Module, keys: Any) -> None:
        """A hook of `load_state_dict`: what `save_model` leaves out may be missing, and nothing else."""
        missing = [name for name in keys.missing_keys if name in self.trained]
        if missing:
            raise TrainingError(
                f"the checkpoint has no weights of {missing[0]}, which the rules train; use the rules it was written "
                "with, or another output"
            )
        keys.missing_keys.clear()
        keys.unexpected_keys[:] = [name for name in keys.unexpected_keys if name not in self.not_saved]


class SetEpoch(TrainerCallback):
    """Sets the sampler's epoch: accelerate does not on several processes when a run continues within an epoch."""

    def __init__(self, sampler: StepSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, *_: object, **__: object) -> None:
        """Every epoch has the same number of whole steps."""
        self.sampler.set_epoch(state.global_step * self.sampler.global_batch_size // len(self.sampler))


def compute_head_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Head metrics of an evaluation; the names get Trainer's prefix."""
    type_logits, level_logits = prediction.predictions
    types, levels = prediction.label_ids
    pairs = (types, type_logits.argmax(-1), levels, level_logits.argmax(-1))
    return head_metrics(*(indices.tolist() for indices in pairs))
