"""What each kind of work of a curation costs on one core: measured, in one place, with the command that measures it again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Seconds of one core for one of everything; vectors have float32 channels unless said otherwise."""

    multiply: float
    """A multiplication and addition in a product of matrices."""
    encode: float
    """A channel of a vector that is added to an index, beside finding its cell."""
    scan: float
    """A channel of a code that is scanned."""
    ask: float
    """A query, beside what it scans."""
    compare: float
    """A channel of a vector in float16 that is compared exactly."""
    join: float
    """A pair whose component is found."""
    read: float
    """A megapixel of a JPEG: key, decoding, measures, thumbnail."""
    date: str
    machine: str
    command: str


RATES = Rates(
    multiply=2.12e-11,
    encode=2.46e-8,
    scan=1.29e-11,
    ask=2.21e-5,
    compare=2.77e-9,
    join=5.9e-7,
    read=0.030,
    date="2026-11-29",
    machine="AMD EPYC with AVX-512, one thread, beside other work",
    command="python bench/curate.py --rates",
)
