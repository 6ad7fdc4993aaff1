"""A small pool with its seeds and its evaluation images, read once for the tests of curation, and settings for all stages."""

from dataclasses import dataclass

from dinoforge.curate.executors.run import here
from dinoforge.curate.images import Images, read_images
from dinoforge.data.sources.table import open_source

POOL = "toy://species?images=60&size=32&copies=0.2&junk=0.2&leaks=0.1&split=train"
OF = {"retrieve": "retrieval", "balance.levels": "balance", "balance.images": "balance", "safety.hashes.file": "safety"}
"""The stage that a setting belongs to, where it is not the setting's own name."""


@dataclass(frozen=True)
class Pools:
    pool: Images
    seeds: Images
    keep_out: Images
    words: dict
    """Settings with which every stage has something to do."""


def read_pools(at):
    """Read in a folder."""

    def read(address, name):
        return read_images(open_source(address), at / name, name=name, crew=here())

    pool = read(POOL, "pool")
    (at / "hashes.txt").write_text("\n".join(pool.sha256[pool.whole[[3, 8]]]))
    words = {
        "seeds": "s", "keep_out": "k", "retrieve": "samples", "safety.hashes.file": str(at / "hashes.txt"),
        "balance.levels": [6, 3], "balance.images": 9,
    }  # fmt: skip
    seeds = read("toy://species?images=10&size=32&seed=5", "seeds-0")
    return Pools(pool, seeds, read(POOL.replace("train", "test"), "keep_out"), words)
