"""``dinoforge`` with shards of so few images that a small pool has many: ``small_shards.py SHARD PART VERB …``.

``$READS`` names a reader of ``reads.py`` for them.
"""

import os
import sys

import reads

import dinoforge.curate.embeddings
import dinoforge.curate.images
import dinoforge.curate.stages.pairs
import dinoforge.curate.stages.safety
from dinoforge.cli import main


def shrink(shard, part, put=setattr):
    """Make shards of so many images and parts of so many pairs."""
    stages = dinoforge.curate.stages
    for module in (dinoforge.curate.images, dinoforge.curate.embeddings, stages.safety):
        put(module, "SHARD", shard)
    put(stages.pairs, "PART", part)


if __name__ == "__main__":
    shrink(int(sys.argv[1]), int(sys.argv[2]))
    if "READS" in os.environ:
        dinoforge.curate.images._read = getattr(reads, os.environ["READS"])
    main(sys.argv[3:])
