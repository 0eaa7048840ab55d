"""The small classifier that scores emoji pictures: which object, which style."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EmojiClassifier(nn.Module):
    """Images float [N, 3, 32, 32] in -1..1 -> (object logits [N, n_objects], style logits [N, n_styles])."""

    def __init__(self, n_objects: int = 12, n_styles: int = 3, width: int = 32) -> None:
        super().__init__()

        def block(c_in: int, c_out: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.GELU()
            )

        self.trunk = nn.Sequential(
            block(3, width, 1),
            block(width, width, 1),
            block(width, 2 * width, 2),
            block(2 * width, 2 * width, 1),
            block(2 * width, 4 * width, 2),
            block(4 * width, 4 * width, 1),
            block(4 * width, 4 * width, 2),
        )
        self.dropout = nn.Dropout(0.3)
        self.object_head = nn.Linear(4 * width, n_objects)
        self.style_head = nn.Linear(4 * width, n_styles)

    def features(self, images: Tensor) -> Tensor:
        """Images as in ``forward`` -> what both heads read, [N, 128] with the default width."""
        return self.trunk(images).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.dropout(self.features(images))
        return self.object_head(features), self.style_head(features)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images as in ``forward`` -> (object probabilities [N, n_objects], style probabilities [N, n_styles])."""
        objects, styles = self(images)
        return objects.softmax(-1), styles.softmax(-1)
