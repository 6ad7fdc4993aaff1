"""``match``: which patches of two images belong together."""

from __future__ import annotations

from dataclasses import dataclass

from dinoforge.base.config import with_settings
from dinoforge.base.errors import DataError
from dinoforge.features.matching import MatchConfig
from dinoforge.features.matching import match as matched
from dinoforge.report.match import match_picture
from dinoforge.verbs.looking import look, picture_name


@dataclass(frozen=True, slots=True)
class Matched:
    """The picture that was written."""

    path: str
    images: list[str]
    """Ids of the two."""
    matches: int
    """Lines drawn."""


def match(
    *, backbone: str, images: str, out: str, first: str | int = 0, second: str | int = 1, side: str | int | None = None,
    matches: str | int = MatchConfig().matches, radius: str | float = MatchConfig().radius,
) -> Matched:  # fmt: skip
    """Draw lines between the patches of two images that are each other's nearest neighbour, the most salient ones.

    Args:
        backbone: A backbone folder, a run, weights in any layout that convert reads, hf:FOLDER or timm:NAME.
        images: Images: a folder, a Parquet file, toy://species.
        out: PNG or SVG file to write.
        first: Id, or number from 0, of one image.
        second: Id or number of the other.
        side: Input side in pixels, a multiple of the patch; larger gives finer matches.
        matches: Lines at most.
        radius: Least distance of two lines' ends, in patches.
    """
    path = picture_name(out, (".png", ".svg"))
    config = with_settings(MatchConfig(), {"matches": matches, "radius": radius})
    seen = look(backbone, images, [str(first), str(second)], side=side, out=out)
    if len(seen.ids) < 2:
        raise DataError(f"Only {', '.join(seen.ids)} of first={first} and second={second} can be used.")
    found = matched(seen.patches[0], seen.patches[1], config=config)
    match_picture(path, (seen.images[0], seen.images[1]), found, patch=seen.patch)
    return Matched(path=out, images=seen.ids, matches=len(found.first))
