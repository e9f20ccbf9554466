"""SafeProcessor: an exchange -> input_ids, labels, pixel_values. The only place that knows placeholders and templates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, ProcessorMixin
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from safety_modules.prompt.head_inputs import HeadInputs
from safety_modules.prompt.images import load_image
from safety_modules.prompt.messages import ProcessingError, read_messages
from safety_modules.prompt.padding import IGNORE, join_images, pack, pad
from safety_modules.prompt.plain_text import PlainTextEncoder

KEPT = 256  # rendered templates; more structures than that are rendered each time
SLOT = re.compile(
    "\ue000(\\d+)\ue001"
)  # stands for a text while the template is rendered; texts never enter the template


def safety_token_names(count: int) -> list[str]:
    """Placeholders of the language model's safety tokens, in order."""
    return [f"<safety_{i}>" for i in range(count)]


class SafeProcessor:
    """A Hugging Face processor that puts the safety placeholders before each image and keeps texts plain.

    Messages have the chat-template format of transformers: `{"role": "system" | "user" | "assistant", "content": text}` or
    `content` as a list of `{"type": "text", "text": ...}` and `{"type": "image", "image": path or PIL image}`.

    The base's own chat template is used, with the placeholders written into it before its image placeholder. It is
    rendered with a mark in each text's place, so that no text takes part in the template. A special token or role marker
    that a text holds keeps its characters, but is given other ids than the template's; see `PlainTextEncoder`.
    """

    def __init__(self, processor: ProcessorMixin, llm_tokens: int) -> None:
        """Args: processor: of the base, or of an exported folder; it is changed in place. llm_tokens: K, from 0."""
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.image_token = processor.image_token
        if not processor.chat_template or self.image_token not in processor.chat_template:
            raise ProcessingError(
                f"the base's chat template does not write {self.image_token!r}; use a base whose processor has one"
            )
        names = safety_token_names(llm_tokens)
        if names and "".join(names) not in processor.chat_template:
            self.tokenizer.add_tokens(names, special_tokens=True)
            processor.chat_template = processor.chat_template.replace(
                self.image_token, "".join(names) + self.image_token
            )
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.image_token_id = self.tokenizer.convert_tokens_to_ids(self.image_token)
        self.safety_ids = self.tokenizer.convert_tokens_to_ids(names)
        if self.safety_ids != list(range(self.safety_ids[0], self.safety_ids[0] + llm_tokens) if names else []):
            raise ProcessingError(
                f"the tokenizer gave the safety tokens the ids {self.safety_ids}, which are not {llm_tokens} in a row; the "
                "base's tokenizer has some of these names already: start from a base that was not extended before"
            )
        self.special_ids = set(self.tokenizer.all_special_ids)
        for token, added in self.tokenizer.added_tokens_decoder.items():
            name = (
                added.content.strip()
            )  # not every added token is structure: some bases have one for a run of line ends
            if added.special or (name and name in processor.chat_template):
                self.special_ids.add(token)
        self._length: int | None = None  # tokens of each image, once known to be always the same
        self._by_size: dict[tuple[int, int], int] = {}  # height and width -> tokens, where they depend on them
        self._rendered: dict[tuple, tuple[str, ...]] = {}
        self.plain = PlainTextEncoder(self.tokenizer, self.special_ids, self._literals())

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
        tokens: bool = True,
        stored: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """One exchange as tensors, unpadded.

        Args:
            messages: system, user and assistant turns, the last of a user.
            answer: what the assistant is to say; None when it is to be generated.
            hint: a sentence for the system part, before the messages' own system text; "" for none.
            max_length: bound on T. A row that does not fit is an error; nothing is cut off.
            row: name of the exchange, for errors.
            load_images: False leaves the images unread, one placeholder for each: for a head that reads stored features.
            tokens: False leaves the safety tokens out: the base's own prompt.
            stored: what the vision tower made of the images, in place of them: features (N, P, V), tiles (n,) and, where the
                base has tiles, image_sizes (n, 2).

        Returns:
            input_ids (T,); labels (T,), -100 but for the answer and its end token; question_mask (T,), the number of the
            user's turn, from 1, on its texts and 0 elsewhere; tiles (n,), the images that the vision tower sees for each of n
            images; and, where n > 0, pixel_values (n, ...) and image_sizes (n, 2) as the base's processor makes them.

        Raises:
            ProcessingError: naming `row`.
            ImageError: an image cannot be read.
        """
        structure, texts, asked, images = read_messages(messages, hint, row)
        pieces = self._render(structure, True)
        bos = (
            self.tokenizer.bos_token
        )  # one is added where the template writes none, as in transformers' apply_chat_template
        ids, held = self.plain.encode(*self._fill(pieces, texts), bos=not (bos and pieces[0].startswith(bos)))
        mask = [max((asked.get(number, 0) for number in numbers), default=0) for numbers in held]
        if not tokens:
            kept = [i for i, token in enumerate(ids) if token not in self.safety_ids]
            ids, mask = [ids[i] for i in kept], [mask[i] for i in kept]
        if stored is not None:
            pixels, lengths = stored, self._lengths(stored)
        else:
            pixels, lengths = self._pixels(images) if load_images else ({}, [1] * len(images))
        ids, mask = self._expand(ids, mask, lengths, row)
        labels = [IGNORE] * len(ids)
        if answer is not None:
            target = self._answer(structure, answer)
            ids, mask, labels = ids + target, mask + [0] * len(target), labels + target
        if max_length is not None and len(ids) > max_length:
            raise ProcessingError(
                f"{row}: {len(ids)} tokens, of which {sum(lengths)} stand for images, are more than max_length "
                f"{max_length}; raise data.max_length or shorten the row"
            )
        return {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor(labels),
            "question_mask": torch.tensor(mask),
            **({} if stored else {"tiles": torch.tensor(self.tiles(len(images), pixels), dtype=torch.long)}),
            **pixels,
        }

    def collate(self, rows: Sequence[dict[str, Tensor]], side: str = "right") -> dict[str, Any]:
        """Rows -> a batch. `side` of the padding is "right" for training and "left" for generation; "packed" is without any.

        Returns:
            head_inputs, what the head reads; input_ids, labels, attention_mask: (B, T), or, packed, input_ids,
            labels and position_ids (1, T) and segments, the rows' lengths; pixel_values and image_sizes of all images of the
            batch, one after another, where there are any; every other key of the rows, stacked.
        """
        batch = {"head_inputs": HeadInputs.of(rows), **(pack(rows) if side == "packed" else self._padded(rows, side))}
        with_pixels = [row for row in rows if "pixel_values" in row]
        if with_pixels:
            batch["pixel_values"] = join_images([row["pixel_values"] for row in with_pixels])
        if "features" in rows[0]:
            batch["features"] = torch.cat([row["features"] for row in rows])  # (N, P, V)
        sizes = [row["image_sizes"] for row in rows if "image_sizes" in row]
        if sizes:
            batch["image_sizes"] = torch.cat(sizes)
        for name in rows[0].keys() - {*batch, "question_mask", "tiles", "pixel_values", "image_sizes"}:
            batch[name] = torch.stack([row[name] for row in rows])
        return batch

    def _padded(self, rows: Sequence[dict[str, Tensor]], side: str) -> dict[str, Tensor]:
        length = max(len(row["input_ids"]) for row in rows)
        rows = [{**row, "attention_mask": torch.ones_like(row["input_ids"])} for row in rows]
        fills = {"input_ids": self.tokenizer.pad_token_id, "labels": IGNORE, "attention_mask": 0}
        return {name: torch.stack([pad(row[name], length, fill, side) for row in rows]) for name, fill in fills.items()}

    def tiles(self, images: int, pixels: dict[str, Tensor]) -> list[int]:
        """Images that the vision tower sees for each image."""
        if "image_sizes" not in pixels:
            return [1] * images
        grid, side = self.processor.image_processor.image_grid_pinpoints, pixels["pixel_values"].shape[-1]
        return [image_size_to_num_patches(size, grid, side) for size in pixels["image_sizes"]]

    def pixels(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """pixel_values (B, ...) of loaded images, and image_sizes (B, 2) where the base has tiles: as in `collate`."""
        made = self.processor.image_processor(list(images), return_tensors="pt")
        return {name: made[name] for name in ("pixel_values", "image_sizes") if name in made}

    def begin(self, text: str) -> list[int]:
        """Ids of the beginning of an answer, as `encode` places one."""
        return self._answer((("user", ("text",)),), text)[:-1]

    def decode(self, ids: Tensor) -> list[str]:
        """Texts of (B, T) generated ids, without special tokens."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the processor, placeholders and template included: stock software then places them too."""
        self.processor.save_pretrained(folder)

    def _render(self, structure: tuple, generate: bool) -> tuple[str, ...]:
        """The template's own text between the slots: segment, slot number, segment, ... (kept by structure)."""
        if (structure, generate) in self._rendered:
            return self._rendered[structure, generate]
        messages, slot = [], 0
        for role, parts in structure:
            content = []
            for part in parts:
                content.append(
                    {"type": "image"} if part == "image" else {"type": "text", "text": f"\ue000{slot}\ue001"}
                )
                slot += part == "text"
            messages.append({"role": role, "content": content})
        try:
            text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        except TemplateError as error:
            raise ProcessingError(
                f"the base's chat template refuses turns {[role for role, _ in structure]}: {error}"
            ) from error
        pieces = tuple(SLOT.split(text))
        if sorted(map(int, pieces[1::2])) != list(range(slot)):
            raise ProcessingError(
                "the base's chat template drops or repeats a text; use a template that writes each once"
            )
        if len(self._rendered) < KEPT:
            self._rendered[structure, generate] = pieces
        return pieces

    def _literals(self) -> list[str]:
        """What the template writes between texts, in a conversation with and without a system part."""
        turns = [(role, ("text",)) for role in ("system", "user", "assistant", "user")]
        literals = []
        for structure in (turns, turns[1:], turns[1:2]):
            with suppress(ProcessingError):  # a template may know no system part, or one turn only
                literals += self._render(tuple(structure), True)[::2]
        return literals

    @staticmethod
    def _fill(pieces: tuple[str, ...], texts: list[str]) -> tuple[str, list[tuple[int, int, int]]]:
        """Put texts into a rendered template -> (prompt, [(start, end, number of the text)])."""
        prompt, spans = "", []
        for i, piece in enumerate(pieces):
            if i % 2:
                spans.append((len(prompt), len(prompt) + len(texts[int(piece)]), int(piece)))
                piece = texts[int(piece)]
            prompt += piece
        return prompt, spans

    def _answer(self, structure: tuple, answer: str) -> list[int]:
        """Ids of the answer and its end token, encoded apart from the prompt."""
        prompt = self._render(structure, True)
        number = sum(parts.count("text") for _, parts in structure)
        whole = self._render((*structure, ("assistant", ("text",))), False)
        lead = "".join(whole[:-2])[len("".join(prompt)) :]  # what the template writes between its prompt and the answer
        if int(whole[-2]) != number or not "".join(whole).startswith("".join(prompt)):
            raise ProcessingError("the base's chat template does not continue its generation prompt with the answer")
        lead = lead.lstrip() if self.plain.adds_space else lead
        ids, _ = self.plain.encode(lead + answer, [(len(lead), len(lead + answer), number)])
        return [*ids, self.tokenizer.eos_token_id]

    def _pixels(self, images: list[str | Path | Image.Image]) -> tuple[dict[str, Tensor], list[int]]:
        """Pixel tensors of the images and the number of tokens that stand for each."""
        if not images:
            return {}, []
        loaded = [load_image(image) for image in images]
        if self._length is not None:
            return self.pixels(loaded), [self._length] * len(loaded)
        made = self.processor(text=".".join([self.image_token] * len(images)), images=loaded, return_tensors="pt")
        runs = groupby(made["input_ids"][0].tolist(), key=lambda token: token == self.image_token_id)
        lengths = [len(list(run)) for is_image, run in runs if is_image]
        if "image_sizes" not in made:  # without tiles, all images have as many tokens
            self._length = lengths[0]
        return {name: made[name] for name in ("pixel_values", "image_sizes") if name in made}, lengths

    def _lengths(self, stored: dict[str, Tensor]) -> list[int]:
        """The number of tokens that stand for each image whose features are stored."""
        if "image_sizes" not in stored:
            return [stored["features"].shape[1]] * len(stored["tiles"])
        for size in map(tuple, stored["image_sizes"].tolist()):
            if size not in self._by_size:  # the base's own processor counts them, on a blank image
                self._by_size[size] = self._pixels([Image.new("RGB", size[::-1])])[1][0]
        return [self._by_size[tuple(size)] for size in stored["image_sizes"].tolist()]

    def _expand(self, ids: list[int], mask: list[int], lengths: list[int], row: str) -> tuple[list[int], list[int]]:
        """Repeat each image placeholder as often as its image has features."""
        places = ids.count(self.image_token_id)
        if places != len(lengths):
            raise ProcessingError(
                f"{row}: {len(lengths)} images but {places} placeholders in the template; check its messages"
            )
        left, out_ids, out_mask = iter(lengths), [], []
        for token, turn in zip(ids, mask):
            count = next(left) if token == self.image_token_id else 1
            out_ids += [token] * count
            out_mask += [turn] * count
        return out_ids, out_mask
