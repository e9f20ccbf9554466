"""SafetyTrainer: transformers.Trainer with this method's loss, its rates for each part, and lean checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from safety_modules.evaluation.metrics import head_metrics
from safety_modules.model.losses import safety_losses
from train.loop.loss_watch import LossWatch
from train.loop.param_groups import param_groups
from train.loop.sampler import StepSampler
from train.loop.zero_weights import gather_weights, skip_frozen_weights

TARGETS = ("labels", "risk_type", "risk_level", "tokens", "rows")


class SafetyTrainer(Trainer):
    """Public methods of Trainer overridden, no private one. No step waits for the device but those that log or save.

    `rules` are those of `stages.param_groups`; `head_weight` that of `losses.safety_losses`; `lengths` that of `order.StepSampler`.
    """

    def __init__(
        self,
        *args: object,
        rules: dict[str, float | None],
        head_weight: float,
        lengths: list[tuple[int, bool]] | None = None,
        **trainer: object,
    ) -> None:
        model = trainer["model"]
        self.groups = param_groups(model, rules)
        self.trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        model._keys_to_ignore_on_save = [
            name for name in model.state_dict() if name not in self.trained
        ]  # what Trainer asks for
        self.head_weight, self.lengths = head_weight, lengths
        self.rows_of_step = 0  # of this process
        super().__init__(*args, compute_metrics=measure, **trainer)
        self.watch = LossWatch(self.accelerator)

    def create_accelerator_and_postprocess(self) -> None:
        """Let DeepSpeed, too, keep and load no frozen weights."""
        super().create_accelerator_and_postprocess()
        if self.is_deepspeed_enabled:
            skip_frozen_weights(self.accelerator)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that the arguments name, with the rules' learning rates.

        As in Trainer, one with 8-bit states keeps those of embeddings, here the safety tokens, in 32 bits: their gradients
        differ too much from row to row for the shared scales of a block.
        """
        if self.optimizer is None:
            kind, values = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = [{"weight_decay": self.args.weight_decay, **group} for group in self.groups]
            self.optimizer = kind(groups, **values)
            if values.get("optim_bits") == 8:
                from bitsandbytes.optim import GlobalOptimManager

                for module in self.model.modules():
                    if isinstance(module, nn.Embedding) and module.weight.requires_grad:
                        GlobalOptimManager.get_instance().register_module_override(module, "weight", {"optim_bits": 32})
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader:
        """Batches in the order of `order.StepSampler`, read ahead by the arguments' workers."""
        args = self.args
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        order = StepSampler(len(self.train_dataset), step, args.seed, self.lengths)
        self.add_callback(EpochCallback(order))
        loader = DataLoader(
            self.train_dataset,
            batch_size=args.train_batch_size,
            sampler=order,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(loader)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict], Tensor]:
        """The micro-batches of a step, and its supervised tokens on all processes."""
        batches = list(islice(epoch_iterator, num_batches))
        self.rows_of_step = sum(len(batch["risk_type"]) for batch in batches)
        tokens = torch.tensor(float(sum(batch.get("tokens", 0) for batch in batches))).to(device, non_blocking=True)
        return batches, self.accelerator.reduce(tokens, "sum")

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch, scaled so that the sum over a step's micro-batches is the loss of the whole step.

        The language-model term is a mean over the supervised tokens of the step on all processes, each head term a mean over
        its rows.
        """
        risk_type, risk_level = inputs["risk_type"], inputs["risk_level"]
        output = model(**{name: value for name, value in inputs.items() if name not in TARGETS})
        share, tokens = 1.0, None
        if model.training and num_items_in_batch is not None:
            share = len(risk_type) / self.rows_of_step
            tokens = num_items_in_batch / self.accelerator.num_processes  # gradients are averaged over the processes
        losses = safety_losses(
            output.logits,
            inputs.get("labels"),
            output.type_logits,
            output.level_logits,
            risk_type,
            risk_level,
            self.head_weight * share,
            tokens,
        )
        if model.training:
            terms = torch.stack([losses.lm, losses.type * share, losses.level * share]).detach()
            self.watch.add(self.state.global_step + 1, inputs["rows"], terms)
        return (losses.loss, {"loss": losses.loss, **output}) if return_outputs else losses.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each loss term over the steps since the last log, on all processes.

        Raises:
            TrainingError: a loss since then is no number; names its rows.
        """
        if "loss" in logs:
            logs |= {name: round(value, 5) for name, value in zip(("lm", "type", "level"), self.watch.means())}
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained parameters alone: the base is where it was, and a 7B base is 14 GB.

        Raises:
            TrainingError: as in `log`, so that no checkpoint is written after a loss that is no number.
        """
        self.watch.check()
        folder = Path(output_dir or self.args.output_dir)
        state = gather_weights(self.model, self.trained, keep=self.args.should_save)  # every process takes part
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


class EpochCallback(TrainerCallback):
    """Tells the order which epoch begins: on several processes accelerate does not where a run goes on amid an epoch."""

    def __init__(self, order: StepSampler) -> None:
        self.order = order

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Every epoch has the same number of whole steps."""
        self.order.set_epoch(state.global_step * self.order.step // len(self.order))


def measure(prediction: EvalPrediction) -> dict[str, float]:
    """Head metrics of an evaluation; the names get Trainer's prefix."""
    type_logits, level_logits = prediction.predictions
    types, levels = prediction.label_ids
    return head_metrics(
        types.tolist(), type_logits.argmax(-1).tolist(), levels.tolist(), level_logits.argmax(-1).tolist()
    )
