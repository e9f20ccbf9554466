"""Images: a picture file -> an upright RGB picture, or an error that names the file."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image, ImageOps

from safety_modules.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


class ImageError(UserError):
    """A picture cannot be used; the message names the file and the reason."""


def load_image(source: str | Path | Image.Image) -> Image.Image:
    """Read a picture, turn it upright as its EXIF says and convert it to RGB.

    Args:
        source: a file, or a picture that is open already.

    Raises:
        ImageError: the file is missing, is no picture, is cut off, or is larger than Pillow's bound against
            decompression bombs (`PIL.Image.MAX_IMAGE_PIXELS`).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = source if isinstance(source, Image.Image) else Image.open(source)
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise ImageError(f"{source}: no such file; check the path in the row that names it") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(f"{source}: not a readable picture ({error}); replace the file or remove its row") from error
