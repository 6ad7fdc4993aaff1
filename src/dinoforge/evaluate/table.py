"""Every evaluation by its name. A new one is a file and a line here."""

from __future__ import annotations

from dinoforge.evaluate.copies import COPIES
from dinoforge.evaluate.correspondence import CORRESPONDENCE
from dinoforge.evaluate.depth import DEPTH
from dinoforge.evaluate.evaluation import Evaluation
from dinoforge.evaluate.fewshot import FEWSHOT
from dinoforge.evaluate.healthy import HEALTH
from dinoforge.evaluate.linear import LINEAR
from dinoforge.evaluate.logistic import LOGISTIC
from dinoforge.evaluate.neighbours import KNN
from dinoforge.evaluate.retrieval import RETRIEVAL
from dinoforge.evaluate.robustness import ROBUSTNESS
from dinoforge.evaluate.segmentation import SEGMENTATION, SEGMENTATION_MS
from dinoforge.evaluate.segmentation_knn import SEGMENTATION_KNN
from dinoforge.evaluate.tracking import TRACKING
from dinoforge.evaluate.video import VIDEO

EVALUATIONS: dict[str, Evaluation] = {
    "knn": KNN,
    "fewshot": FEWSHOT,
    "linear": LINEAR,
    "logistic": LOGISTIC,
    "retrieval": RETRIEVAL,
    "copies": COPIES,
    "robustness": ROBUSTNESS,
    "video": VIDEO,
    "correspondence": CORRESPONDENCE,
    "tracking": TRACKING,
    "health": HEALTH,
    "segmentation": SEGMENTATION,
    "segmentation_ms": SEGMENTATION_MS,
    "segmentation_knn": SEGMENTATION_KNN,
    "depth": DEPTH,
}
SUITES: dict[str, tuple[str, ...]] = {
    "quick": ("knn", "health"),
    "paper": ("knn", "linear", "logistic", "robustness", "retrieval", "health"),
}
"""Several evaluations by one name: a first look, and what DINOv2's tables of whole images report."""
