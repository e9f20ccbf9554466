"""FeatureStore: what the frozen vision tower makes of each image, computed once for all runs and stages."""

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
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from safety_modules.errors import UserError
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.prompt.image_batches import ImageBatches
from safety_modules.sample import DataError, ImageSource
from train.features.content_hashes import ContentHashes
from train.features.process_group import ProcessGroup
from train.features.shards import Entry, Shards

logger = logging.getLogger(__name__)

FORMAT = 1  # raised where this code makes other features of the same image, tower and settings
HASHES = "images.json"
BATCH = 32  # images in one pass of the tower
SHARD_BYTES, SHARD_PICTURES = 2**27, 2048  # whichever is reached first; a killed run loses no more in each process
HEADER = 400  # bytes that a shard has for each image beside its features, at most
READERS = 8  # processes that read images for one tower, at most
UNIMPORTANT = (
    "_name_or_path",
    "architectures",
    "dtype",
    "transformers_version",
)  # of a config, for what a tower computes


class FeatureStore:
    """Features of images, by content: an image that was moved, renamed or copied has the ones that it had.

    In a folder they lie in shards (see `Shards`), apart for each tower, and are read when they are asked for; without one they
    are held in memory. A store can be pickled, and goes to the workers of a loader; the model does not go with it.
    """

    def __init__(self, keys: dict[ImageSource, str], empty: Tensor, shards: Shards | None) -> None:
        """Made by `compute`. Args: keys: SHA-256 of each image. empty: (0, P, V). shards: None to hold them in memory."""
        self.keys, self.empty, self.shards = keys, empty, shards
        self.entries: dict[str, Entry] | Shards = {} if shards is None else shards

    @classmethod
    def compute(
        cls, model: SafeVLM, images: Iterable[ImageSource], folder: str | Path | None = None, workers: int | None = None
    ) -> FeatureStore:
        """The store of some images; of those that are not in the folder, each process of the run computes its share.

        Every process of the run must call it, with the same images, and then has all of them.

        Args:
            model: on the device where its tower is to run, with frozen weights.
            images: of any number of samples, some of them more than once.
            folder: where features are kept for further runs, in bfloat16; None to hold them in memory.
            workers: processes beside this one that read images; None for as many as there are cores, at most READERS.

        Raises:
            DataError: an image cannot be read.
            UserError: the features do not fit on the disk, or another process has ended. Whole shards are kept then.
        """
        images = list(dict.fromkeys(images))
        folder = None if folder is None else Path(folder).expanduser()
        shards = None if folder is None else Shards(folder / tower_digest(model))
        hashes = ContentHashes(folder and folder / HASHES)
        with ProcessGroup() as processes:
            mine = hashes.of(processes.share(images))
            # what is stored is what the first process sees before any computes, so that all agree on what is missing
            sound = shards.sound() if shards is not None and processes.rank == 0 else []
            found = processes.gather((mine, hashes.new, sound))
            keys = dict.fromkeys(images, "")
            for rank, (theirs, _, _) in enumerate(found):
                keys |= zip(processes.share(images, rank), theirs)
            store = cls(keys, model.vision_features(None).to("cpu", torch.bfloat16), shards)
            contents = {key: image for image, key in keys.items()}
            if shards is not None:
                if processes.rank == 0:
                    hashes.keep(new for _, new, _ in found)
                shards.find(found[0][2], contents)
            missing = {key: image for key, image in contents.items() if key not in store.entries}
            logger.info("features of %d images, of which %d are not stored yet", len(contents), len(missing))
            if missing:
                store._fill(model, processes, missing, workers)
        return store

    def of(self, images: Sequence[ImageSource]) -> dict[str, Tensor]:
        """What stands for pixel_values in a row.

        Args: images: of one sample, n, from 0.

        Returns:
            features (N, P, V), bfloat16, one after another, not to be written to; tiles (n,), the parts of N that each image
            has, 1 where the base has none. For LLaVA-NeXT image_sizes (n, 2), height and width, where n > 0.

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
        """As `of`, by keys that `find` gave."""
        entries = [self.entries[key] for key in keys]
        parts = [features for features, _ in entries]
        tiles = torch.tensor([len(part) for part in parts], dtype=torch.long)
        row = {"features": parts[0] if len(parts) == 1 else torch.cat([self.empty, *parts]), "tiles": tiles}
        sizes = [size for _, size in entries if size is not None]
        return {**row, "image_sizes": torch.stack(sizes)} if sizes else row

    def _fill(
        self, model: SafeVLM, processes: ProcessGroup, missing: dict[str, ImageSource], workers: int | None
    ) -> None:
        """Compute this process's share of what is missing, and take up the others'."""
        mine = {key: missing[key] for key in processes.share(list(missing))}
        room = ""
        if self.shards is not None:
            room = self._room(len(missing), sum(processes.gather(self._bytes(model, list(mine.values())))))
        made: list[str | dict[str, Entry]] = []
        for part in _parts(_entries(model, mine, workers, processes.rank == 0)):
            try:
                made.append(part if self.shards is None else self.shards.write(part))
            except OSError as error:
                raise UserError(f"{self.shards.folder}: cannot be written to ({error.strerror}); {room}") from error
        for part in processes.exchange(made):
            if self.shards is None:
                self.entries |= part
            else:
                self.shards.find([part], missing)

    def _bytes(self, model: SafeVLM, images: Sequence[ImageSource]) -> int:
        """What images take in shards, at most: an image that its EXIF turns is counted as the larger of both ways."""
        _, patches, width = self.empty.shape
        tiles = model.backbone.tiles(model.config, len(images), None)
        if len(tiles) < len(images):  # they depend on the images' sizes
            sizes = torch.tensor([_size(image) for image in images])  # (n, 2)
            ways = (model.backbone.tiles(model.config, len(images), way) for way in (sizes, sizes.flip(1)))
            tiles = list(map(max, *ways))
        return sum(tiles) * patches * width * self.empty.element_size() + len(images) * HEADER

    def _room(self, count: int, need: int) -> str:
        """What the missing images need and what there is, in words.

        Raises:
            UserError: there is less.
        """
        folder = self.shards.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be made ({error.strerror}); name another folder as data.features"
            ) from error
        room = (
            f"the features of {count} images need {_shown(need)} there and {_shown(free)} were free at the start; make room, "
            "or name a folder on another disk as data.features: what is stored is not computed again"
        )
        if need > free:
            raise UserError(f"{folder}: {room}")
        return room


def tower_digest(model: SafeVLM) -> str:
    """Of everything that an image's features depend on: the tower's weights, which of its layers, and how pixels are made."""
    images = model.processor.processor.image_processor
    config = model.config.to_dict()
    settings = {
        name: value for name, value in config.items() if name.startswith(("model_type", "vision_feature", "image_grid"))
    }
    tower = {name: value for name, value in config["vision_config"].items() if name not in UNIMPORTANT}
    known = [FORMAT, settings, tower, type(images).__name__, images.to_dict()]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())
    for name, value in sorted(model.base.state_dict().items()):
        if "vision_tower" in name:
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _entries(
    model: SafeVLM, images: dict[str, ImageSource], workers: int | None, shown: bool
) -> Iterator[tuple[str, Entry]]:
    """Key, and features with the image's size, of one image after another."""
    if workers is None:
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # processes on this machine, as torchrun says
        workers = min(READERS, max(1, (os.cpu_count() or 1) // here)) if len(images) > BATCH else 0
    loader = DataLoader(
        ImageBatches(model.processor, list(images.values()), BATCH), batch_size=None, num_workers=workers
    )
    keys = iter(images)
    for errors, pixels in tqdm(loader, desc=f"features, batches of {BATCH}", leave=False, disable=not shown):
        for error in filter(None, errors):
            raise DataError(error)
        sizes = pixels.get("image_sizes")
        features = model.vision_features(pixels["pixel_values"].to(model.device), sizes).to(
            "cpu", torch.bfloat16
        )  # (N, P, V)
        tiles = model.backbone.tiles(model.config, len(errors), sizes)
        for place, part in enumerate(features.split(tiles)):
            yield next(keys), (part, None if sizes is None else sizes[place].long())


def _parts(entries: Iterable[tuple[str, Entry]]) -> Iterator[dict[str, Entry]]:
    """Entries by key, as many as one shard holds."""
    part: dict[str, Entry] = {}
    held = 0
    for key, entry in entries:
        part[key] = entry
        held += entry[0].nbytes
        if held >= SHARD_BYTES or len(part) == SHARD_PICTURES:
            yield part
            part, held = {}, 0
    if part:
        yield part


def _size(image: ImageSource) -> tuple[int, int]:
    """Height and width as the file's head has them; of a broken one any, since the tower's reader will name it."""
    try:
        with Image.open(image if isinstance(image, Path) else io.BytesIO(image.read_bytes())) as opened:
            return opened.height, opened.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 1, 1


def _shown(count: float) -> str:
    """Bytes for a reader."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:,.1f} {unit}"
