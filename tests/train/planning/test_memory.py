"""Memory: the plan's sums against what torch, bitsandbytes and a real step hold."""

import pytest
import torch
from helpers import stage_runs as runs
from torch import nn
from transformers import TrainerCallback

from train.config import read_config
from train.planning import memory
from train.planning.memory import Strategy, Weights, states
from train.planning.meta_model import MetaModel

LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.table(tmp_path_factory.mktemp("memory") / "data")


class Gradients(TrainerCallback):
    bytes = 0

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        self.bytes = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("lora", [None, LORA])
def test_states_are_those_of_a_real_step_and_its_checkpoint(bases, data, tmp_path, lora):
    rules = runs.LORA if lora else runs.STAGE1
    path = runs.config(
        data, tmp_path / "run", rules, bases["llava"], lora, max_steps=1, save_strategy="steps", save_steps=1
    )
    config = read_config(["--config", str(path)])
    trainer = runs.trainer_of(config)
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    meta_model = MetaModel.of(config)
    weights, optimizer = meta_model.weights(), meta_model.optimizer(trainer.args.optim.value)
    held = states(weights, Strategy("DDP"), optimizer, 1, False)
    assert held.weights == sum(p.nbytes for p in trainer.model.parameters())
    assert held.gradients == gradients.bytes
    inner = trainer.optimizer.optimizer if hasattr(trainer.optimizer, "optimizer") else trainer.optimizer
    assert held.optimizer == sum(v.nbytes for state in inner.state.values() for v in state.values())
    folder = tmp_path / "run" / "checkpoint-1"
    written = sum((folder / name).stat().st_size for name in ("model.safetensors", "optimizer.pt"))
    assert written == pytest.approx(memory.checkpoint_bytes(weights, optimizer, False), rel=0.1, abs=80_000)


def test_8_bit_states_are_those_of_bitsandbytes():
    optim = pytest.importorskip("bitsandbytes.optim")
    shapes = [(100, 100), (30, 30), (4096,)]
    tensors = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = optim.AdamW8bit(tensors)
    sum(tensor.sum() for tensor in tensors).backward()
    optimizer.step()
    found = sum(
        value.nbytes
        for state in optimizer.state.values()
        for name, value in state.items()
        if torch.is_tensor(value) and "qmap" not in name
    )
    assert memory.optimizer_bytes("adamw_8bit", shapes) == found


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised_weights_are_those_of_bitsandbytes(kind):
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.functional import quantize_4bit
    from bitsandbytes.nn import Int8Params

    weight = torch.randn(1024, 2048)
    if kind == "nf4":
        packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        found = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    else:
        held = Int8Params(weight, requires_grad=False).to("cpu")
        found = held.data.nbytes + (held.SCB.nbytes if held.SCB is not None else 4 * 1024)
    assert memory.quantised_bits(kind, 2048) * weight.numel() / 8 == pytest.approx(found, rel=1e-6)


def test_zero_divides_what_its_paper_says():
    weights = Weights(7_500_000_000, 0, 30_000_000_000, 0)  # section 3 and table 1: 7.5B parameters on 64 GPUs
    found = {
        stage: states(weights, Strategy("", stage=stage), 8 * weights.trained, 64, True).stay / 1e9 for stage in (2, 3)
    }
    assert found[2] == pytest.approx(16.6, abs=0.1) and found[3] == pytest.approx(1.88, abs=0.01)
    assert states(weights, Strategy("", stage=2), 8 * weights.trained, 1, True).stay == 16 * weights.trained


def test_offloading_leaves_the_states_to_the_host():
    weights = Weights(100, 900, 400, 1800)
    near, far = (
        states(weights, Strategy("", stage=3, offload=o, offload_weights=o), 800, 1, True) for o in (False, True)
    )
    assert near.stay == 2 * 1000 + 2 * 100 + 800 + 400 and near.host == 0
    assert far.stay == 0 and far.host == 2 * 1000 + 4 * 100 + 4 * 100 + 800
