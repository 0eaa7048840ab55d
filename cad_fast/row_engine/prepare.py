"""From ablations, numbered over a whole component space, to the form of each module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..components.ablation import Ablation, stacked_words
from ..components.module_components import ModuleComponents
from ..components.packed import WORD_BITS, set_bits
from ..components.space import ComponentSpace
from ..diffusion.structure import Layer
from ..ops.on_host import count_bits, pack_bits, unpack_bits
from .forms import Edited, Gated, Masked

EDITED_BELOW = 0.02
"""Up to this part of a module's weights in each variant, ablated weights are listed rather than masked. Listing 2%
takes 0.24 bytes per weight against 0.125 for a mask, but patching what is listed costs less than testing each."""


class WordSets:
    """The components of each variant, cut into modules from packed words over the whole space."""

    def __init__(self, ablations: Sequence[Ablation | None], space: ComponentSpace) -> None:
        self._stacked = stacked_words(ablations, space.n)

    def of(self, number: int, entry: ModuleComponents) -> WordSet:
        first, shift = divmod(entry.offset, WORD_BITS)
        last = first + (shift + entry.count + WORD_BITS - 1) // WORD_BITS
        words = self._stacked[:, first:last]
        if shift or entry.count % WORD_BITS:
            words = pack_bits(unpack_bits(words, shift + entry.count)[:, shift:])
        return WordSet(entry, words.contiguous())


class WordSet:
    """The components of each variant in one module, from packed words [V, ceil(count / 32)]."""

    def __init__(self, entry: ModuleComponents, words: Tensor) -> None:
        self._entry, self._words = entry, words
        self.counts: list[int] = count_bits(words).tolist()

    def words(self) -> Tensor:
        """[V, N, ceil(K / 32)], int32, each row of the weight starting a word."""
        shape = (len(self._words), self._entry.rows)
        if self._entry.columns % WORD_BITS == 0:
            return self._words.view(*shape, -1)
        return pack_bits(unpack_bits(self._words, self._entry.count).view(*shape, -1))

    def indices(self) -> Tensor:
        """[sum of counts], int64: the components of all variants, one after the other."""
        return set_bits(self._words.view(-1)) % (self._words.shape[1] * WORD_BITS)


class IndexSets:
    """The components of each variant, cut into modules from sorted indices over the whole space."""

    def __init__(self, ablations: Sequence[Ablation | None], space: ComponentSpace) -> None:
        none = torch.empty(0, dtype=torch.int64)
        bounds = torch.tensor([*(entry.offset for entry in space), space.n])
        self._indices = [none if ablation is None else ablation.indices for ablation in ablations]
        self._cuts = [torch.searchsorted(indices, bounds).tolist() for indices in self._indices]

    def of(self, number: int, entry: ModuleComponents) -> IndexSet:
        own = [slice(cuts[number], cuts[number + 1]) for cuts in self._cuts]
        parts = [indices[part] - entry.offset for indices, part in zip(self._indices, own, strict=True)]
        return IndexSet(entry, parts, own)


class IndexSet:
    """The components of each variant in one module, from indices; ``own`` says where they are in their ablation."""

    def __init__(self, entry: ModuleComponents, parts: list[Tensor], own: list[slice]) -> None:
        self._entry, self._parts, self.own = entry, parts, own
        self.counts = [len(part) for part in parts]

    def words(self) -> Tensor:
        """As ``WordSet.words``."""
        rows, columns = self._entry.rows, self._entry.columns
        words = torch.zeros(len(self._parts), rows * -(-columns // WORD_BITS), dtype=torch.int32)
        for variant, part in enumerate(self._parts):
            row, column = part // columns, part % columns
            bits = torch.ones((), dtype=torch.int32) << (column % WORD_BITS).to(torch.int32)
            words[variant].index_add_(0, row * -(-columns // WORD_BITS) + column // WORD_BITS, bits)
        return words.view(len(self._parts), rows, -1)

    def indices(self) -> Tensor:
        """As ``WordSet.indices``."""
        return torch.cat(self._parts)


def prepare_weights(
    ablations: Sequence[Ablation | None], space: ComponentSpace, with_words: bool
) -> tuple[dict[str, Masked | Edited], dict[str, Tensor]]:
    """The forms of the modules in which a variant ablates weights; with ``with_words`` of all, and their words."""
    factors = [0.0 if ablation is None else ablation.factor for ablation in ablations]
    listed = all(ablation is None or ablation.form == "indices" for ablation in ablations)
    listed = listed or any(isinstance(factor, Tensor) for factor in factors)
    sets = (IndexSets if listed else WordSets)(ablations, space)
    forms: dict[str, Masked | Edited] = {}
    words: dict[str, Tensor] = {}
    for number, entry in enumerate(space):
        own = sets.of(number, entry)
        if not with_words and not any(own.counts):
            continue
        one_each = not any(count and isinstance(f, Tensor) for count, f in zip(own.counts, factors, strict=True))
        if one_each and max(own.counts) > EDITED_BELOW * entry.count:
            forms[entry.module] = _masked(own, factors)
        else:
            forms[entry.module] = _edited(own, factors)
        if with_words:
            form = forms[entry.module]
            words[entry.module] = form.words if isinstance(form, Masked) else own.words()
    return forms, words


def _masked(own: WordSet | IndexSet, factors: list[float | Tensor]) -> Masked:
    used = [factor if count else 0.0 for count, factor in zip(own.counts, factors, strict=True)]
    return Masked(own.words(), torch.tensor(used, dtype=torch.float32) if any(used) else None)


def _edited(own: WordSet | IndexSet, factors: list[float | Tensor]) -> Edited:
    offsets = torch.tensor([0, *own.counts]).cumsum(0)
    if any(isinstance(factor, Tensor) for factor in factors):
        assert isinstance(own, IndexSet), "prepare_weights lists the components where a factor is a tensor"
        parts = [
            factor[part].float() if isinstance(factor, Tensor) else torch.full((count,), factor, dtype=torch.float32)
            for factor, part, count in zip(factors, own.own, own.counts, strict=True)
        ]
        return Edited(offsets, own.indices(), torch.cat(parts))
    each = torch.tensor(factors, dtype=torch.float32).repeat_interleave(torch.tensor(own.counts))
    return Edited(offsets, own.indices(), each)


def prepare_gates(
    ablations: Sequence[Ablation | None], space: ComponentSpace, modules: Mapping[str, Layer], with_gradients: bool
) -> dict[str, Gated]:
    """The gates of the modules in which a variant ablates something; ``with_gradients`` of all, as leaf tensors."""
    kept = torch.ones(space.n, dtype=torch.float64)
    gates = torch.stack([kept if ablation is None else ablation.gates for ablation in ablations])
    forms = {}
    leaves: dict[int, Tensor] = {}
    for entry in space:
        own = gates[:, entry.offset : entry.offset + entry.count]
        if not with_gradients and bool((own == 1).all()):
            continue
        weight = modules[entry.module].weight
        scales = with_gradients or not bool(((own == 0) | (own == 1)).all())
        drops = not with_gradients and bool((own == 0).any())
        keep = _kept(own != 0, entry).to(weight.device) if drops else None
        leaf = leaves.get(entry.offset)  # one for all shares of the same components, so that it has their gradient
        if leaf is None:
            leaf = own.to(weight.device, weight.dtype, copy=True).requires_grad_(with_gradients)
            leaves[entry.offset] = leaf
        forms[entry.module] = Gated(leaf, entry, scales, keep)
    return forms


def _kept(gates: Tensor, entry: ModuleComponents) -> Tensor:
    """Which filters, or else which columns, are not dropped, bool [V, filters or columns]."""
    return gates if entry.kind == "filter" else entry.per_column(gates, True)
