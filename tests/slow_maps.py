"""A head's map on all pixels of a picture at once, as it is defined: next to it stands what is computed piece by piece."""

import numpy as np
import torch
import torch.nn.functional as F

from dinoforge.data.augment import resize
from dinoforge.evaluate.dense.cut import resized_to
from dinoforge.evaluate.dense.infer import windows


@torch.no_grad()
def seen_at_once(trunk, head, image):
    """What a head makes of an image as it is."""
    return trunk.on_pixels(head(trunk(image[None])).float(), *image.shape[1:])[0]


@torch.no_grad()
def seen_by_windows(trunk, head, image, *, window):
    """What a head makes of an image window by window; where several overlap, the mean of them."""
    height, width = image.shape[1:]
    tall, wide = min(window[0], height), min(window[1], width)
    total, count = 0, torch.zeros(1, height, width)
    for top, left in windows((height, width), window):
        part = image[:, top : top + tall, left : left + wide]
        around = (left, width - left - wide, top, height - top - tall)
        total = total + F.pad(seen_at_once(trunk, head, part), around)
        count[:, top : top + tall, left : left + wide] += 1
    return total / count


def predicted(trunk, head, pixels, config, *, short_side, window, answer=lambda scores: scores):
    """A head's map on the pixels of a picture; the mean of the answers over scales and mirrored pictures."""
    size, found = pixels.shape[:2], []
    picture = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    for scale in config.scales:
        image = resize(picture, *resized_to(size, short_side * scale))
        for mirrored in (False, True) if config.flip else (False,):
            shown = image.flip(-1) if mirrored else image
            if config.inference == "slide":
                scores = seen_by_windows(trunk, head, shown, window=window)
            else:
                scores = seen_at_once(trunk, head, shown)
            scores = F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
            found.append(answer(scores.flip(-1) if mirrored else scores))
    return torch.stack(found).mean(0)
