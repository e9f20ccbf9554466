import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import tiny
import torch

from safety_modules import SafeVLM


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Folder of a tiny random base of each family."""
    root = tmp_path_factory.mktemp("bases")
    return {family: tiny.base_folder(family, root / family) for family in tiny.FAMILIES}


@pytest.fixture(params=tiny.FAMILIES)
def base(request, bases):
    return bases[request.param]


@pytest.fixture
def model(base):
    """A base with random safety modules, all weights in fp32."""
    torch.manual_seed(1)
    return SafeVLM.attach(base, tiny.safety_config()).eval()
