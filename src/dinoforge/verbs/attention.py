"""``attention``: where the class token of several images looks."""

from __future__ import annotations

from dinoforge.base.errors import ConfigError
from dinoforge.report.attention import attention_picture
from dinoforge.verbs.looking import Drawn, look, picture_name, wanted


def attention(
    *, backbone: str, images: str, out: str, count: str | int = 8, row: str | None = None, side: str | int | None = None
) -> Drawn:
    """Draw the class token's attention over the patches in the last block: the mean of the heads, then every head.

    Args:
        backbone: A backbone folder, a run, a Hugging Face folder, or a file of official weights.
        images: Images: a folder, a Parquet file, toy://species.
        out: PNG file to write.
        count: First so many images.
        row: Instead of the first ones, these: ids or numbers from 0, joined by commas.
        side: Input side in pixels, a multiple of the patch; larger gives finer maps.
    """
    path = picture_name(out, (".png",))
    seen = look(backbone, images, wanted(count, row), side=side, out=out)
    if not seen.attention.shape[1]:
        raise ConfigError(f"backbone={backbone} does not show its attention; a backbone of ours does.")
    attention_picture(path, seen.images, seen.attention)
    return Drawn(path=out, images=seen.ids)
