"""Every evaluation by its name. A new one is a file and a line here."""

from __future__ import annotations

from dinoforge.evaluate.copies import COPIES
from dinoforge.evaluate.evaluation import Evaluation
from dinoforge.evaluate.fewshot import FEWSHOT
from dinoforge.evaluate.healthy import HEALTH
from dinoforge.evaluate.linear import LINEAR
from dinoforge.evaluate.logistic import LOGISTIC
from dinoforge.evaluate.neighbours import KNN
from dinoforge.evaluate.retrieval import RETRIEVAL
from dinoforge.evaluate.robustness import ROBUSTNESS

EVALUATIONS: dict[str, Evaluation] = {
    "knn": KNN,
    "fewshot": FEWSHOT,
    "linear": LINEAR,
    "logistic": LOGISTIC,
    "retrieval": RETRIEVAL,
    "copies": COPIES,
    "robustness": ROBUSTNESS,
    "health": HEALTH,
}
SUITES: dict[str, tuple[str, ...]] = {
    "quick": ("knn", "health"),
    "paper": ("knn", "linear", "logistic", "robustness", "retrieval", "health"),
}
"""Several evaluations by one name: a first look, and what DINOv2's tables of whole images report."""
