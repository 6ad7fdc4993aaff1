"""One data set and one backbone: what every view of the explorer is taken from.

All of a picture is seen, squeezed into the backbone's square, so that every place in it can be searched for, and a share of a
picture's width is the same share of the grid's.

Axes: N images, D channels, H by W patches, Y by X pixels.
"""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32, UInt8
from PIL import Image

from dinoforge.base.config import fingerprint
from dinoforge.base.errors import ConfigError, DataError
from dinoforge.base.hardware import device
from dinoforge.base.log import say
from dinoforge.data.decode import Broken, Reading, open_picture
from dinoforge.data.picture import Picture
from dinoforge.data.sources.options import placed
from dinoforge.data.sources.source import Source
from dinoforge.explore.answers import Asked, Shown, Tell, untold
from dinoforge.explore.origins import Origins
from dinoforge.explore.places import Places, open_places
from dinoforge.explore.stored import read_or_make, refuse_strange
from dinoforge.features.exact import unit_rows
from dinoforge.features.extract import Extraction, forward, normalised, reading
from dinoforge.features.kept import Watch, files_of, keep
from dinoforge.features.store import Stored, read_features
from dinoforge.features.unfinished import in_range
from dinoforge.features.views import squeezed_whole
from dinoforge.model.weights import Backbone

MOST_PIXELS = 50_000_000
"""A picture that is brought along may have so many, or fewer where ``web.upload_pixels`` says so; those of the collection as
many as the preprocessing allows."""
SIZES = (16, 2048)
"""Shortest and longest side of a picture for the eye, in pixels."""
DECODING = BoundedSemaphore(2)
"""Whoever decodes pictures that are asked for holds it: each takes memory for all its pixels, however many ask at once."""
_LATELY = 16
"""Pictures that were brought of which it is kept what the backbone sees in them."""
_SHARD = 1024
_QUALITY = 88


@dataclass(frozen=True, slots=True)
class Seen:
    """What the backbone sees in one picture."""

    image: Float32[np.ndarray, " D"]
    patches: Float32[np.ndarray, "H W D"]


class Collection:
    """N images that could be used, in the order of the source. Safe to ask from several threads.

    Attributes:
        vectors: Image vectors ``[N D]`` of length 1, float32, mapped.
        patches: Patch features ``[N H W D]``, float16, mapped.
        places: What finds patches among all, see ``places.py``.
        folder: Where features and what is made of them lie.
        fingerprint: 16 hexadecimal digits of the features and all that they are of; what is stored beside them carries it.
        backbone, source, how: As given; of the source, the rows that could be used.
    """

    def __init__(
        self, backbone: Backbone, source: Source, folder: Path, *, how: Extraction, stored: Stored, tell: Tell = untold
    ) -> None:
        self.backbone, self.folder, self.how = backbone, folder, how
        self.fingerprint = fingerprint(stored.facts)
        self.source = source if len(stored.ids) == len(source) else source.select(_rows(source, stored.ids))
        self.patches = _grid(stored.values[:, 1:])
        self.vectors: Float32[np.ndarray, "N D"] = read_or_make(
            folder / "vectors.npy", self.fingerprint, lambda: _vectors(stored.values, tell)
        )
        self.places: Places = open_places(folder, self.patches, self.fingerprint, tell=tell)
        self._one_at_a_time, self._lately = Lock(), OrderedDict[bytes, Seen]()
        self._module = backbone.module.to(how.device).eval()

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        return self.patches.shape[1], self.patches.shape[2]

    @cached_property
    def _origins(self) -> Origins:
        return Origins(self.source)

    def about(self, asked: Asked) -> Shown:
        """What is known of a picture.

        Raises:
            ConfigError: No such row.
        """
        return self._origins.of(self.known(asked)) if isinstance(asked, int) else self._origins.brought()

    def known(self, row: int) -> int:
        """The row, if there is one.

        Raises:
            ConfigError: There is none.
        """
        if not 0 <= row < len(self):
            raise ConfigError(f"there is no image {row}; rows go from 0 to {len(self) - 1}.")
        return row

    def picture(self, asked: Asked, size: int) -> bytes:
        """A picture as a JPEG file for the eye: all of it, in its own shape, its long side at most ``size`` pixels.

        Raises:
            DataError: It cannot be read.
            ConfigError: No such row, or a size beyond ``SIZES``.
        """
        if not SIZES[0] <= size <= SIZES[1]:
            raise ConfigError(f"a picture is {SIZES[0]} to {SIZES[1]} pixels large; got {size}.")
        with self.decoded(asked, long_side=size) as pixels:
            image = Image.fromarray(_visible(pixels))
            image.thumbnail((size, size), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=_QUALITY)
        return file.getvalue()

    @contextmanager
    def decoded(self, asked: Asked, *, long_side: int | None = None) -> Iterator[UInt8[np.ndarray, "Y X C"]]:
        """The decoded pixels as the backbone's preprocessing reads them; others wait, see ``DECODING``, until the block ends.

        Args:
            long_side: So many pixels are enough, where the format can be decoded at a smaller size.

        Raises:
            DataError: It cannot be read, or has more pixels than are allowed.
            ConfigError: No such row.
        """
        with DECODING:
            yield self._pixels(asked, long_side)

    def _pixels(self, asked: Asked, long_side: int | None) -> np.ndarray:
        try:
            picture = self._opened(asked, reading(self.backbone.preprocessing))
            reduction = 1 if long_side is None else max(1, max(picture.height, picture.width) // long_side)
            pixels: np.ndarray = picture.pixels(reduction)
        except Broken as error:
            name = self.about(asked).id
            raise DataError(f"{name} cannot be read: {str(error).splitlines()[0]}") from None
        return pixels

    def _opened(self, asked: Asked, how: Reading) -> Picture:
        if isinstance(asked, int):
            return how.of(self.source.picture(self.known(asked)))
        return brought(asked, how)

    def see(self, asked: Asked) -> Seen:
        """What the backbone sees in a picture: of a row what is stored, else computed; once of those asked for lately.

        Raises:
            DataError, ConfigError: See ``decoded``.
        """
        if isinstance(asked, int):
            row = self.known(asked)
            return Seen(np.array(self.vectors[row]), self.patches[row].astype(np.float32))
        name = hashlib.sha256(asked).digest()
        with self._one_at_a_time:  # whoever asks for the same meanwhile finds it computed
            if name not in self._lately:
                self._lately[name] = self._computed(asked)
                while len(self._lately) > _LATELY:
                    self._lately.popitem(last=False)
            self._lately.move_to_end(name)
            return self._lately[name]

    def _computed(self, asked: bytes) -> Seen:
        how = self.backbone.preprocessing
        with self.decoded(asked) as pixels:
            small = squeezed_whole(how).of(pixels, 0)
        found = forward(self._module, normalised(small[None].to(self.how.device), how), self.how)
        image, patches = (in_range(part[0].float().cpu().numpy()) for part in (found.image, found.patches))
        return Seen(unit_rows(image[None])[0], patches)


def brought(encoded: bytes, how: Reading, *, most: int = MOST_PIXELS) -> Picture:
    """A picture that is brought along as the backbone takes it, still not decoded.

    Args:
        most: Pixels that it may have; of more than 4 channels as many fewer, as with all pictures.

    Raises:
        Broken: No image, or a larger one.
    """
    found = open_picture(encoded)
    if found.height * found.width * max(1.0, found.channels / 4) > most:
        raise Broken(
            f"{found.width}x{found.height} pixels with {found.channels} channels are more than {most:,}; "
            f"web.upload_pixels sets the limit, {MOST_PIXELS:,} at most"
        )
    return how.of(found)


def open_collection(
    backbone: Backbone, source: Source, folder: Path, *, tell: Tell = untold, how: Extraction | None = None
) -> Collection:
    """The collection of a source as a backbone sees it, from what is stored in a folder; what is missing there is computed.

    Interrupted, the same call goes on where it was.

    Args:
        folder: Keeps the features; one folder for each backbone and source.
        tell: Is told how far it is.
        how: Device and precision; by default the best device, fp32.

    Raises:
        NoneUsable: Not one image could be used.
        RunError: The folder cannot be written, or is in use.
        ConfigError: Something else is there.
    """
    how, path = how or Extraction(device("auto")), folder / "features"
    refuse_strange(folder)
    view, facts = squeezed_whole(backbone.preprocessing), facts_of(backbone, source)
    stored = _stored(path, facts)
    if stored is not None and facts["files"] is None:
        say(f"{source.address} does not tell when its images were changed; remove {path} if some were.")
    if stored is None:
        keep(
            path, source, backbone, how, kind="tokens", on_broken=_told, rows=_SHARD, view=view,
            watch=Watch("compute features", tell), facts={**facts, "address": placed(source.address)},
        )  # fmt: skip
        stored = read_features(path, mode="r")
    return Collection(backbone, source, folder, how=how, stored=stored, tell=tell)


def facts_of(backbone: Backbone, source: Source) -> dict[str, Any]:
    """What determines the features of a collection beyond rounding; stands in their ``features.json``."""
    return {
        "tokens": "tokens", "backbone": backbone.fingerprint, "data": source.fingerprint,
        "view": squeezed_whole(backbone.preprocessing).name, "files": files_of(source),
        "preprocessing": backbone.preprocessing.model_dump(mode="json"),
    }  # fmt: skip


def _stored(path: Path, facts: dict[str, Any]) -> Stored | None:
    """The features that are there, if they are of these facts.

    Raises:
        ConfigError: Something that is no feature of a collection is there.
    """
    if not path.exists():
        return None
    try:
        found = read_features(path, mode="r")
    except DataError:
        raise ConfigError(f"{path} exists and holds no features; give another folder.") from None
    if found.facts.get("tokens") != "tokens":
        raise ConfigError(f"{path} holds features of another kind; give another folder.")
    if any(found.facts.get(name) != value for name, value in facts.items()):
        say(f"{path} is of another backbone or of other images; its features are computed anew.")
        return None
    return found


def _told(name: str, reason: str) -> None:
    say(f"Set aside {name}: {reason}")


def _rows(source: Source, ids: np.ndarray) -> np.ndarray:
    number = {str(name): row for row, name in enumerate(source.columns["id"])}
    return np.asarray([number[str(name)] for name in ids], np.int64)


def _grid(patches: Float16[np.ndarray, "N P D"]) -> Float16[np.ndarray, "N H W D"]:
    """Patches of a square view on their grid."""
    side = round(patches.shape[1] ** 0.5)
    found: np.ndarray = patches.reshape(len(patches), side, side, patches.shape[2])
    return found


def _vectors(tokens: np.ndarray, tell: Tell) -> Float32[np.ndarray, "N D"]:
    found = np.empty((len(tokens), tokens.shape[2]), np.float32)
    for start in range(0, len(tokens), _SHARD):
        some = slice(start, start + _SHARD)
        found[some] = unit_rows(tokens[some, 0])
        tell(min(start + _SHARD, len(tokens)), len(tokens), "collect image vectors")
    return found


def _visible(pixels: UInt8[np.ndarray, "Y X C"]) -> UInt8[np.ndarray, "Y X c"]:
    """Three channels, or grey where there are fewer."""
    return np.ascontiguousarray(pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0])
