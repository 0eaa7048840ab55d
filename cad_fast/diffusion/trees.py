"""Nested arguments of a denoiser as leaves with paths, and which of them belong to rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

# Arguments that hold positions or layer numbers: shared by all rows even where their length happens to equal the rows.
SHARED_NAMES = frozenset(
    {"img_ids", "txt_ids", "image_rotary_emb", "rotary_emb", "freqs_cis", "skip_layers"}
    | {"visual_rope_pos", "text_rope_pos"}
)
SCALARS = (type(None), bool, int, float, str)


def _has_tensor(tree: Any) -> bool:
    if isinstance(tree, dict):
        return any(_has_tensor(value) for value in tree.values())
    if isinstance(tree, (list, tuple)):
        return any(_has_tensor(value) for value in tree)
    return isinstance(tree, Tensor)


def map_leaves(tree: Any, function: Callable[[str, Any], Any], path: str = "") -> Any:
    """``tree`` with each leaf replaced by ``function(path, leaf)``.

    A leaf is a tensor, or anything that holds no tensor at any depth; a path reads ``added_cond_kwargs.time_ids``.
    """
    if isinstance(tree, Tensor) or not _has_tensor(tree):
        return function(path, tree)
    if isinstance(tree, dict):
        return {key: map_leaves(value, function, f"{path}.{key}" if path else str(key)) for key, value in tree.items()}
    return type(tree)([map_leaves(value, function, f"{path}.{i}") for i, value in enumerate(tree)])


def map_arguments(inputs: Mapping[str, Any], function: Callable[[str, Any], Any]) -> dict[str, Any]:
    """``map_leaves`` over each argument by name (so that an argument without tensors is one leaf, not the whole)."""
    return {name: map_leaves(value, function, name) for name, value in inputs.items()}


def leaves(inputs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(path, leaf) of each leaf of the arguments."""
    collected: list[tuple[str, Any]] = []
    map_arguments(inputs, lambda path, leaf: collected.append((path, leaf)))
    return iter(collected)


def same_leaf(first: Any, second: Any) -> bool:
    """Whether two leaves, or two trees of them, hold the same values. NaN is the same as NaN."""
    if first is second:
        return True
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
            return False
        if first.shape != second.shape or first.dtype != second.dtype:
            return False
        second = second.to(first.device)
        return torch.equal(first, second) or bool(((first == second) | (first.isnan() & second.isnan())).all())
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same_leaf(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(same_leaf(a, b) for a, b in zip(first, second, strict=True))
    return type(first) is type(second) and bool(first == second)


def find_row_paths(inputs: Mapping[str, Any], rows: int) -> frozenset[str]:
    """Paths of the leaves with one entry per row: tensors whose first dimension is ``rows``, lists of that length."""

    def belongs_to_rows(path: str, leaf: Any) -> bool:
        if SHARED_NAMES & set(path.split(".")):
            return False
        if isinstance(leaf, Tensor):
            return leaf.ndim > 0 and len(leaf) == rows
        return isinstance(leaf, list) and len(leaf) == rows

    return frozenset(path for path, leaf in leaves(inputs) if belongs_to_rows(path, leaf))
