import sys
from types import SimpleNamespace

import pytest
from helpers import stage_runs as runs
from peft import PeftModel
from transformers.models.llama import modeling_llama

from safety_modules.config import ConfigError
from safety_modules.model.load_base import load_base
from train import build
from train.arguments import training_arguments
from train.config import read_config
from train.loop.liger import apply_liger, check_liger

STAND_IN = """
calls = []

def apply_liger_kernel_to_llama(
    rope=True, cross_entropy=False, fused_linear_cross_entropy=True, rms_norm=True, swiglu=True, model=None
):
    calls.append({name: value for name, value in locals().items()})
"""
NO_LOSS = {"cross_entropy": False, "fused_linear_cross_entropy": False}


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A package in liger-kernel's place that records what it was asked to patch."""
    place = tmp_path / "packages" / "liger_kernel" / "transformers"
    place.mkdir(parents=True)
    (place.parent / "__init__.py").write_text("")
    (place / "__init__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(place.parents[1])
    for name in ("liger_kernel", "liger_kernel.transformers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from liger_kernel import transformers as liger

    yield liger.calls
    for name in ("liger_kernel", "liger_kernel.transformers"):
        sys.modules.pop(name, None)


@pytest.fixture
def config(bases, tmp_path):
    """A stage with LoRA and the kernels; more of the command line comes on top."""
    lora = {"rank": 2, "alpha": 4, "dropout": 0.0}
    data = runs.table(tmp_path / "data")
    path = runs.config(data, tmp_path / "run", runs.LORA, bases["llava"], lora=lora, use_liger_kernel=True)
    return lambda *args: read_config(["--config", str(path), *args])


def on(device, **chosen):
    """What `check_liger` looks at of the arguments."""
    return SimpleNamespace(device=SimpleNamespace(type=device), liger_kernel_config=chosen or None)


def test_only_the_language_model_is_patched_and_no_loss(base, calls):
    model = load_base(base)
    apply_liger(model)
    assert calls == [{"rope": True, "rms_norm": True, "swiglu": True, **NO_LOSS, "model": model.model.language_model}]
    apply_liger(model, {"rope": False})
    assert not calls[1]["rope"] and calls[1]["rms_norm"]


def test_build_model_patches_once_before_lora_and_trainer_does_not(config, calls, monkeypatch, caplog):
    monkeypatch.setattr(build, "check_liger", lambda config, arguments: None)  # which demands a GPU
    stage = config("--trainer.liger_kernel_config", "{swiglu: false}")
    arguments = training_arguments(stage)
    model = build.build_model(stage, arguments)
    trainer = build.build_trainer(stage, arguments, model, build.build_data(stage, arguments, model))
    assert len(calls) == 1 and calls[0]["rms_norm"] and not calls[0]["swiglu"]
    assert calls[0]["model"] is trainer.model.base.model.language_model and isinstance(model.adapter, PeftModel)
    assert trainer.args.use_liger_kernel is False and "liger" not in caplog.text.lower()


def test_without_the_setting_nothing_is_patched(config, calls):
    runs.trainer_of(config("--trainer.use_liger_kernel", "false"))
    assert calls == []


def test_on_a_cpu_the_run_ends_with_one_line(config, calls):
    with pytest.raises(ConfigError, match="need a GPU and this run is on a CPU; set it to false"):
        runs.trainer_of(config("--trainer.use_cpu", "true"))


def test_a_missing_package_is_named_with_the_remedy(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(ConfigError, match="cannot be imported .*; pip install liger-kernel$"):
        check_liger(config(), on("cuda"))


def test_settings_without_effect_are_errors(config, calls):
    check_liger(config(), on("cuda", rope=False))
    with pytest.raises(ConfigError, match="'fused_linear_cross_entropy' is not applied here.*rope"):
        check_liger(config(), on("cuda", fused_linear_cross_entropy=True))
    head_only = config("--head_only", "true", "--lora", "null")
    with pytest.raises(ConfigError, match="with head_only: the language model is not run"):
        check_liger(head_only, on("cuda"))


def test_a_language_model_that_liger_does_not_support_is_an_error(bases, calls):
    model = load_base(bases["llava"])
    model.config.text_config.model_type = "other"
    with pytest.raises(ConfigError, match="language model of type 'other'"):
        apply_liger(model)


def test_the_real_package_replaces_the_right_modules(base, monkeypatch):
    """What is replaced; the kernels themselves run on a GPU only."""
    liger = pytest.importorskip("liger_kernel.transformers")
    for name in ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP"):  # Liger replaces these for the whole process
        monkeypatch.setattr(modeling_llama, name, vars(modeling_llama)[name])
    model = load_base(base)
    forward = model.forward.__func__, model.model.language_model.forward.__func__
    apply_liger(model)
    text = model.model.language_model
    norms = [
        text.norm,
        *(norm for layer in text.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)),
    ]
    assert all(norm.forward.__func__ is liger.LigerRMSNorm.forward for norm in norms)
    assert all(layer.mlp.forward.__func__ is liger.LigerSwiGLUMLP.forward for layer in text.layers)
    assert modeling_llama.apply_rotary_pos_emb is liger.liger_rotary_pos_emb
    assert (model.forward.__func__, model.model.language_model.forward.__func__) == forward
    assert not any("forward" in vars(part) for part in model.model.vision_tower.modules())
