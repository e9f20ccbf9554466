import os

from safety_modules.checkpoints.format import ADAPTER
from safety_modules.checkpoints.save import save_safety
from safety_modules.files import fresh_folder

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from helpers import tiny
from peft import LoraConfig, get_peft_model

from safety_modules import SafeVLM
from train.features import store


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
    """A folder of stage 2: safety modules and LoRA weights that are not the initial ones."""
    torch.manual_seed(2)
    adapted = get_peft_model(model.base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "llm_tokens" in name:
                parameter.normal_(std=0.5)
    with fresh_folder(tmp_path / "trained") as folder:
        save_safety(model, folder, str(base))
        adapted.save_pretrained(folder / ADAPTER)
    return tmp_path / "trained"


OLD = 1_700_000_000  # seconds; the index of features does not trust the time of a recent file


@pytest.fixture
def images(tmp_path):
    """Seven images of different shapes, the last two of which are the same."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(7):
        tiny.image(min(number, 5), [(40, 32), (32, 90), (90, 30), (64, 64)][number % 4 if number < 6 else 1]).save(
            folder / f"{number}.png"
        )
        os.utime(folder / f"{number}.png", (OLD, OLD))
    return sorted(folder.glob("*.png"))


@pytest.fixture
def computed(monkeypatch):
    """Images that the vision tower encodes, in order."""
    encoded, real = [], store.ImageBatches

    def batches(processor, images, batch_size):
        encoded.extend(images)
        return real(processor, images, batch_size)

    monkeypatch.setattr(store, "ImageBatches", batches)
    return encoded
