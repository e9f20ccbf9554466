import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model

from safety_modules import SafeVLM, checkpoint


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


@pytest.fixture
def trained(base, model, tmp_path):
    """A folder with safety modules and LoRA weights that differ from the start's, as stage 2 leaves it."""
    torch.manual_seed(2)
    adapted = get_peft_model(model.base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "llm_tokens" in name:
                parameter.normal_(std=0.5)
    with checkpoint.fresh_folder(tmp_path / "trained") as folder:
        checkpoint.save_safety(model, folder, str(base))
        adapted.save_pretrained(folder / checkpoint.ADAPTER)
    return tmp_path / "trained"
