"""Clip: how well a text fits an image: a description of unsafe images, or a sentence of an answer in the search."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from hashlib import blake2b
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel, CLIPProcessor

from safety_modules.eta.evaluators.loading import load_stock, readable
from safety_modules.eta.evaluators.protocols import COSINE, EtaError, Messages
from safety_modules.eta.exchange import check_pairs, images_of
from safety_modules.prompt.images import load_image
from safety_modules.sample import ImageSource

UNSAFE = (
    "The image shows unsafe content such as pornography, violence, politics, physical harm, illegal acts or a breach "
    "of privacy."
)


class Clip:
    """Plain cosines of CLIP's image and text embeddings, not times the logit scale.

    Source: ETA section 3.1 and its release, with `openai/clip-vit-large-patch14-336`. Differs: in batches, on any
    device; of several images the one that fits best counts; an image passes the vision tower once, not again for each
    sentence. The release's 0.16 was chosen by its authors for their own wording of the text; UNSAFE is ours: calibrate
    it on your data with `safety-modules thresholds`.

    `threshold` and `text` may be changed at any time, for the next call on.
    """

    unit = COSINE

    def __init__(
        self,
        model: CLIPModel,
        processor: CLIPProcessor,
        text: str = UNSAFE,
        threshold: float = 0.16,
        batch_size: int = 32,
        cached_images: int = 256,
    ) -> None:
        """Combine the parts of an evaluator.

        Args:
            text: what an unsafe image fits.
            threshold: a cosine; unsafe from this value up.
            batch_size: images or texts that pass the model at once.
            cached_images: how many images' embeddings are cached for later calls, the last used; 0 for none.
        """
        if batch_size < 1 or cached_images < 0:
            raise EtaError(f"batch_size {batch_size}, cached_images {cached_images}: give at least 1 and at least 0")
        self.model, self.processor = model.eval(), processor
        self.text, self.threshold = text, COSINE.check("threshold", threshold)
        self.batch_size, self.cached_images = batch_size, cached_images
        self._embeddings: dict[Hashable, Tensor] = {}  # the last used at the end; replaced, not changed
        self._fixed: dict[str, Tensor] = {}  # the embedding of `text`

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: str = "cpu",
        dtype: torch.dtype | str = "auto",
        text: str = UNSAFE,
        threshold: float = 0.16,
        batch_size: int = 32,
        cached_images: int = 256,
    ) -> Clip:
        """Load a CLIP model and its processor from a folder or by a hub name; see `__init__` for the rest.

        Raises:
            EtaError: it cannot be loaded, or the threshold is not a cosine.
        """
        model = load_stock(CLIPModel, folder, device, dtype)
        with readable(folder):
            processor = CLIPProcessor.from_pretrained(folder)
        return cls(model, processor, text, threshold, batch_size, cached_images)

    def __call__(self, exchanges: Sequence[Messages]) -> list[float | None]:
        """Cosine of `text` and the image that fits it best, of each exchange; None without an image.

        Raises:
            ImageError: an image cannot be read.
            ProcessingError: an exchange breaks the format of messages.
        """
        embeddings = self._images(exchanges)
        if self.text not in self._fixed:
            self._fixed = {self.text: self._texts([self.text])[0]}
        text = self._fixed[self.text]
        return [_best(rows, text) if len(rows) else None for rows in embeddings]

    def match(self, exchanges: Sequence[Messages], sentences: Sequence[str]) -> list[float]:
        """Cosine of each sentence and the image of its exchange that fits it best; 0.0 without an image.

        A sentence longer than the text tower reads is cut at its end.

        Raises:
            EtaError: not one sentence for each exchange.
            ImageError, ProcessingError: as in `__call__`.
        """
        check_pairs(exchanges, sentences, "sentences")
        embeddings = self._images(exchanges)
        asked = [i for i, rows in enumerate(embeddings) if len(rows)]
        texts = dict(zip(asked, self._texts([sentences[i] for i in asked])))
        return [_best(rows, texts[i]) if i in texts else 0.0 for i, rows in enumerate(embeddings)]

    def _images(self, exchanges: Sequence[Messages]) -> list[list[Tensor]]:
        """Embeddings of each exchange's images, (E,) each; only images that are not cached pass the vision tower."""
        rows = [images_of(exchange) for exchange in exchanges]
        sources = {id(source): source for row in rows for source in row}  # the search gives the same object N times
        keys = {place: _key(source) for place, source in sources.items()}
        cached = self._embeddings
        new = {keys[place]: source for place, source in sources.items() if keys[place] not in cached}
        used = {key: cached[key] for key in keys.values() if key in cached}
        used |= zip(new, self._embed(list(new.values())))
        rest = {key: value for key, value in cached.items() if key not in used}
        self._embeddings = dict(list({**rest, **used}.items())[-self.cached_images :]) if self.cached_images else {}
        return [[used[keys[id(source)]] for source in row] for row in rows]

    @torch.inference_mode()
    def _embed(self, sources: list) -> list[Tensor]:
        """Unit embeddings of images, (E,) each, on the CPU."""
        embeddings: list[Tensor] = []
        for start in range(0, len(sources), self.batch_size):
            images = [load_image(source) for source in sources[start : start + self.batch_size]]
            pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
            output = self.model.get_image_features(pixel_values=pixels.to(self.model.device, self.model.dtype))
            embeddings += functional.normalize(output.pooler_output.float(), dim=-1).cpu()  # (B, E)
        return embeddings

    @torch.inference_mode()
    def _texts(self, texts: list[str]) -> list[Tensor]:
        """Unit embeddings of texts, (E,) each, on the CPU."""
        length = self.model.config.text_config.max_position_embeddings
        embeddings: list[Tensor] = []
        for start in range(0, len(texts), self.batch_size):
            part = texts[start : start + self.batch_size]
            plain = {"split_special_tokens": True, "return_tensors": "pt"}  # a sentence may not spell an end of text
            rows = self.processor.tokenizer(part, padding=True, truncation=True, max_length=length, **plain)
            rows = rows.to(self.model.device)
            output = self.model.get_text_features(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"])
            embeddings += functional.normalize(output.pooler_output.float(), dim=-1).cpu()  # (B, E)
        return embeddings


def _best(images: list[Tensor], text: Tensor) -> float:
    """The highest cosine; rounding may not lead out of the unit."""
    return (torch.stack(images) @ text).max().clamp(-1.0, 1.0).item()


def _key(source: str | Path | ImageSource | Image.Image) -> Hashable:
    """What identifies an image: a file's path, time and size, or the bytes of the upright image."""
    if isinstance(source, (str, Path)) and os.path.isfile(source):
        about = os.stat(source)
        return os.path.abspath(source), about.st_ino, about.st_mtime_ns, about.st_size
    image = load_image(source)  # a missing file is an error
    return blake2b(image.tobytes()).digest(), image.size
