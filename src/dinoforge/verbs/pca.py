"""``pca``: patch features of several images as colours."""

from __future__ import annotations

from dinoforge.report.pca import pca_picture
from dinoforge.verbs.looking import Drawn, look, picture_name, wanted


def pca(
    *, backbone: str, images: str, out: str, count: str | int = 8, row: str | None = None, side: str | int | None = None
) -> Drawn:
    """Draw patch features as colours over several images together: equal colours are equal parts, dark grey is background.

    Args:
        backbone: A backbone folder, a run, weights in any layout that convert reads, hf:FOLDER or timm:NAME.
        images: Images: a folder, a Parquet file, toy://species.
        out: PNG file to write.
        count: First so many images.
        row: Instead of the first ones, these: ids or numbers from 0, joined by commas.
        side: Input side in pixels, a multiple of the patch; larger gives finer maps.
    """
    path = picture_name(out, (".png",))
    seen = look(backbone, images, wanted(count, row), side=side, out=out)
    pca_picture(path, seen.images, {"pca": seen.patches})
    return Drawn(path=out, images=seen.ids)
