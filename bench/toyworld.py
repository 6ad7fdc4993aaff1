"""Pictures a second that one core draws, per world; one JSON line: ``python bench/toyworld.py [images]``."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch

from dinoforge.base.hardware import versions
from dinoforge.data.sources.table import open_source

ADDRESSES = {
    "species": "toy://species?size=64",
    "species, 4 objects": "toy://species?size=64&objects=4",
    "species, 224 pixels": "toy://species?size=224",
    "minerals": "toy://minerals?size=64",
    "clips": "toy://clips?size=64",
}


def rate(address: str, images: int) -> float:
    """Images a second of processor time: what else runs on the machine does not count."""
    source = open_source(address)
    rows = np.linspace(0, len(source) - 1, images).astype(int).tolist()
    source.pixels(0)
    began = time.process_time()
    for row in rows:
        source.pixels(row)
    return images / (time.process_time() - began)


def main() -> None:
    torch.set_num_threads(1)
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    rates = {name: round(rate(address, images), 1) for name, address in ADDRESSES.items()}
    print(json.dumps({"bench": "toyworld", "images": images, "images_per_cpu_second": rates, **versions()}))


if __name__ == "__main__":
    main()
