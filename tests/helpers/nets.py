"""A small network with all that deployment has to look at."""

from torch import nn


class Residual(nn.Module):
    """A stem, a bottleneck with a depthwise conv, a shortcut, an average, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.act = nn.ReLU()
        self.expand, self.norm1 = nn.Conv2d(16, 48, 3, padding=1), nn.BatchNorm2d(48)
        self.dw = nn.Conv2d(48, 48, 3, padding=1, groups=48)
        self.project, self.norm2 = nn.Conv2d(48, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.act(self.norm(self.stem(x)))
        y = self.dw(self.act(self.norm1(self.expand(x))))
        x = self.act(x + self.norm2(self.project(y)))
        return self.head(self.drop(x.mean((2, 3))))
