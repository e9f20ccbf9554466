"""SafetyTrainer: transformers.Trainer with this method's loss, its rates for each part, and lean checkpoints."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer

from safety_modules.evaluation.metrics import head_metrics
from safety_modules.losses import safety_losses
from train.stages import param_groups

TARGETS = ("labels", "risk_type", "risk_level")


class SafetyTrainer(Trainer):
    """Public methods of Trainer overridden, no private one.

    `rules` are those of `stages.param_groups`; `head_weight` that of `losses.safety_losses`.
    """

    def __init__(self, *args: object, rules: dict[str, float | None], head_weight: float, **trainer: object) -> None:
        model = trainer["model"]
        self.groups = param_groups(model, rules)
        self.trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        model._keys_to_ignore_on_save = [name for name in model.state_dict() if name not in self.trained]  # what Trainer asks for
        self.head_weight = head_weight
        self.terms: dict[str, list[Tensor]] = defaultdict(list)
        super().__init__(*args, compute_metrics=measure, **trainer)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that the arguments name, with the rules' learning rates.

        As in Trainer, one with 8-bit states keeps those of embeddings, here the safety tokens, in 32 bits: their gradients
        differ too much from row to row for the shared scales of a block.
        """
        if self.optimizer is None:
            kind, values = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(self.groups, **values)
            if values.get("optim_bits") == 8:
                from bitsandbytes.optim import GlobalOptimManager

                for module in self.model.modules():
                    if isinstance(module, nn.Embedding) and module.weight.requires_grad:
                        GlobalOptimManager.get_instance().register_module_override(module, "weight", {"optim_bits": 32})
        return self.optimizer

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
        labels, risk_type, risk_level = (inputs[name] for name in TARGETS)
        output = model(**{name: value for name, value in inputs.items() if name not in TARGETS})
        parts, tokens = 1, None
        if model.training and num_items_in_batch is not None:
            parts = self.current_gradient_accumulation_steps
            tokens = num_items_in_batch / self.accelerator.num_processes  # gradients are averaged over the processes
        losses = safety_losses(
            output.logits,
            labels,
            output.type_logits,
            output.level_logits,
            risk_type,
            risk_level,
            self.head_weight / parts,
            tokens,
        )
        if model.training:
            self.terms["lm"].append(losses.lm.detach() * parts)
            self.terms["type"].append(losses.type.detach())
            self.terms["level"].append(losses.level.detach())
        return (losses.loss, {"loss": losses.loss, **output}) if return_outputs else losses.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each loss term since the last log."""
        if "loss" in logs:
            logs |= {name: round(torch.stack(values).mean().item(), 5) for name, values in self.terms.items()}
            self.terms.clear()
        super().log(logs, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained parameters alone: the base is where it was, and a 7B base is 14 GB."""
        folder = Path(output_dir or self.args.output_dir)
        wrapped = self.model_wrapped if self.is_deepspeed_enabled else self.model
        state = self.accelerator.get_state_dict(wrapped)  # a collective: every process takes part
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            kept = {name: value.detach().cpu().contiguous() for name, value in state.items() if name in self.trained}
            save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def measure(prediction: EvalPrediction) -> dict[str, float]:
    """Head metrics of an evaluation; the names get Trainer's prefix."""
    type_logits, level_logits = prediction.predictions
    types, levels = prediction.label_ids
    return head_metrics(types.tolist(), type_logits.argmax(-1).tolist(), levels.tolist(), level_logits.argmax(-1).tolist())
