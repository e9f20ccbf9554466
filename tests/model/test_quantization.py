import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import stage_runs as runs
from helpers import tiny
from helpers.quantized_models import BLOCKS, adapted, places
from safetensors.torch import load_file

from safety_modules import SafeVLM
from safety_modules.checkpoints.load import load
from safety_modules.config import ConfigError
from safety_modules.model.load_base import load_base
from safety_modules.model.quantization import KINDS, Quantization, quantized_layers
from train.build import load_model
from train.config import LoraConfig, read_config
from train.run import train

FROZEN = {r"base\..*lora_.*": 1e-2, r"base\..*": None, r"safety\..*": None}
TOGETHER = {r"base\..*lora_.*": 1e-2, r"base\..*": None, r"safety\..*": 1e-2}


@pytest.fixture(scope="module", autouse=True)
def bitsandbytes():
    """Imported once, late: it takes seconds."""
    return pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight images with labels and one row without."""
    root = tmp_path_factory.mktemp("data")
    rows = ["image,question,answer,risk_type,risk_level,split", ",what colour?,a red key,clean,0,train"]
    for i in range(8):
        tiny.image(i).save(root / f"{i}.png")
        rows.append(f"{i}.png,,,{('privacy', 'clean')[i % 2]},,{'validation' if i > 5 else 'train'}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def read(data, output, base, rules=FROZEN, quantize="nf4", *more, **trainer):
    """A stage of three steps, read as the command line does."""
    values = {
        "output": str(output),
        "base": str(base),
        "quantize": quantize,
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
        "safety": vars(tiny.safety_config()),
        "rules": rules,
        "data": {
            "root": str(data),
            "train": [{"recipe": "custom"}],
            "validation": [{"recipe": "custom", "split": "validation"}],
        },
        "trainer": {
            "max_steps": 3,
            "per_device_train_batch_size": 2,
            "report_to": "none",
            "disable_tqdm": True,
            **trainer,
        },
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "stage.yaml").write_text(json.dumps(values), encoding="utf-8")
    return read_config(["--config", str(output / "stage.yaml"), *map(str, more)])


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def qlora(request, bases, tmp_path_factory):
    """Such a folder in nf4."""
    return adapted(bases[request.param], tmp_path_factory.mktemp("qlora") / "final", "nf4")


@pytest.mark.parametrize("kind", KINDS)
def test_exactly_the_linear_layers_of_the_blocks_are_quantised(base, kind):
    plain = load_base(base)
    quantized = SafeVLM.attach(base, tiny.safety_config(), quantize=Quantization(kind))
    linear = [name for name, module in plain.named_modules() if isinstance(module, torch.nn.Linear)]
    blocks = [name for name in linear if name.startswith(BLOCKS)]
    assert 0 < len(blocks) < len(linear) and quantized_layers(quantized.base) == blocks
    assert quantized_layers(quantized.safety) == []
    for name, value in plain.named_parameters():
        if name.removesuffix(".weight") not in blocks:
            assert torch.equal(quantized.base.get_parameter(name), value), name
    assert {parameter.dtype for parameter in quantized.safety.parameters()} == {torch.float32}


def test_nf4_has_double_quantisation_and_computes_in_what_the_stage_does(base, data, tmp_path):
    for bf16, compute in ((False, torch.float32), (True, torch.bfloat16)):
        model = load_model(read(data, tmp_path, base, FROZEN, "nf4", "--dtype", "bfloat16", bf16=bf16))
        for name in quantized_layers(model.base):
            layer = model.base.get_submodule(name)
            assert layer.weight.quant_state.nested and layer.weight.quant_state.quant_type == "nf4"
            assert layer.compute_dtype == compute
        assert Quantization.of(model.base) == Quantization("nf4", str(compute).removeprefix("torch."), "bfloat16")


@pytest.mark.parametrize(
    "kind,rules,checkpointing", [("nf4", FROZEN, True), ("nf4", TOGETHER, False), ("int8", TOGETHER, True)]
)
def test_contract_3_on_a_quantised_base_moved_equals_requires_grad(base, data, tmp_path, kind, rules, checkpointing):
    trainer = runs.trainer_of(read(data, tmp_path / "run", base, rules, kind, gradient_checkpointing=checkpointing))
    model = trainer.model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer.train(ignore_keys_for_eval=["logits"])
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name]) is p.requires_grad] == []
    lora = {name: p for name, p in model.named_parameters() if "lora_" in name}
    assert {name.split(".lora_")[0] for name in lora} == {f"base.{name}" for name in places(model)}
    assert {p.dtype for p in lora.values()} == {torch.float32} and all(p.requires_grad for p in lora.values())


@pytest.mark.parametrize("kind,optim", [("nf4", "adamw_torch"), ("nf4", "adamw_8bit"), ("int8", "adamw_torch")])
def test_a_quantised_run_goes_on_from_its_checkpoint(bases, data, tmp_path, kind, optim):
    def run(name, steps):
        more = ["--trainer.max_steps", steps, "--lora.rank", 64]
        saving = {"save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
        trainer = {"lr_scheduler_type": "constant", "optim": optim, **saving}
        return train(read(data, tmp_path / name, bases["llava"], TOGETHER, kind, *more, **trainer))

    whole = run("whole", 4)
    run("two", 2)
    two = run("two", 4)
    for file in ("adapter/adapter_model.safetensors", "safety/model.safetensors"):
        first, second = load_file(whole / file), load_file(two / file)
        for name, value in first.items():
            assert torch.allclose(value, second[name], atol=1e-6), name
    stopped = load_file(tmp_path / "two" / "checkpoint-2" / "model.safetensors")
    assert any(not torch.equal(stopped[f"safety.{name}"], value) for name, value in second.items())


def test_the_folder_remembers_the_quantisation(bases, data, tmp_path):
    final = train(read(data, tmp_path / "run", bases["llava"], max_steps=1))
    meta = json.loads((final / "safety" / "config.json").read_text())
    assert meta["format"] == 1 and meta["quantization"] == {"kind": "nf4", "compute": "float32", "dtype": "float32"}
    assert len(quantized_layers(load(final, merge=False).base)) == 14
    assert quantized_layers(load(final).base) == []


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit"])
def test_8_bit_optimizers_keep_the_states_of_tokens_in_32_bits(bases, data, tmp_path, optim, bitsandbytes):
    bitsandbytes.optim.GlobalOptimManager.get_instance().initialize()  # of this process: the overrides of other tests
    rules = {r"base\..*lora_.*": 1e-2, r"base\..*": None, r"safety\.llm_tokens\..*": 1e-3, r"safety\..*": None}
    more = ["--lora.rank", 64, "--safety.llm_tokens", 64]  # below 4096 numbers a state has 32 bits anyway
    config = read(data, tmp_path / "run", bases["llava"], rules, "nf4", *more, max_steps=1, optim=optim)
    trainer = runs.trainer_of(config)
    if optim.startswith("paged") and not torch.cuda.is_available():
        with pytest.warns(UserWarning, match="not supported on CPU. Falling back to non-paged"):
            trainer.train(ignore_keys_for_eval=["logits"])
    else:
        trainer.train(ignore_keys_for_eval=["logits"])
    optimizer = trainer.optimizer
    optimizer = optimizer.optimizer if hasattr(optimizer, "optimizer") else optimizer
    assert type(optimizer).__module__.startswith("bitsandbytes")
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    states = {names[id(p)]: state["state1"].dtype for p, state in optimizer.state.items()}
    assert states.pop("safety.llm_tokens.weight") == torch.float32
    assert len(states) == 28 and set(states.values()) == {torch.uint8}
    assert [group["initial_lr"] for group in optimizer.param_groups] == [1e-2, 1e-3]


@pytest.mark.parametrize(
    "change,message",
    [
        ({"quantize": "nf5"}, "quantize: unknown value 'nf5'; did you mean 'nf4'"),
        ({"lora": None}, "quantize 'nf4' without lora: quantised weights cannot be trained; add lora"),
        ({"head_only": True}, "quantize 'nf4' with head_only: the language model is not loaded"),
        (
            {"rules": {r"base\..*": 1e-5, ".*": None}},
            "q_proj.base_layer.weight', which is quantised; freeze it with null",
        ),
        (
            {"rules": {".*_norm.*|.*layernorm.*": 1e-5, **FROZEN}},
            "norm.weight', which would not be saved; freeze it with null",
        ),
    ],
)
def test_a_stage_that_cannot_be_trained_is_an_error(bases, data, tmp_path, change, message):
    config = read(data, tmp_path / "run", bases["llava"])
    with pytest.raises(ConfigError, match=message):
        runs.trainer_of(replace(config, **change))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["stage.yaml"]


def test_without_bitsandbytes_the_error_says_how_to_install_it(bases, qlora, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for attempt in (lambda: load_model(read(data, tmp_path, bases["llava"])), lambda: load(qlora)):
        with pytest.raises(ConfigError, match="quantize 'nf4' needs bitsandbytes.*pip install bitsandbytes"):
            attempt()


def test_an_unknown_quantisation_or_dtype_is_an_error(qlora, tmp_path):
    with pytest.raises(ConfigError, match="dtype 'float23': unknown dtype; did you mean 'float32'"):
        load(qlora, dtype="float23")
    changed = shutil.copytree(qlora, tmp_path / "changed")
    path = changed / "safety" / "config.json"
    meta = json.loads(path.read_text())
    for change, message in (({"kind": "nf5"}, "did you mean 'nf4'"), ({"compte": "float32"}, "did you mean 'compute'")):
        path.write_text(json.dumps(meta | {"quantization": meta["quantization"] | change}))
        with pytest.raises(ConfigError, match=f"changed: quantization.*{message}"):
            load(changed)


def test_the_shipped_stage_takes_steps_of_128_rows():
    path = Path(__file__).parents[2] / "train" / "configs" / "stage2_qlora.yaml"
    config = read_config(["--config", str(path), "--data.root", "x"])
    assert config.quantize == "nf4" and config.lora == LoraConfig(256, 16, 0.05)
    assert config.trainer["optim"] == "paged_adamw_8bit"
    assert config.trainer["per_device_train_batch_size"] * config.trainer["gradient_accumulation_steps"] == 128
