"""SafeProcessor: an exchange -> input_ids, labels, pixel_values, with the safety tokens in place."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, ProcessorMixin
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from safety_modules.prompt.chat_template import ChatTemplate
from safety_modules.prompt.head_inputs import HeadInputs
from safety_modules.prompt.images import ImageLike, load_image
from safety_modules.prompt.messages import Conversation, ProcessingError, Structure, read_messages
from safety_modules.prompt.padding import IGNORE, join_images, pack, pad
from safety_modules.prompt.plain_text import PlainTextEncoder


class SafeProcessor:
    """A Hugging Face processor that puts the safety tokens before each image and keeps texts plain.

    Messages have the chat format of transformers: `{"role": "system" | "user" | "assistant", "content": text}` or
    `content` as a list of `{"type": "text", "text": ...}` and `{"type": "image", "image": path or PIL image}`.

    The base's own chat template is used, with the safety tokens written into it before its image token. A special
    token or role marker in a text keeps its characters, but never has the ids of the template's; see
    `PlainTextEncoder`.
    """

    def __init__(self, processor: ProcessorMixin, llm_tokens: int) -> None:
        """Args: processor: of the base, or of an exported folder; it is changed in place. llm_tokens: K, from 0."""
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.image_token: str = processor.image_token  # type: ignore[attr-defined]  # an attribute of each family's class
        if not isinstance(processor.chat_template, str) or self.image_token not in processor.chat_template:
            raise ProcessingError(
                f"the base's chat template does not write {self.image_token!r}; use a base whose processor has one"
            )
        self.safety_ids = self._add_safety_tokens(llm_tokens)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.image_token_id = self.tokenizer.convert_tokens_to_ids(self.image_token)
        self.special_ids = self._special_ids()
        self._image_length: int | None = None  # tokens of an image, once known to be the same for all
        self._length_of_size: dict[tuple[int, int], int] = {}  # (height, width) -> tokens, where they depend on it
        self.template = ChatTemplate(processor)
        self.plain_text = PlainTextEncoder(self.tokenizer, self.special_ids, self.template.literals())

    def _add_safety_tokens(self, count: int) -> list[int]:
        """Put `<safety_0>`... into the vocabulary and, before each image token, into the template; their ids."""
        names = [f"<safety_{i}>" for i in range(count)]
        template = cast(str, self.processor.chat_template)  # checked before
        if names and "".join(names) not in template:
            self.tokenizer.add_tokens(names, special_tokens=True)
            self.processor.chat_template = template.replace(self.image_token, "".join(names) + self.image_token)
        ids = self.tokenizer.convert_tokens_to_ids(names)
        if ids != list(range(ids[0], ids[0] + count) if names else []):
            raise ProcessingError(
                f"the tokenizer gave the safety tokens the ids {ids}, which are not {count} in a row; it has some of "
                "these names already: start from a base that was not extended before"
            )
        return ids

    def _special_ids(self) -> set[int]:
        """Ids that structure a prompt. Not every added token does: some bases add one for a run of line ends."""
        special, template = set(self.tokenizer.all_special_ids), cast(str, self.processor.chat_template)
        for token, added in self.tokenizer.added_tokens_decoder.items():
            if added.special or (added.content.strip() and added.content.strip() in template):
                special.add(token)
        return special

    @classmethod
    def from_pretrained(cls, folder: str | Path, llm_tokens: int) -> SafeProcessor:
        """Load the processor of a base or of an exported folder."""
        return cls(AutoProcessor.from_pretrained(folder, trust_remote_code=False), llm_tokens)

    def encode(
        self,
        messages: Sequence[dict],
        answer: str | None = None,
        hint: str = "",
        max_length: int | None = None,
        row: str = "exchange",
        load_images: bool = True,
        safety_tokens: bool = True,
        image_features: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """One exchange as tensors, unpadded.

        Args:
            messages: system, user and assistant turns, the last a user's.
            answer: the assistant's answer, supervised; None when it is to be generated.
            hint: a sentence for the system message, before the caller's own system text; "" for none.
            max_length: bound on T. A row that does not fit is an error; nothing is cut off.
            row: name of the exchange, for errors.
            load_images: False leaves the images unread, one image token for each: where the head reads stored features.
            safety_tokens: False leaves them out: the base's own prompt.
            image_features: in place of the images: features (N, P, V), tiles (n,) and, where the base has tiles,
                image_sizes (n, 2).

        Returns:
            input_ids (T,); labels (T,), -100 but for the answer and its end token; question_mask (T,), the number of
            the user's turn, from 1, on its texts and 0 elsewhere; tiles (n,), the images that the vision tower encodes
            for each of n images; and, where n > 0, pixel_values (n, ...) and image_sizes (n, 2) of the base's
            processor, or `image_features`.

        Raises:
            ProcessingError: naming `row`.
            ImageError: an image cannot be read.
        """
        conversation = read_messages(messages, hint, row)
        ids, turns = self._encode_prompt(conversation, safety_tokens)
        images, lengths = self._encode_images(conversation.values("image"), load_images, image_features)
        ids, turns = self._repeat_image_tokens(ids, turns, lengths, row)
        target = [] if answer is None else self._encode_answer(conversation.structure, answer)
        labels = [IGNORE] * len(ids) + target
        ids, turns = ids + target, turns + [0] * len(target)
        if max_length is not None and len(ids) > max_length:
            raise ProcessingError(
                f"{row}: {len(ids)} tokens, of which {sum(lengths)} stand for images, are more than max_length "
                f"{max_length}; raise data.max_length or shorten the row"
            )
        text = {"input_ids": ids, "labels": labels, "question_mask": turns}
        return {**{name: torch.tensor(values) for name, values in text.items()}, **images}

    def collate(self, rows: Sequence[dict[str, Tensor]], side: str = "right") -> dict[str, Any]:
        """Rows -> a batch.

        Args: side: of the padding, "right" for training and "left" for generation; or "packed", without padding.

        Returns:
            head_inputs; input_ids, labels and attention_mask (B, T), or, packed, input_ids, labels and position_ids
            (1, T) and segments, the rows' lengths; pixel_values, image_sizes and features (N, P, V) of all images of
            the batch, concatenated, where there are any; every other key of the rows, stacked.
        """
        batch = {"head_inputs": HeadInputs.of(rows), **(pack(rows) if side == "packed" else self._padded(rows, side))}
        for name, join in (("pixel_values", join_images), ("image_sizes", torch.cat), ("features", torch.cat)):
            if values := [row[name] for row in rows if name in row]:
                batch[name] = join(values)
        for name in rows[0].keys() - {*batch, "question_mask", "tiles"}:
            batch[name] = torch.stack([row[name] for row in rows])
        return batch

    def _padded(self, rows: Sequence[dict[str, Tensor]], side: str) -> dict[str, Tensor]:
        length = max(len(row["input_ids"]) for row in rows)
        rows = [{**row, "attention_mask": torch.ones_like(row["input_ids"])} for row in rows]
        fills = {"input_ids": self.tokenizer.pad_token_id, "labels": IGNORE, "attention_mask": 0}
        return {name: torch.stack([pad(row[name], length, fill, side) for row in rows]) for name, fill in fills.items()}

    def tiles(self, images: int, pixels: dict[str, Tensor]) -> list[int]:
        """Images (tiles) that the vision tower encodes for each image."""
        if "image_sizes" not in pixels:
            return [1] * images
        grid, side = self.processor.image_processor.image_grid_pinpoints, pixels["pixel_values"].shape[-1]
        return [image_size_to_num_patches(size, grid, side) for size in pixels["image_sizes"]]

    def pixels(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """pixel_values (B, ...) of loaded images, and image_sizes (B, 2) where the base has tiles: as in `collate`."""
        return _pixel_tensors(self.processor.image_processor(list(images), return_tensors="pt"))

    def encode_prefix(self, text: str) -> list[int]:
        """Ids of the beginning of an answer, as `encode` places one."""
        return self._encode_answer((("user", ("text",)),), text)[:-1]

    def decode(self, ids: Tensor) -> list[str]:
        """Texts of (B, T) generated ids, without special tokens."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the processor with its safety tokens and template, so that stock software places the tokens too."""
        self.processor.save_pretrained(folder)

    def _encode_prompt(self, conversation: Conversation, safety_tokens: bool) -> tuple[list[int], list[int]]:
        """Token ids of a prompt, and the user's turn that each belongs to, or 0."""
        pieces, texts = self.template.render(conversation.structure), conversation.values("text")
        prompt, spans = pieces[0], []
        for number, literal in zip(map(int, pieces[1::2]), pieces[2::2]):
            spans.append((len(prompt), len(prompt) + len(texts[number]), number))
            prompt += texts[number] + literal
        bos = self.tokenizer.bos_token  # added where the template writes none, as in transformers' apply_chat_template
        ids, owners = self.plain_text.encode(prompt, spans, bos=not (bos and pieces[0].startswith(bos)))
        turn_of = conversation.turns
        turns = [max((turn_of[number] for number in numbers), default=0) for numbers in owners]
        if safety_tokens:
            return ids, turns
        keep = [i for i, token in enumerate(ids) if token not in self.safety_ids]
        return [ids[i] for i in keep], [turns[i] for i in keep]

    def _encode_answer(self, structure: Structure, answer: str) -> list[int]:
        """Ids of the answer and its end token, encoded apart from the prompt."""
        lead = self.template.answer_lead(structure)
        lead = lead.lstrip() if self.plain_text.adds_space else lead
        ids, _ = self.plain_text.encode(lead + answer, [(len(lead), len(lead + answer), 0)])
        return [*ids, self.tokenizer.eos_token_id]

    def _encode_images(
        self, images: Sequence[ImageLike], load: bool, features: dict[str, Tensor] | None
    ) -> tuple[dict[str, Tensor], list[int]]:
        """Tensors of the images, and the number of tokens that stand for each."""
        if features is not None:
            return features, self._feature_lengths(features)
        pixels, lengths = self._pixels(images) if load else ({}, [1] * len(images))
        return {"tiles": torch.tensor(self.tiles(len(images), pixels), dtype=torch.long), **pixels}, lengths

    def _pixels(self, images: Sequence[ImageLike]) -> tuple[dict[str, Tensor], list[int]]:
        if not images:
            return {}, []
        loaded = [load_image(image) for image in images]
        if self._image_length is not None:
            return self.pixels(loaded), [self._image_length] * len(loaded)
        text = ".".join([self.image_token] * len(images))
        inputs = self.processor(text=text, images=loaded, return_tensors="pt")
        runs = groupby(inputs["input_ids"][0].tolist(), key=lambda token: token == self.image_token_id)
        lengths = [len(list(run)) for is_image, run in runs if is_image]
        if "image_sizes" not in inputs:  # without tiles, all images have as many tokens
            self._image_length = lengths[0]
        return _pixel_tensors(inputs), lengths

    def _feature_lengths(self, features: dict[str, Tensor]) -> list[int]:
        if "image_sizes" not in features:
            return [features["features"].shape[1]] * len(features["tiles"])
        sizes = [tuple(size) for size in features["image_sizes"].tolist()]
        for height, width in sizes:
            if (height, width) not in self._length_of_size:  # the base's own processor counts them, on a blank image
                self._length_of_size[height, width] = self._pixels([Image.new("RGB", (width, height))])[1][0]
        return [self._length_of_size[size] for size in sizes]

    def _repeat_image_tokens(
        self, ids: list[int], turns: list[int], lengths: list[int], row: str
    ) -> tuple[list[int], list[int]]:
        """Repeat each image token as often as its image has features."""
        places = ids.count(self.image_token_id)
        if places != len(lengths):
            raise ProcessingError(
                f"{row}: {len(lengths)} images but {places} image tokens from the template; check its messages"
            )
        remaining = iter(lengths)
        counts = [next(remaining) if token == self.image_token_id else 1 for token in ids]
        index = [i for i, count in enumerate(counts) for _ in range(count)]
        return [ids[i] for i in index], [turns[i] for i in index]


def _pixel_tensors(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: inputs[name] for name in ("pixel_values", "image_sizes") if name in inputs}
