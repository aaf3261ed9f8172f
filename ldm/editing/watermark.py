"""An invisible watermark that says that a picture was made with this method.

It is spread over the whole picture (in singular values of blocks of its wavelet transform), a level or two in most
pixels: with it, no background is exact."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ldm.util import UserError

TEXT = b"Paint-by-Example"  # what the 2022 scripts wrote, by a weaker method of the same library
METHOD = "dwtDctSvd"
LEAST = 256  # pixels of each side


def check_watermark(size: tuple[int, int] | None = None) -> None:
    """size: (width, height) of a picture to mark. Raises UserError: less than LEAST pixels on a side, or the library is
    missing. It is no requirement: pip would fetch another OpenCV with it."""
    try:
        import imwatermark  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the watermark needs a library that is not here ({error}); pip install --no-deps invisible-watermark "
            "PyWavelets, or leave --watermark out"
        ) from error
    if size and min(size) < LEAST:
        raise UserError(
            f"the picture, {size[0]} x {size[1]}, is too small for the watermark; take one of at least {LEAST} x "
            f"{LEAST}, or leave --watermark out"
        )


def embed(picture: Image.Image) -> Image.Image:
    """RGB -> the same with the watermark. Raises UserError: no library, less than LEAST pixels on a side."""
    check_watermark(picture.size)
    from imwatermark import WatermarkEncoder

    encoder = WatermarkEncoder()
    encoder.set_watermark("bytes", TEXT)
    marked = Image.fromarray(encoder.encode(np.array(picture)[..., ::-1].copy(), METHOD)[..., ::-1])
    marked.info |= picture.info
    return marked


def has_watermark(picture: Image.Image) -> bool:
    """Is it in the picture (RGB)? A sixteenth of its bits may be wrong, as after a JPEG.

    Raises UserError: no library."""
    check_watermark()
    from imwatermark import WatermarkDecoder

    if min(picture.size) < LEAST:
        return False
    found = WatermarkDecoder("bytes", 8 * len(TEXT)).decode(np.array(picture)[..., ::-1].copy(), METHOD)
    bits = [np.unpackbits(np.frombuffer(text, np.uint8)) for text in (found, TEXT)]
    return bool((bits[0] != bits[1]).mean() <= 1 / 16)
