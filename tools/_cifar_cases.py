"""The rows of the CIFAR study: what is converted, how it starts, by what recipe it is tuned."""

from dataclasses import dataclass, field, replace
from typing import Any

from ghost_plugin.training.config import Recipe

TEACHER = Recipe(epochs=3, lr=0.02, hard=1.0, soft=0.0)
# Of six recipes the best after 1.5 epochs: 84.5; with a tenth of the loss on labels 84.1 to 84.3.
STUDENT = Recipe(lr=0.04, weight_decay=1e-4, hard=0.0, soft=1.0, temperature=8.0)
# Of many epochs: labels tell what the teacher, tuned for a few epochs, does not know itself.
LONG = Recipe(lr=0.1, weight_decay=5e-4, hard=0.5, soft=0.5, temperature=4.0)


@dataclass(frozen=True)
class Case:
    """One line of the table."""

    depth: int
    options: dict[str, Any] = field(default_factory=lambda: {'ratio': 2})
    start: str = 'block'  # 'fresh', 'kernels', 'pictures' or 'block'
    epochs: float = 1.5
    recipe: Recipe = STUDENT

    @property
    def name(self) -> str:
        what = ', '.join(f'{key} {value}' for key, value in self.options.items())
        return f'ResNet-{self.depth}, {what}, {self.start}, {self.epochs:g} epochs'


CASES = (
    *(Case(20, start=start, epochs=0) for start in ('kernels', 'pictures')),
    *(Case(20, start=start) for start in ('block', 'fresh')),
    *(Case(20, {'ratio': 4}, start) for start in ('block', 'fresh')),
    *(Case(20, {'macs': share}) for share in (0.75, 0.6, 0.52)),
    Case(20, epochs=6),
    Case(20, epochs=15, recipe=LONG),
    *(Case(56, start=start, epochs=1) for start in ('block', 'fresh')),
    *(Case(56, {'macs': share}, epochs=1) for share in (0.75, 0.6, 0.52)),
    Case(56, {'macs': 0.52}, epochs=20, recipe=replace(LONG, lr=0.05)),
)
