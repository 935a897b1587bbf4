"""Drawn pictures and questions about them, for the tiny model that sees.

A picture has two rows of two places. One to four of them have a shape; within a picture no two shapes are of one kind,
and no two of one colour. Size, place, shade, background and noise are drawn anew for each.

    What colour is the circle?              red
    What shape is red?                      circle
    Which shape is left of the star?        circle          (right of, above, below)
    What is at the top left?                red circle      (or: nothing)
    How many shapes are there?              three

Who does not see the picture guesses: of six colours, of five shapes or the four others, of four counts; of the places
asked about a quarter are empty.
"""

import dataclasses

import numpy as np

COLOURS = {
    "red": (0.85, 0.10, 0.12), "green": (0.10, 0.62, 0.16), "blue": (0.12, 0.25, 0.88),
    "yellow": (0.95, 0.86, 0.10), "purple": (0.55, 0.14, 0.66), "orange": (0.97, 0.50, 0.06),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
PLACES = ("top left", "top right", "bottom left", "bottom right")
COUNTS = ("one", "two", "three", "four")
# From the place of the shape asked about to that of the shape named: how far along the rows, how far down.
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
KINDS = ("colour", "shape", "relation", "place", "count")
WORDS = (
    [*COLOURS, *SHAPES, *COUNTS, "nothing", "What", "Which", "How", "many", "shapes", "are", "there", "is", "at", "the"]
    + ["colour", "shape", "left", "right", "of", "above", "below", "top", "bottom", "A"]
)


@dataclasses.dataclass
class Scene:
    """{place 0..3: (shape, colour)}, places in PLACES's order, and at most one of the places left, to be asked about."""

    shapes: dict
    empty: list

    @classmethod
    def draw(cls, rng, count):
        places = rng.permutation(4).tolist()
        kinds, colours = rng.permutation(SHAPES)[:count], rng.permutation(list(COLOURS))[:count]
        shapes = {place: (str(kind), str(colour)) for place, kind, colour in zip(places, kinds, colours)}
        return cls(shapes, places[count : count + 1])

    def questions(self, kind):
        """All (question, answer) of that kind."""
        match kind:
            case "colour":
                return [(f"What colour is the {shape}?", colour) for shape, colour in self.shapes.values()]
            case "shape":
                return [(f"What shape is {colour}?", shape) for shape, colour in self.shapes.values()]
            case "relation":
                return list(self.relations())
            case "place":
                said = {place: f"{colour} {shape}" for place, (shape, colour) in self.shapes.items()}
                said |= {place: "nothing" for place in self.empty}
                return [(f"What is at the {PLACES[place]}?", answer) for place, answer in said.items()]
            case "count":
                return [("How many shapes are there?", COUNTS[len(self.shapes) - 1])]

    def relations(self):
        for place, (shape, _) in self.shapes.items():
            for relation, (right, down) in RELATIONS.items():
                column, row = place % 2 + right, place // 2 + down
                other = self.shapes.get(2 * row + column) if column in (0, 1) and row in (0, 1) else None
                if other:
                    yield f"Which shape is {relation} the {shape}?", other[0]


def inside(shape, x, y):
    """Whether points are in a shape about the origin of radius 1."""
    if shape == "circle":
        return x * x + y * y < 0.85
    if shape == "square":
        return np.maximum(abs(x), abs(y)) < 0.8
    if shape == "triangle":
        return (y < 0.75) & (abs(x) * 1.8 < y + 0.95)
    if shape == "cross":
        return (np.minimum(abs(x), abs(y)) < 0.28) & (np.maximum(abs(x), abs(y)) < 0.92)
    # A star's edge runs straight from a point, at radius 1, to a notch, at 0.4, a tenth of a turn on.
    turn = np.arctan2(x, -y) % (2 * np.pi / 5)
    turn = np.minimum(turn, 2 * np.pi / 5 - turn)
    notch = 0.4 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    px, py = np.hypot(x, y) * np.cos(turn), np.hypot(x, y) * np.sin(turn)
    return (px - 1.0) * notch[1] - py * (notch[0] - 1.0) < 0.0


def paint(scene, rng, height=96, width=96):
    """The picture of a scene, [height, width, 3] u8. Four points a pixel decide how much of it a shape covers."""
    dark = rng.random() < 0.5
    canvas = np.full((height, width, 3), rng.uniform(0.0, 0.2) if dark else rng.uniform(0.8, 1.0))
    offsets = np.array([-0.25, 0.25])
    for place, (shape, colour) in scene.shapes.items():
        # In shares of the picture.
        centre = np.array([place % 2, place // 2]) * 0.5 + 0.25 + rng.uniform(-0.04, 0.04, 2)
        radius = rng.uniform(0.15, 0.20)
        x = ((np.arange(width)[:, None] + 0.5 + offsets) / width - centre[0]).reshape(-1) / radius
        y = ((np.arange(height)[:, None] + 0.5 + offsets) / height - centre[1]).reshape(-1) / radius
        hit = inside(shape, x[None, :], y[:, None])
        covered = hit.reshape(height, 2, width, 2).mean(axis=(1, 3))[..., None]
        shade = np.clip(np.array(COLOURS[colour]) + rng.uniform(-0.06, 0.06, 3), 0.0, 1.0)
        canvas = canvas * (1.0 - covered) + shade * covered
    canvas = canvas + rng.normal(0.0, rng.uniform(0.0, 0.03), canvas.shape)
    return (np.clip(canvas, 0.0, 1.0) * 255.0).round().astype(np.uint8)
