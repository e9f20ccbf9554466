"""The processor of riskworld's base model: a tokenizer of its own, LLaVA's processor and chat template."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from data_recipes.riskworld.pictograms.backgrounds import SIZE
from train.experiments.riskworld_models.tower import MEAN, PATCH, STD

# The layout of LLaVA-1.5: the system text without a role, an end token after each answer.
CHAT_TEMPLATE = """{% for message in messages %}\
{% if message['role'] == 'system' %}{% set role, stop = '', ' ' %}\
{% elif message['role'] == 'user' %}{% set role, stop = 'USER: ', ' ' %}\
{% else %}{% set role, stop = 'ASSISTANT: ', '</s>' %}{% endif %}{{ role }}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}\
{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}{{ stop }}\
{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""


def build_processor(corpus: Iterable[str], vocabulary: int = 768) -> LlavaProcessor:
    """A processor whose byte-level BPE tokenizer is trained on the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast_tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=fast_tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def derive_tokenizer(
    base: PreTrainedTokenizerFast, backend: Tokenizer, **changes: str | int
) -> PreTrainedTokenizerFast:
    """A tokenizer with the base's special tokens and length around another backend."""
    settings = {name: getattr(base, name) for name in ("pad_token", "bos_token", "eos_token", "model_max_length")}
    settings |= {"clean_up_tokenization_spaces": False, **changes}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **settings)
