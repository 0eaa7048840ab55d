"""A metric for eval-unlearn that needs no download: objects told by the zoo's own classifier."""

from __future__ import annotations

from eval_unlearn.types import Dataset, MetricResult
from torch.utils.data import DataLoader

from cad_fast import zoo


class EmojiAccuracy:
    """The share of pictures in which the classifier sees the object that is asked for."""

    def __init__(self, objects: list[str], batch_size: int) -> None:
        self.prompts = [(name, zoo.caption(name, "noto")) for name in objects]
        self.batch_size = batch_size
        self.scorer = zoo.scorer()
        self.hits: list[bool] = []

    def load_dataset(self) -> DataLoader:
        def collate(batch: list[tuple[str, str]]) -> Dataset:
            names, prompts = zip(*batch, strict=True)
            return Dataset(list(prompts), {"source": "emoji", "categories": list(names)})

        return DataLoader(self.prompts, batch_size=self.batch_size, collate_fn=collate)

    def update(self, images: list, prompts: list[str], metadata: dict) -> None:
        assert len(images) == len(prompts) == len(metadata["categories"])
        seen = self.scorer(images)["object"].argmax(1).tolist()
        objects = self.scorer.axes["object"]
        self.hits += [objects[i] == name for i, name in zip(seen, metadata["categories"], strict=True)]

    def compute(self) -> MetricResult:
        return MetricResult("emoji accuracy", sum(self.hits) / len(self.hits), {"n": len(self.hits)})
