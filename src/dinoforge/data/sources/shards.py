"""Tar files as sources: members are read where they lie, in any order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from dinoforge.base.errors import ConfigError, DataError, closest
from dinoforge.data.decode import SUFFIXES, Broken
from dinoforge.data.ground_truth import TRUTHS, ground_truth
from dinoforge.data.sources.columns import by_folder, known_columns, with_split
from dinoforge.data.sources.options import COLUMNS, Options, shown
from dinoforge.data.sources.paths import storage
from dinoforge.data.sources.source import Source
from dinoforge.data.sources.storage import on_opening
from dinoforge.data.sources.tarindex import index_of

_ENDINGS = {"mask": ("mask", "seg"), "depth": ("depth",)}
"""What stands before the suffix in the names of ground truth: ``7.mask.png``, ``7.seg.png``."""
_STORED = ("png", "tif", "tiff", "npy")
_FACT = "fact "


class Tar(Source):
    """One tar in WebDataset naming. ``id`` is the archive's name and the image member's, or the samples' own ids.

    Labels and what else is known come from ``.cls`` and ``.json``, else from the names of folders.

    Args:
        name: What the archive is called in the ids.

    Raises:
        DataError: No tar, or none with an image in it.
        ConfigError: A column or an ending was asked for that it does not have.
    """

    def __init__(self, address: str, name: str, options: Options) -> None:
        options.only(*COLUMNS, "allow_private", "anonymous", of="a tar")
        self.address, self._place, self._options = shown(address), address, options
        where = storage(address, options)
        index = index_of(address, where)
        with on_opening(address):
            size, changed = where.stamp(address)
        self._changed = f"{size}:{changed}" if changed else ""
        keys = index.samples["key"]
        facts = pa.table({
            column.removeprefix(_FACT): index.samples[column] for column in index.samples.column_names
            if column.startswith(_FACT)
        } or {"": pa.nulls(len(keys))})  # fmt: skip
        members = _Members(index.samples)
        chosen = members.images(options, self.address, facts)
        rows = members.parent[chosen]
        self.rejected = [
            *((f"{name}/{key}", reason) for key, reason in index.rejected),
            *((f"{name}/{keys[row].as_py()}", f"no image among {members.text(row)}; ?image= names an ending")
              for row in np.setdiff1d(np.arange(len(keys)), rows).tolist()),
            *((f"{name}/{member}", "another image of its sample is used; ?image= names an ending")
              for member in members.left(chosen, options, self.address)),
        ]  # fmt: skip
        if not len(rows):
            seen = f"; the first of {len(self.rejected)} reasons: {self.rejected[0][1]}" if self.rejected else ""
            raise DataError(f"{self.address} holds no image{seen}.")
        names = members.names[chosen]
        self._at = {"image": members.at(chosen)}
        for truth in TRUTHS:
            of_sample = members.truth(truth, options.truths[truth], self.address)
            if (of_sample[rows] >= 0).any():
                self._at[truth] = members.at(of_sample[rows])
        ids = np.char.add(f"{name}/", names)
        known = known_columns(facts.take(rows), self.address, options=options, names=ids)
        self.by_name = known.by_name
        folders = by_folder(names.tolist())
        if "label" in known.columns:
            folders = {column: values for column, values in folders.items() if column == "split"}
        elif "label" in folders:
            self.by_name |= {"label"}
        columns = {**folders, **known.columns}
        self.columns = with_split(columns, name)

    def encoded(self, row: int) -> bytes:
        """The bytes of the image's member."""
        return self._member("image", row)

    def stamp(self, row: int) -> str | None:
        """That of the whole archive, and where the image lies in it."""
        start, size = (int(column[row]) for column in self._at["image"])
        return f"{self._changed}:{start}:{size}" if self._changed else None

    def extra(self, row: int, name: str) -> np.ndarray | None:
        """``mask`` or ``depth`` from the sample's own members."""
        if name not in self._at or self._at[name][0][row] < 0:
            return None
        return ground_truth(self._member(name, row), name)

    def _member(self, name: str, row: int) -> bytes:
        start, size = (int(column[row]) for column in self._at[name])
        part = storage(self._place, self._options).part(self._place, start, size) if size else b""
        if len(part) != size:
            raise Broken("the archive is shorter than when it was indexed")
        return part


class _Members:
    """The members of all samples side by side.

    Axes: M members, S samples.
    """

    def __init__(self, samples: Any) -> None:
        names = samples["names"].combine_chunks()
        self._samples = len(names)
        self.parent = np.asarray(pc.list_parent_indices(names).to_numpy(zero_copy_only=False), dtype=np.int64)
        self.names = np.asarray(pc.list_flatten(names).to_pylist(), dtype=np.str_)
        fields = pc.list_flatten(samples["fields"].combine_chunks()).dictionary_encode()
        self._words: list[str] = fields.dictionary.to_pylist()
        self._field = fields.indices.to_numpy(zero_copy_only=False)
        self._offset = pc.list_flatten(samples["offsets"].combine_chunks()).to_numpy(zero_copy_only=False)
        self._size = pc.list_flatten(samples["sizes"].combine_chunks()).to_numpy(zero_copy_only=False)

    def at(self, members: Int[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and sizes of members; -1 and 0 for none."""
        none = members < 0
        return np.where(none, -1, self._offset[members]), np.where(none, 0, self._size[members])

    def text(self, sample: int) -> str:
        """A sample's endings."""
        start, stop = np.searchsorted(self.parent, [sample, sample + 1])
        endings = [self._words[code] for code in self._field[start:stop].tolist()]
        return ", ".join(f".{ending}" if ending else "files without a suffix" for ending in endings) or "its facts"

    def _with(self, endings: list[str]) -> Int[np.ndarray, " n"]:
        """All members with one of the endings, in their order."""
        codes = [code for code, word in enumerate(self._words) if word in set(endings)]
        return np.flatnonzero(np.isin(self._field, codes))

    def _of(self, endings: list[str]) -> Int[np.ndarray, " S"]:
        """For each sample its first member with one of the endings, -1 for none."""
        members = self._with(endings)[::-1]
        found = np.full(self._samples, -1, dtype=np.int64)
        found[self.parent[members]] = members  # in reverse, so that the first one stays
        return found

    def images(self, options: Options, where: str, facts: Any) -> Int[np.ndarray, " n"]:
        """The image of each sample: the ending that was asked for, else a plain suffix, else a suffix after other words.

        Where several have such a suffix and the sample holds neither facts nor ground truth, its key is but the start of
        their names (``Shot 10.01.png``, ``Shot 10.02.png``), and each is an image of its own.
        """
        if options.image is not None:
            return _there(self._of([self._asked(options.image, where)]))
        plain = self._of([word for word in self._words if f".{word}" in SUFFIXES])
        taken = {ending for truth in TRUTHS for ending in _ENDINGS[truth]}
        longer = [word for word in self._words if "." in word and _is_image(word) and not taken & set(word.split("."))]
        alone = plain < 0
        for column in facts.columns:
            alone &= column.is_null().to_numpy()
        for truth in TRUTHS:
            alone &= self.truth(truth, options.truths[truth], where) < 0
        several = self._with(longer)
        first = _there(np.where(plain >= 0, plain, self._of(longer)))
        return np.union1d(first, several[alone[self.parent[several]]])

    def left(self, chosen: Int[np.ndarray, " n"], options: Options, where: str) -> list[str]:
        """Images that stand beside those that were chosen by themselves, and are no ground truth."""
        if options.image is not None:
            return []
        truths = {ending for truth in TRUTHS for ending in _truths(truth)}
        truths |= {self._asked(ending, where) for ending in options.truths.values() if ending is not None}
        images = self._with([word for word in self._words if _is_image(word) and word not in truths])
        beside = images[np.isin(self.parent[images], self.parent[chosen])]
        return list(self.names[np.setdiff1d(beside, chosen)].tolist())

    def truth(self, name: str, asked: str | None, where: str) -> Int[np.ndarray, " S"]:
        """The member with a sample's ground truth."""
        if asked is not None:
            return self._of([self._asked(asked, where)])
        return self._of(_truths(name))

    def _asked(self, ending: str, where: str) -> str:
        ending = ending.removeprefix(".").lower()
        if ending not in self._words:
            raise ConfigError(f"{where} has no member with ending {ending!r}.{closest(ending, self._words)}")
        return ending


def _there(members: Int[np.ndarray, " S"]) -> Int[np.ndarray, " n"]:
    return members[members >= 0]


def _is_image(ending: str) -> bool:
    return f".{ending.rpartition('.')[2]}" in SUFFIXES


def _truths(name: str) -> list[str]:
    """The endings of ground truth, the likelier first."""
    return [f"{start}.{suffix}" for start in _ENDINGS[name] for suffix in _STORED]
