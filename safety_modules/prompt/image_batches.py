"""ImageBatches: images as batches of pixel tensors for the vision tower."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils.data import Dataset

from safety_modules.prompt.images import ImageError, load_image
from safety_modules.prompt.processor import SafeProcessor
from safety_modules.sample import ImageSource


class ImageBatches(Dataset):
    """Batches of images, read on access: in a DataLoader's workers, while the vision tower runs."""

    def __init__(self, processor: SafeProcessor, images: Sequence[ImageSource], batch_size: int) -> None:
        self.processor, self.images, self.batch_size = processor, images, batch_size

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[list[str], dict[str, Tensor]]:
        """The error of each image of a batch, or "", and the tensors of the others (see `SafeProcessor.pixels`)."""
        images, errors = [], []
        for source in self.images[index * self.batch_size : (index + 1) * self.batch_size]:
            try:
                images.append(load_image(source))
                errors.append("")
            except ImageError as error:
                errors.append(str(error))
        return errors, self.processor.pixels(images) if images else {}
