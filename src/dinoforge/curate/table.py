"""Every stage of a curation by its name, in the order in which they run. A new one is a file and a line here."""

from __future__ import annotations

from dinoforge.curate.stages.balance import BALANCE
from dinoforge.curate.stages.copies import COPIES
from dinoforge.curate.stages.embedding import EMBEDDING
from dinoforge.curate.stages.exact import EXACT
from dinoforge.curate.stages.filters import FILTERS
from dinoforge.curate.stages.hash import HASH
from dinoforge.curate.stages.leaks import LEAKS
from dinoforge.curate.stages.pairs import PAIRS
from dinoforge.curate.stages.retrieval import RETRIEVAL
from dinoforge.curate.stages.safety import SAFETY_STAGE
from dinoforge.curate.state import Stage

CURATIONS: dict[str, Stage] = {
    "filters": FILTERS,
    "safety": SAFETY_STAGE,
    "exact": EXACT,
    "hash": HASH,
    "pairs": PAIRS,
    "copies": COPIES,
    "leaks": LEAKS,
    "embedding": EMBEDDING,
    "retrieval": RETRIEVAL,
    "balance": BALANCE,
}
"""A stage that finds for others what they need (pairs, embedding) runs where one of them does."""
