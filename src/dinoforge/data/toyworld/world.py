"""What a world consists of, and how it puts a picture together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dinoforge.data.toyworld.scene import FARTHEST, NEAREST, Body, Front, Ground, Layout, Light, Paint, Pose, Thing
from dinoforge.data.toyworld.scene import visible_share as share_seen

SHARE_SEEN = 0.5
"""Of the labelled thing's outline within the picture at least so much is hidden by nothing."""
_ATTEMPTS = 4
_CROWD = (1.0, 0.8, 0.7, 0.62)
"""Things are so much smaller where two, three or four are in the picture."""

Draw = np.random.Generator


@dataclass(frozen=True, slots=True)
class World:
    """Names of the classes, and who draws what; each function takes its numbers from the generator alone."""

    name: str
    classes: tuple[str, ...]
    body: Callable[[int, Draw], Body]
    """An individual of the class with that number."""
    paint: Callable[[Body, Draw], Paint]
    """Two colours of an individual in one picture."""
    ground: Callable[[Body, Draw], Ground]
    """Under the first of some individuals."""
    front: Callable[[Draw], Front]
    light: Callable[[Draw], Light]
    edition: int = 1
    """Goes up where pictures of the same numbers change: ids tell, and so no feature of the old ones is taken for theirs."""

    def arrange(self, bodies: Sequence[Body], rng: Draw) -> Layout:
        """A picture of these individuals: places, colours, light and surroundings are drawn.

        The first one is kept in sight: layouts that hide more than 1 - ``SHARE_SEEN`` of it are drawn again, and in
        the end it is put nearest with nothing in front.
        """
        ground, light = self.ground(bodies[0], rng), self.light(rng)
        for _ in range(_ATTEMPTS):
            things = self._things(bodies, rng)
            layout = Layout(things, ground, self.front(rng) if rng.random() < 0.5 else None, light)
            alone = len(things) == 1 and layout.front is None
            if alone or share_seen(layout) >= SHARE_SEEN:
                return layout
        first, *others = layout.things
        nearest = min(layout.things, key=lambda thing: thing.distance)
        others = [replace(thing, distance=first.distance) if thing is nearest else thing for thing in others]
        return replace(layout, things=(replace(first, distance=nearest.distance), *others), front=None)

    def _things(self, bodies: Sequence[Body], rng: Draw) -> tuple[Thing, ...]:
        crowd = _CROWD[len(bodies) - 1]
        ranks = rng.permutation(len(bodies)).tolist()
        slot = (FARTHEST - NEAREST) / len(bodies)
        things = []
        for number, (body, rank) in enumerate(zip(bodies, ranks, strict=True)):
            reach = 0.3 if number == 0 else 0.75
            pose = Pose(
                x=rng.uniform(-reach, reach),
                y=rng.uniform(-reach, reach),
                turn=rng.uniform(0, 2 * np.pi),
                scale=rng.uniform(0.42, 0.78) * crowd,
                flip=1.0 if rng.random() < 0.5 else -1.0,
            )
            # The last 0.2 m of a slot stay free: more than any thing is thick, so the near one is nearer everywhere.
            distance = NEAREST + 0.2 + rank * slot + rng.uniform(0, slot - 0.2)
            things.append(Thing(body, pose, self.paint(body, rng), distance))
        return tuple(things)
