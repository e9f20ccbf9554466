"""FeatureStore: what the frozen vision tower computes of each image, once for all runs and stages."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from rich.filesize import decimal
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from safety_modules.errors import UserError
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.prompt.image_batches import ImageBatches
from safety_modules.sample import DataError, ImageSource
from train.features.content_hashes import ContentHashes
from train.features.process_group import RunProcesses
from train.features.shards import Entry, Shards

logger = logging.getLogger(__name__)

FORMAT = 1  # raised where this code computes other features of the same image, tower and settings
HASHES = "images.json"
BATCH = 32  # images in one pass of the tower
SHARD_BYTES, SHARD_IMAGES = 2**27, 2048  # whichever is reached first; a killed run loses no more in each process
HEADER = 400  # bytes in a shard for each image besides its features, at most
READERS = 8  # processes that read images for one tower, at most
UNIMPORTANT = ("_name_or_path", "architectures", "dtype", "transformers_version")  # of a config, for a tower's output


class FeatureStore:
    """Features of images, by content: an image that was moved, renamed or copied keeps those that it had.

    In a folder they are `Shards`, separate for each tower, read on access; without one they are held in memory. A store
    can be pickled, for the workers of a loader; the model is not part of it.
    """

    def __init__(self, keys: dict[ImageSource, str], empty: Tensor, shards: Shards | None) -> None:
        """See `compute`. Args: keys: SHA-256 of each image. empty: (0, P, V). shards: None to hold them in memory."""
        self.keys, self.empty, self.shards = keys, empty, shards
        self.entries: dict[str, Entry] | Shards = {} if shards is None else shards

    @classmethod
    def compute(
        cls, model: SafeVLM, images: Iterable[ImageSource], folder: str | Path | None = None, workers: int | None = None
    ) -> FeatureStore:
        """The store of some images; each process of the run computes a part of those that are not in the folder.

        Every process of the run must call it, with the same images, and then has all of them.

        Args:
            model: on the device where its tower is to run, with frozen weights.
            images: of any number of samples; they may repeat.
            folder: where features are stored for further runs, in bfloat16; None to hold them in memory.
            workers: processes beside this one that read images; None for as many as there are cores, at most READERS.

        Raises:
            DataError: an image cannot be read.
            UserError: the features do not fit on the disk, or another process has ended. Whole shards stay.
        """
        distinct = list(dict.fromkeys(images))
        root = None if folder is None else Path(folder).expanduser()
        shards = None if root is None else Shards(root / tower_digest(model))
        hashes = ContentHashes(root and root / HASHES)
        with RunProcesses() as processes:
            own = hashes.of(processes.share(distinct))
            # the first process lists the shards before any computes, so that all agree on what is missing
            names = shards.complete() if shards is not None and processes.rank == 0 else []
            gathered = processes.gather((own, hashes.new, names))
            keys = dict.fromkeys(distinct, "")
            for rank, (theirs, _, _) in enumerate(gathered):
                keys |= zip(processes.share(distinct, rank), theirs)
            store = cls(keys, model.vision_features(None).to("cpu", torch.bfloat16), shards)
            contents = {key: image for image, key in keys.items()}
            if shards is not None:
                if processes.rank == 0:
                    hashes.save(new for _, new, _ in gathered)
                shards.add(gathered[0][2], contents)
            missing = {key: image for key, image in contents.items() if key not in store.entries}
            logger.info("features of %d images, of which %d are not stored yet", len(contents), len(missing))
            if missing:
                store._compute(model, processes, missing, workers)
        return store

    def of(self, images: Sequence[ImageSource]) -> dict[str, Tensor]:
        """What a row has in place of pixel_values.

        Args:
            images: of one sample, n, from 0.

        Returns:
            features (N, P, V), bfloat16, concatenated, not to be written to; tiles (n,), how many of the N each image
            has, 1 where the base has no tiles. For LLaVA-NeXT image_sizes (n, 2), height and width, where n > 0.

        Raises:
            DataError: an image has no features here, or they are damaged.
        """
        return self.read(self.find(images))

    def find(self, images: Sequence[ImageSource]) -> tuple[str, ...]:
        """Keys of images, for `read`."""
        try:
            return tuple(self.keys[image] for image in images)
        except KeyError as error:
            raise DataError(f"{error.args[0]}: has no features in this store; compute it with this image") from error

    def read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """As `of`, by the keys that `find` returned."""
        entries = [self.entries[key] for key in keys]
        features = [tensor for tensor, _ in entries]
        tiles = torch.tensor([len(tensor) for tensor in features], dtype=torch.long)
        row = {"features": features[0] if len(features) == 1 else torch.cat([self.empty, *features]), "tiles": tiles}
        sizes = [size for _, size in entries if size is not None]
        return {**row, "image_sizes": torch.stack(sizes)} if sizes else row

    def _compute(
        self, model: SafeVLM, processes: RunProcesses, missing: dict[str, ImageSource], workers: int | None
    ) -> None:
        """Compute this process's part of what is missing, and add the others'."""
        own = {key: missing[key] for key in processes.share(list(missing))}
        space = ""
        if self.shards is not None:
            space = self._check_space(len(missing), sum(processes.gather(self._bytes(model, list(own.values())))))
        results: list[str | dict[str, Entry]] = []  # names of shards, or what would be in them
        for part in _parts(_entries(model, own, workers, processes.rank == 0)):
            try:
                results.append(part if self.shards is None else self.shards.write(part))
            except OSError as error:
                raise UserError(f"{self.shards.folder}: cannot be written to ({error.strerror}); {space}") from error
        for result in processes.exchange(results):
            if self.shards is None:
                self.entries |= result
            else:
                self.shards.add([result], missing)

    def _bytes(self, model: SafeVLM, images: Sequence[ImageSource]) -> int:
        """Bytes of images in shards, at most: EXIF may turn an image, so the larger of both orientations counts."""
        _, patches, width = self.empty.shape
        tiles = model.backbone.tiles(model.config, len(images), None)
        if len(tiles) < len(images):  # they depend on the images' sizes
            sizes = torch.tensor([_size(image) for image in images])  # (n, 2)
            turned = (model.backbone.tiles(model.config, len(images), shape) for shape in (sizes, sizes.flip(1)))
            tiles = list(map(max, *turned))
        return sum(tiles) * patches * width * self.empty.element_size() + len(images) * HEADER

    def _check_space(self, count: int, need: int) -> str:
        """How much the missing images need and how much is free, in words.

        Raises:
            UserError: less is free.
        """
        folder = self.shards.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be created ({error.strerror}); name another folder as data.features"
            ) from error
        space = (
            f"the features of {count} images need {decimal(need)} there and {decimal(free)} were free at the start; "
            "make room, or name a folder on another disk as data.features: what is stored is not computed again"
        )
        if need > free:
            raise UserError(f"{folder}: {space}")
        return space


def tower_digest(model: SafeVLM) -> str:
    """Of all that an image's features depend on: the tower's weights, which of its layers, the preprocessing."""
    images = model.processor.processor.image_processor
    config = model.config.to_dict()
    settings = {
        name: value for name, value in config.items() if name.startswith(("model_type", "vision_feature", "image_grid"))
    }
    tower = {name: value for name, value in config["vision_config"].items() if name not in UNIMPORTANT}
    described = [FORMAT, settings, tower, type(images).__name__, images.to_dict()]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name, value in sorted(model.base.state_dict().items()):
        if "vision_tower" in name:
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _entries(
    model: SafeVLM, images: dict[str, ImageSource], workers: int | None, progress: bool
) -> Iterator[tuple[str, Entry]]:
    """Key, and features with the image's size, of one image after another."""
    if workers is None:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # on this machine, as torchrun says
        workers = min(READERS, max(1, (os.cpu_count() or 1) // processes)) if len(images) > BATCH else 0
    batches = ImageBatches(model.processor, list(images.values()), BATCH)
    loader = DataLoader(batches, batch_size=None, num_workers=workers)
    keys = iter(images)
    for errors, pixels in tqdm(loader, desc=f"features, batches of {BATCH}", leave=False, disable=not progress):
        for error in filter(None, errors):
            raise DataError(error)
        sizes = pixels.get("image_sizes")
        features = model.vision_features(pixels["pixel_values"].to(model.device), sizes)  # (N, P, V)
        tiles = model.backbone.tiles(model.config, len(errors), sizes)
        for place, part in enumerate(features.to("cpu", torch.bfloat16).split(tiles)):
            yield next(keys), (part, None if sizes is None else sizes[place].long())


def _parts(entries: Iterable[tuple[str, Entry]]) -> Iterator[dict[str, Entry]]:
    """Entries by key, as many as one shard holds."""
    part: dict[str, Entry] = {}
    size = 0
    for key, entry in entries:
        part[key] = entry
        size += entry[0].nbytes
        if size >= SHARD_BYTES or len(part) == SHARD_IMAGES:
            yield part
            part, size = {}, 0
    if part:
        yield part


def _size(image: ImageSource) -> tuple[int, int]:
    """Height and width by the file's header; (1, 1) of a broken one, which is named when it is read."""
    try:
        with Image.open(image if isinstance(image, Path) else io.BytesIO(image.read_bytes())) as opened:
            return opened.height, opened.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 1, 1
