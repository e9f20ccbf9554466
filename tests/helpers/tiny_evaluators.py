"""Tiny random evaluators: CLIP, a reward model with and without a chat template, an ArmoRM; and all that ETA needs."""

import json
from contextlib import contextmanager
from pathlib import Path

import torch
from helpers import tiny
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from safety_modules.checkpoints.save import save_safety
from safety_modules.eta import REWARD
from safety_modules.model.safe_vlm import SafeVLM

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}
LETTERS = pre_tokenizers.ByteLevel.alphabet()
SPECIAL = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "[PAD]"]
LLAMA_3 = (  # the published reward model's layout
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + (m['content'] | trim) + '<|eot_id|>' }}"
    "{% endfor %}"
)
SEARCH = "search: {prefix: I cannot, candidates: 2, max_new_tokens: 12, sentence_tokens: 4, batch_size: 2}\n"
TEXTS = ["user assistant please answer without harm how do I open the door, I cannot help. " * 2]
OBJECTIVES, HIDDEN = 5, 12


def clip_folder(folder: Path) -> Path:
    """A CLIP with a text tower of 20 tokens."""
    torch.manual_seed(0)
    letters = sorted(LETTERS)
    names = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[])
    end = len(names) - 1
    text = TOWER | {
        "vocab_size": len(names),
        "max_position_embeddings": 20,
        "bos_token_id": end - 1,
        "eos_token_id": end,
    }
    vision = TOWER | {"image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text | {"pad_token_id": end}, vision_config=vision, projection_dim=24)
    image = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(image, tokenizer).save_pretrained(folder)
    return folder


def llama_tokenizer(template: str | None = LLAMA_3) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with Llama 3's special tokens and template."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, initial_alphabet=LETTERS, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=SPECIAL[0], eos_token=SPECIAL[1], pad_token=SPECIAL[4], model_max_length=2000
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[2:4]})
    tokenizer.chat_template = template
    return tokenizer


def llama_config(labels: int, **more: object) -> LlamaConfig:
    size = TOWER | {"vocab_size": 330, "max_position_embeddings": 2048, "pad_token_id": 4}
    return LlamaConfig(**(size | {"num_labels": labels} | more))


def reward_folder(folder: Path, labels: int = 1) -> Path:
    """A Llama with a reward head, read through a chat template."""
    torch.manual_seed(1)
    LlamaForSequenceClassification(llama_config(labels)).save_pretrained(folder)
    llama_tokenizer().save_pretrained(folder)
    return folder


def pair_folder(folder: Path) -> Path:
    """A BERT with a reward head, which reads a pair of texts."""
    torch.manual_seed(2)
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    core = Tokenizer(
        models.WordPiece({name: i for i, name in enumerate([*special, *LETTERS, *("##" + x for x in LETTERS)])})
    )
    core.model.unk_token = "[UNK]"
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.post_processor = TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 1), ("[SEP]", 2)]
    )
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, model_input_names=["input_ids", "token_type_ids", "attention_mask"], **names
    )
    config = BertConfig(**TOWER, vocab_size=core.get_vocab_size(), max_position_embeddings=512, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def armorm_folder(folder: Path) -> Path:
    """An ArmoRM in the published layout, in two files: names, sizes in the config, remote code that must not run."""
    torch.manual_seed(3)
    body = LlamaModel(llama_config(2))
    body.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    about = json.loads((folder / "config.json").read_text())
    sizes = {"num_objectives": OBJECTIVES, "gating_temperature": 2, "gating_hidden_dim": HIDDEN, "gating_n_hidden": 2}
    code = {"auto_map": {"AutoModelForSequenceClassification": "modeling_custom.LlamaForRewardModelWithGating"}}
    about |= sizes | code | {"architectures": ["LlamaForRewardModelWithGating"]}
    (folder / "config.json").write_text(json.dumps(about))
    (folder / "modeling_custom.py").write_text("raise SystemExit('remote code ran')")
    shapes = {"regression_layer.weight": (OBJECTIVES, 32), "reward_transform_matrix": (OBJECTIVES, OBJECTIVES)}
    widths = [32, HIDDEN, HIDDEN, OBJECTIVES]
    for i, (a, b) in enumerate(zip(widths, widths[1:])):
        shapes |= {f"gating.layers.{i}.weight": (b, a), f"gating.layers.{i}.bias": (b,)}
    heads = {name: torch.randn(shape) for name, shape in shapes.items()} | {"gating.logit_scale": torch.tensor([1.7])}
    write_weights(folder, {f"model.{name}": value for name, value in body.state_dict().items()}, heads)
    llama_tokenizer().save_pretrained(folder)
    return folder


def write_weights(folder: Path, *parts: dict[str, torch.Tensor]) -> None:
    """Shards with their index."""
    index = {}
    for i, part in enumerate(parts):
        name = f"model-{i}.safetensors"
        save_file({key: value.contiguous() for key, value in part.items()}, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def alone(folder, user, answer):
    """The score of one dialogue by a stock class and template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForSequenceClassification.from_pretrained(folder)
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    ids = tokenizer.apply_chat_template(turns, return_tensors="pt")
    with torch.no_grad():
        return model(**ids).logits[0, 0].item()


def armorm_alone(folder, user, answer):
    """ArmoRM's score of one dialogue, from the files, step by step."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    before = text[: text.rindex("<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n")]
    gate = len(tokenizer(before, add_special_tokens=False)["input_ids"])
    weights = load_file(folder / "model-1.safetensors")
    body = LlamaModel(llama_config(1)).eval()
    body.load_state_dict(
        {name.removeprefix("model."): v for name, v in load_file(folder / "model-0.safetensors").items()}
    )
    with torch.no_grad():
        states = body(torch.tensor([ids])).last_hidden_state[0]
    x = states[gate]
    for i in range(3):
        x = weights[f"gating.layers.{i}.weight"] @ x + weights[f"gating.layers.{i}.bias"]
        x = x.clamp(min=0) if i < 2 else x
    share = (x / 2).exp() / (x / 2).exp().sum() * 1.7
    rewards = weights["regression_layer.weight"] @ states[-1]
    adjusted = [
        sum(rewards[i] * weights["reward_transform_matrix"][i, j] for i in range(len(rewards)))
        for j in range(len(rewards))
    ]
    return sum(a * b for a, b in zip(share, adjusted)).item()


def eta_folders(home: Path, base: Path) -> Path:
    """A folder with `safe`, `clip`, `reward` and `eta.yaml`, whose threshold no answer reaches."""
    torch.manual_seed(0)
    save_safety(SafeVLM.attach(base, tiny.safety_config()), home / "safe", str(base))
    clip_folder(home / "clip"), reward_folder(home / "reward")
    (home / "eta.yaml").write_text(
        "pre: {kind: clip, model: clip, threshold: -1.0}\nmatch: clip\n"
        "post: {kind: reward, model: reward, dtype: bfloat16, threshold: 9}\n" + SEARCH
    )
    return home


@contextmanager
def scripted(generator, tokens):
    """Makes the model of an AnswerGenerator generate these tokens, one in each step."""
    ids = iter(generator.tokenizer.convert_tokens_to_ids(token) for token in tokens)
    hook = generator.model.get_output_embeddings().register_forward_hook(
        lambda module, args, out: torch.zeros_like(out).index_fill_(-1, torch.tensor(next(ids)), 9.0)
    )
    try:
        yield
    finally:
        hook.remove()


class PrefixPost:
    """A post-evaluator: safe is what begins with the prefix. `read` holds the exchanges that it was given."""

    def __init__(self):
        self.unit, self.threshold, self.read = REWARD, 0.0, []

    def __call__(self, exchanges, texts):
        self.read += exchanges
        return [1.0 if text.startswith("I cannot") else -1.0 for text in texts]
