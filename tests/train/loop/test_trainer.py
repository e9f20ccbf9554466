"""What the trainer needs of transformers and DeepSpeed: public names alone, each of which is looked for here."""

import inspect
from importlib.metadata import version

import pytest
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from helpers import stage_runs as runs
from transformers import Trainer

from train.config import read_config
from train.loop.loss_watch import TrainingError
from train.loop.trainer import SafetyTrainer


@pytest.fixture
def trainer(bases, tmp_path):
    path = runs.config(runs.table(tmp_path / "data"), tmp_path / "run", runs.LORA, bases["llava"], {"rank": 2})
    return runs.trainer_of(read_config(["--config", str(path)]))


def test_the_trainer_overrides_public_methods_that_trainer_has():
    own = {name: item for name, item in vars(SafetyTrainer).items() if inspect.isfunction(item)}
    for name in own.keys() - {"__init__", "_allow_lean_checkpoint"}:
        assert not name.startswith("_") and hasattr(Trainer, name), (
            f"transformers {version('transformers')} has no public Trainer.{name}: SafetyTrainer overrides it"
        )
        theirs = inspect.signature(getattr(Trainer, name)).parameters
        assert list(inspect.signature(own[name]).parameters) == list(theirs), f"Trainer.{name} takes other arguments"
    assert not hasattr(Trainer, "_allow_lean_checkpoint")


def test_what_trainer_and_deepspeed_are_asked_for_exists(trainer):
    assert {"optimizer_cls_and_kwargs", "model_wrapped", "is_deepspeed_enabled"} <= vars(trainer).keys(), (
        f"transformers {version('transformers')}: an attribute that Trainer documents is gone; see train/loop"
    )
    assert "exclude_frozen_parameters" in inspect.signature(DeepSpeedEngine.save_checkpoint).parameters, (
        f"deepspeed {version('deepspeed')}: save_checkpoint cannot leave out frozen weights; see SkipFrozenWeights"
    )


def test_deepspeed_still_needs_the_fix_of_universal_checkpoints():
    source = inspect.getsource(DeepSpeedZeroOptimizer_Stage3)
    assert '["param_groups"][0]' in source and "['step'] = state_step" in source, (
        f"deepspeed {version('deepspeed')} loads universal checkpoints otherwise: is UniversalCheckpointFix needed?"
    )


def test_a_checkpoint_may_lack_frozen_weights_and_no_others(trainer):
    model = trainer.model
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items() if name in trainer.trained}
    model.load_state_dict(state)
    assert all(not model.state_dict()[name].any() for name in state)
    del state[sorted(state)[0]]
    with pytest.raises(TrainingError, match="no weights of .*lora_A.* which the rules train; use the rules"):
        model.load_state_dict(state, strict=False)
