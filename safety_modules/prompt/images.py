"""Images: an image file -> an upright RGB image, or an error that names the file; and an image as a data URI."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps

from safety_modules.errors import UserError
from safety_modules.sample import ImageSource

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
ImageLike = str | Path | ImageSource | Image.Image  # what `load_image` takes


class ImageError(UserError):
    """An image cannot be used; the message names the file and the reason."""


def load_image(source: ImageLike) -> Image.Image:
    """Read an image, turn it upright as its EXIF says and convert it to RGB.

    Args:
        source: a file, something that reads a file's bytes, or an open image.

    Raises:
        ImageError: the file is missing, is not an image, is truncated, or is larger than Pillow's bound against
            decompression bombs (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    try:
        file = source if isinstance(source, (str, Path, Image.Image)) else io.BytesIO(source.read_bytes())
        image = file if isinstance(file, Image.Image) else Image.open(file)
        if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:  # Pillow only warns
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels may be a decompression bomb")
        return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise ImageError(f"{source}: no such file; check the path in the row that names it") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{source}: not a readable image ({error}); replace the file or remove its row") from error


def data_uri(image: Image.Image, side: int, kind: str = "JPEG", quality: int = 90) -> str:
    """An image as a data URI.

    Args:
        side: pixels of the longer side, at most; a larger image is scaled down.
        kind: "JPEG", or "PNG" to lose nothing. quality: of a JPEG, 1 to 95.
    """
    thumbnail, file = image.copy(), io.BytesIO()
    thumbnail.thumbnail((side, side))
    thumbnail.save(file, kind, **({"quality": quality} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
