"""Images a second from JPEG files to features on disk, and of the forward pass alone, beside other libraries; one JSON line.

``python bench/embed.py [IMAGES] [ROUNDS]``: ViT-S/14 at 224 pixels with the same random weights in Hugging Face's
``Dinov2Model`` and in timm's ``vit_small_patch14_dinov2``. A library that is not installed is null, with the reason.

Theirs are what their documentation shows: their own image processor or transform on pictures that Pillow opened, a batch of the
same size, no gradients, torch's fused attention, the features into one NumPy file. Ours is what ``embed`` does, shards and all.
In bf16 theirs have bf16 weights. Each kind lives in a process of its own, so that on a processor theirs have the C library's
memory as it comes, ours as the product sets it; they take turns in every round, and all must agree on the features.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from loader import write_jpegs
from PIL import Image
from torch import Tensor

from dinoforge.base.hardware import Precision, choose_precision, cores, cpu_flags, cpu_has_bf16, processor, versions
from dinoforge.data.sources.table import open_source
from dinoforge.features.extract import computed, forward, normalised
from dinoforge.features.kinds import KINDS as TABLES
from dinoforge.features.store import read_features, write_features
from dinoforge.features.unfinished import Unfinished
from dinoforge.model.layouts import composed, write_layout
from dinoforge.model.processor import FILE, written_processor
from dinoforge.model.table import build
from dinoforge.model.vit import Vit, VitConfig
from dinoforge.model.weights import Preprocessing
from dinoforge.verbs.opening import extraction

CONFIG, PREPROCESSING = VitConfig(), Preprocessing()
SHARD = 1024
NEEDS = {"ours": "torch", "huggingface": "transformers", "timm": "timm"}
FARTHEST = {"fp32": 1e-3, "bf16": 0.3}
"""Features of the same pixels may be apart by so much; a channel's spread is about 1."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One library's way: all of it, and what a batch of normalised pictures costs alone."""

    whole: Callable[[], np.ndarray]
    alone: Callable[[], Any]


def network() -> Vit:
    """The weights of all: random, as wide as trained ones so that blocks have a say."""
    return build(CONFIG.model_copy(update={"layerscale": 1.0, "init_std": 0.05}), seed=0).eval()


def batch(rows: int) -> Tensor:
    """Normalised noise."""
    noise = torch.randint(0, 256, (rows, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return normalised(noise, PREPROCESSING)


def ours(folder: Path, precision: Precision, device: torch.device, out: Path) -> Kind:
    """What ``embed`` does between opening the backbone and saying what it did."""
    module, how = network().to(device), extraction(precision)

    def whole() -> np.ndarray:
        source = open_source(str(folder))
        shards = Unfinished(out / "shards", {}, images=len(source), rows=SHARD)
        parts = computed(module, source, PREPROCESSING, how, of=TABLES["image"], on_broken=lambda *_: None)
        shards.write(((rows, values.float().cpu().numpy()) for rows, values in parts), deque())
        write_features(out / "features", shards, columns=source.columns, facts={})
        return read_features(out / "features").values

    x = batch(how.rows_at_once).to(device)
    return Kind(whole, lambda: forward(module, x, how).image.float().cpu())


def huggingface(folder: Path, precision: Precision, device: torch.device, out: Path) -> Kind:
    """transformers: ``Dinov2Model`` and its image processor."""
    from transformers import AutoImageProcessor, Dinov2Model

    module = network()
    _, found, _ = composed(module.config, module.state_dict(), "huggingface")
    write_layout(out / "weights", found, beside={FILE: written_processor(PREPROCESSING)})
    model = Dinov2Model.from_pretrained(out / "weights", local_files_only=True)
    prepare = AutoImageProcessor.from_pretrained(out / "weights", local_files_only=True)
    return theirs(
        folder, precision, device, out, model,
        prepare=lambda pictures: prepare(pictures, return_tensors="pt")["pixel_values"],
        run=lambda x: model(pixel_values=x).last_hidden_state[:, 0],
    )  # fmt: skip


def timm(folder: Path, precision: Precision, device: torch.device, out: Path) -> Kind:
    """timm: its model and its transform."""
    import timm as library

    module = network()
    _, found, _ = composed(module.config, module.state_dict(), "timm")
    model = library.create_model("vit_small_patch14_dinov2", img_size=224, num_classes=0, init_values=1.0)
    model.load_state_dict(found.tensors)
    prepare = library.data.create_transform(
        input_size=224, crop_pct=224 / 256, interpolation="bicubic", mean=PREPROCESSING.mean, std=PREPROCESSING.std
    )
    return theirs(
        folder, precision, device, out, model,
        prepare=lambda pictures: torch.stack([prepare(picture) for picture in pictures]), run=model,
    )  # fmt: skip


def theirs(
    folder: Path, precision: Precision, device: torch.device, out: Path, model: Any, *,
    prepare: Callable[[list[Image.Image]], Tensor], run: Callable[[Tensor], Tensor],
) -> Kind:  # fmt: skip
    """Batch after batch, as one writes it."""
    dtype, rows = torch.bfloat16 if precision == "bf16" else torch.float32, extraction(precision).rows_at_once
    model.eval().to(device, dtype)

    def alone(x: Tensor) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(run(x.to(device, dtype)).float().cpu())

    def whole() -> np.ndarray:
        files, found = sorted(folder.iterdir()), []
        for start in range(0, len(files), rows):
            pictures = [Image.open(file).convert("RGB") for file in files[start : start + rows]]
            found.append(alone(prepare(pictures)))
        np.save(out / "features.npy", np.concatenate(found))
        return np.load(out / "features.npy")

    x = batch(rows)
    return Kind(whole, lambda: alone(x))


KINDS = {"ours": ours, "huggingface": huggingface, "timm": timm}


class Child:
    """One kind in a process of its own, which does what it is told."""

    def __init__(self, kind: str, folder: str, precision: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", kind, folder, precision],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, what: str) -> tuple[float, list[list[float]]]:
        """Seconds, and after ``whole`` the features of the first images."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(1)  # it has said why
        seconds, first = json.loads(answer)
        return seconds, first


def serve(name: str, folder: str, precision: Precision) -> None:
    """What a child does."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as out:
        kind = KINDS[name](Path(folder), precision, device, Path(out))
        for line in sys.stdin:
            began = time.perf_counter()
            found = kind.whole() if line.strip() == "whole" else kind.alone()
            seconds = time.perf_counter() - began
            print(json.dumps([seconds, np.asarray(found[:4], dtype=float).tolist()]), file=answers, flush=True)


def compared(folder: str, precision: Precision, images: int, rounds: int) -> dict[str, Any]:
    """All kinds in one precision, in turns."""
    here = [kind for kind in KINDS if find_spec(NEEDS[kind])]
    children = {kind: Child(kind, folder, precision) for kind in here}
    apart: dict[str, dict[str, float]] = {}
    for what in ("whole", "alone"):  # the first time of each does not count
        first = {kind: np.asarray(child.ask(what)[1]) for kind, child in children.items()}
        apart[what] = {kind: float(np.abs(found - first["ours"]).max()) for kind, found in first.items()}
    assert max(apart["alone"].values()) < FARTHEST[precision], f"features of the same pixels differ: {apart}"
    rows = extraction(precision).rows_at_once
    size = {"whole": images, "alone": rows}
    seconds: dict[str, dict[str, list[float]]] = {what: {kind: [] for kind in here} for what in size}
    for _ in range(rounds):
        for what, found in seconds.items():
            for kind, child in children.items():
                found[kind].append(child.ask(what)[0])
    for child in children.values():
        child.process.communicate()
    facts: dict[str, Any] = {"images_at_once": rows}
    for what, taken in seconds.items():
        facts[{"whole": "files_to_features", "alone": "forward"}[what]] = {
            "images_per_second": {k: round(size[what] / median(taken[k]), 2) if k in taken else None for k in KINDS},
            "ours_over": {
                k: round(median(b / a for a, b in zip(taken["ours"], taken[k], strict=True)), 3) if k in taken else None
                for k in KINDS if k != "ours"
            },
            "farthest_from_ours": {k: round(value, 5) for k, value in apart[what].items() if k != "ours"},
        }  # fmt: skip
    return facts


def release(package: str) -> str:
    """A library's version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def main(images: int, rounds: int) -> None:
    """Measure and print."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        for file in write_jpegs(Path(folder), None)[images:]:
            file.unlink()
        count = len(list(Path(folder).iterdir()))
        fast = device.type == "cuda" or cpu_has_bf16(cpu_flags())
        found = {"fp32": compared(folder, "fp32", count, rounds)}
        found["bf16"] = compared(folder, "bf16", count, rounds) if fast else None
    print(
        json.dumps(
            {
                "bench": "embed", "model": "ViT-S/14", "pixels": 224, "images": count, "rounds": rounds, **found,
                "why_no_bf16": None if fast else "this CPU has no bf16 instructions",
                "absent": {
                    kind: f"{package} is not installed" for kind, package in NEEDS.items() if not find_spec(package)
                },
                "auto": choose_precision("auto", device).precision, "threads": torch.get_num_threads(), "cores": cores(),
                "device": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
                **versions(), **{package: release(package) for package in ("transformers", "timm")},
            }
        )
    )  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])  # type: ignore[arg-type]
    else:
        numbers = [int(word) for word in sys.argv[1:]]
        main(*[*numbers, *[64, 5][len(numbers) :]])
