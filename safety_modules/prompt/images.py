"""Images: an image file -> an upright RGB image, or an error that names the file."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageOps

from safety_modules.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


class ImageError(UserError):
    """An image cannot be used; the message names the file and the reason."""


class Stored(Protocol):
    """An image whose file lies in something else, such as a table."""

    def read_bytes(self) -> bytes:
        """The file."""


def load_image(source: str | Path | Stored | Image.Image) -> Image.Image:
    """Read an image, turn it upright as its EXIF says and convert it to RGB.

    Args:
        source: a file, something that gives a file's bytes, or an image that is open already.

    Raises:
        ImageError: the file is missing, is no image, is cut off, or is larger than Pillow's bound against
            decompression bombs (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    try:
        stored = not isinstance(source, (str, Path, Image.Image))
        file = io.BytesIO(source.read_bytes()) if stored else source
        image = file if isinstance(file, Image.Image) else Image.open(file)
        if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:  # Pillow only warns of it
            raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels may be a decompression bomb")
        return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise ImageError(f"{source}: no such file; check the path in the row that names it") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"{source}: not a readable image ({error}); replace the file or remove its row") from error


def data_uri(image: Image.Image, side: int, kind: str = "JPEG", quality: int = 90) -> str:
    """An image as a data URI.

    Args:
        side: at most so many pixels wide and high; a larger image is reduced.
        kind: "JPEG", or "PNG" for one without loss. quality: of a JPEG, 1 to 95.
    """
    small, file = image.copy(), io.BytesIO()
    small.thumbnail((side, side))
    small.save(file, kind, **({"quality": quality} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
