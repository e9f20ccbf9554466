"""Devices and dtypes by name."""

import pytest
import torch

from safety_modules.config import ConfigError
from safety_modules.devices import resolve_device, resolve_dtype


def test_auto_takes_a_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for gpu, name in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert resolve_device() == resolve_device("auto") == name
    assert resolve_device("cpu") == "cpu"


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="device 'abacus': cannot be used .*; use auto"):
        resolve_device("abacus")


@pytest.mark.parametrize(
    "name,device,stored,dtype",
    [
        ("float32", "cpu", "float16", "float32"),
        ("float16", "cpu", None, "float16"),
        ("auto", "cuda", "float16", "float16"),
        ("auto", "cpu", "float16", "bfloat16"),
        ("auto", "cpu", "bfloat16", "bfloat16"),
        ("auto", "cpu", None, "float32"),
    ],
)
def test_a_named_dtype_counts_and_auto_is_never_half_precision_on_a_cpu(name, device, stored, dtype):
    assert resolve_dtype(name, device, stored) == dtype


def test_an_unknown_dtype_gets_the_nearest_name():
    with pytest.raises(ConfigError, match="dtype 'flaot32': unknown dtype; did you mean 'float32'"):
        resolve_dtype("flaot32", "cpu", None)
