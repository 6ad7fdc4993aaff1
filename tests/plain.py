"""Prototype scores and probabilities that tests have as plain tensors, in the form that losses take."""

import torch

from dinoforge.loss.scores import Assignment, Scores


def scores(values):
    """These scores, in their own precision."""
    return Scores(values)


def given(probabilities):
    """These probabilities."""
    return Assignment(Scores(probabilities.detach().log()), torch.zeros(probabilities.shape[-1]))
