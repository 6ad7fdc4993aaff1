"""Corruptions of pictures, as in ImageNet-C."""
