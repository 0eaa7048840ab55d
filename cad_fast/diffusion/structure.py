"""What each linear and convolution of a denoiser is: read from how its modules are built, not from one model's names.

diffusers' models name the same thing in many ways (``ff.net.2``, ``w2``, ``down_proj``, ``conv_point``). Three facts
hold for all of them, and everything here follows from these:

- A feed-forward widens rows from D to H and comes back from H to D, inside one container of a repeated block. A gated
  one widens twice (D to H, or D to 2H). A single-stream block reads attention and hidden units by one matrix of A + H
  columns.
- An attention is the module that holds the projections of queries, keys and values. Those have few names.
- What embeds timesteps and texts, and what modulates norms, is made of classes of diffusers' ``embeddings`` and
  ``normalization``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from torch import nn

Layer: TypeAlias = nn.Linear | nn.Conv2d
"""What has components: the modules of a denoiser that can be ablated and edited."""

Part = Literal[
    "feed-forward", "attention", "attention and feed-forward", "embedding", "modulation", "convolution", "other"
]
Stream = Literal["image", "text", "joint"]

# Projections of an attention by the last parts of their paths, and whether they are of the text in a joint attention.
_PROJECTIONS: dict[str, tuple[str, re.Pattern[str]]] = {
    "query": ("image", re.compile(r"to_q|to_query|q_linear|q_proj|query")),
    "key": ("image", re.compile(r"to_k|to_key|k_linear|k_proj|key")),
    "value": ("image", re.compile(r"to_v|to_value|v_linear|v_proj|value")),
    "query, key and value": ("image", re.compile(r"to_qkv|qkv|img_qkv_proj|img_attn_qkv")),
    "key and value": ("image", re.compile(r"to_kv|kv_linear|kv")),
    "query, key, value and hidden": ("image", re.compile(r"to_qkv_mlp_proj")),
    "out": ("image", re.compile(r"to_out(\.0)?|out_layer|out_proj|proj_out|proj|proj_attn|img_attn_proj")),
    "text query": ("text", re.compile(r"add_q_proj|to_q_t")),
    "text key": ("text", re.compile(r"add_k_proj|to_k_t")),
    "text value": ("text", re.compile(r"add_v_proj|to_v_t")),
    "text query, key and value": ("text", re.compile(r"to_added_qkv|txt_attn_qkv")),
    "text key and value": ("text", re.compile(r"txt_kv_proj")),
    "text out": ("text", re.compile(r"to_add_out|to_out_t(\.0)?|txt_attn_proj")),
}
_FEED_FORWARD_NAME = re.compile(r"(.*_)?(ff|ffn|mlp)(_.*)?|feed_forward|.*FeedForward.*|.*Mlp|.*MLP|.*GLU.*")
_DOWN_NAME = re.compile(r"w2|wo|(.*_)?down(_.*)?|(.*_)?out(_.*)?|linear_fc2|fc2|conv_point")
_MODULATION_NAME = re.compile(r"ada_?ln.*|(.*_)?mod(ulation)?s?(_.*)?|(.*_)?norm.*|scale_shift.*", re.IGNORECASE)
_TEXT_PART = re.compile(r"(.*_)?(text|txt|context)(_.*)?|ff_t|token_refiner|y_embedder")


@dataclass(frozen=True)
class LayerRole:
    """What one linear or convolution is.

    Attributes:
        part: the kind of layer that it belongs to.
        function: which of its projections it is, such as "in", "out", "key" or "text value"; "" where there is one.
        stream: whose rows it sees: the picture's, the text's, or both side by side.
        cross: for a projection of an attention, whether its keys or values are of the text and read by the picture.
        hidden: the columns that read the hidden units of a feed-forward, [first, last), or None.
        heads: the columns that read the heads of an attention, [first, last), or None.
        head_width: the columns of one head, 0 without ``heads``.
        with_heads_of: the path of the layer that reads the picture's share of the same heads, for the text's share.
    """

    part: Part
    function: str = ""
    stream: Stream = "image"
    cross: bool = False
    hidden: tuple[int, int] | None = None
    heads: tuple[int, int] | None = None
    head_width: int = 0
    with_heads_of: str | None = None

    def __str__(self) -> str:
        words = [self.stream if self.stream != "image" else "", "cross" if self.cross else "", self.part]
        kind = " ".join(word for word in words if word)
        return f"{kind}: {self.function}" if self.function else kind


def base_name(name: str) -> str:
    """A module path without the level that a PEFT adapter inserts."""
    return name.replace(".base_layer", "")


def base_modules(denoiser: nn.Module) -> dict[str, Layer]:
    """Every linear and 2-D convolution by its path, adapters looked through (``to_q``, not ``to_q.base_layer``)."""
    return {
        base_name(name): module
        for name, module in denoiser.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and ".lora_" not in name
    }


def layer_roles(denoiser: nn.Module) -> dict[str, LayerRole]:
    """What each linear and 2-D convolution of ``denoiser`` is, by its path, in the model's order."""
    return _Structure(denoiser).roles()


@dataclass
class _Structure:
    """A denoiser's modules by path, and what is known of them so far."""

    denoiser: nn.Module
    layers: dict[str, Layer] = field(init=False)
    modules: dict[str, nn.Module] = field(init=False)
    noted: dict[str, LayerRole] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.layers = base_modules(self.denoiser)
        self.modules = {base_name(name): module for name, module in self.denoiser.named_modules()}
        below: dict[str, list[str]] = {}
        for path in self.layers:
            for container in _parents(path):
                below.setdefault(container, []).append(path)
        self._below = below

    def roles(self) -> dict[str, LayerRole]:
        containers = [name for name in self._below if not self._is_outside(name)]
        for container in containers:
            self._attention(container)
        for container in containers:
            self._feed_forward(container)
        return {path: self.noted.get(path) or self._other(path) for path in self.layers}

    # A container's own layers.

    def _leaves(self, container: str) -> dict[str, Layer]:
        """The layers that are the container's children, or alone in a child of it (``GELU.proj``), by path."""
        leaves = {}
        for path in self._below.get(container, ()):
            child = ".".join(path.split(".")[: _depth(container) + 1])
            if child == path or (len(self._below.get(child, ())) == 1 and not self._is_outside(child)):
                leaves[path] = self.layers[path]
        return leaves

    def _is_outside(self, container: str) -> bool:
        """Whether a container embeds or modulates, so that what it holds is neither attention nor feed-forward."""
        return any(self._embeds(name) or self._modulates(name) for name in [*_parents(container), container] if name)

    def _embeds(self, name: str) -> bool:
        return type(self.modules[name]).__module__.startswith("diffusers.models.embeddings")

    def _modulates(self, name: str) -> bool:
        module = self.modules[name]
        named = _MODULATION_NAME.fullmatch(name.rsplit(".", 1)[-1]) is not None
        return named or type(module).__module__.startswith("diffusers.models.normalization")

    def _other(self, path: str) -> LayerRole:
        stream = _stream_of(path)
        names = [name for name in [*_parents(path), path] if name]
        if any(self._modulates(name) for name in names):
            return LayerRole("modulation", stream=stream)
        linear = isinstance(self.layers[path], nn.Linear)
        if any(self._embeds(name) for name in names) or (linear and not _in_block(path)) or "time_emb" in path:
            return LayerRole("embedding", stream=stream)
        return LayerRole("other" if linear else "convolution", stream=stream)

    # Attention.

    def _attention(self, container: str) -> None:
        """Note what the projections of ``container`` are, if it is an attention."""
        projections = self._projections(container)
        if not any("key" in function for function in projections.values()):
            return
        attention = self.modules[container]
        by_text, cross = _reads_text(attention, container, set(projections.values()))
        whole_text = _stream_of(container) == "text"
        for path, function in projections.items():
            stream: Stream = "text" if whole_text or _PROJECTIONS[function][0] == "text" else "image"
            added = function.startswith("text") and not by_text  # of a picture that conditions, beside the text
            reads = not added and (cross or (by_text and stream == "text" and not whole_text))
            stream = "image" if added else stream
            self.noted[path] = LayerRole("attention", function, stream, reads)
        outs = [path for path, function in projections.items() if function in ("out", "text out")]
        self._heads(container, outs)

    def _projections(self, container: str) -> dict[str, str]:
        projections = {}
        for path in self._below.get(container, ()):
            last = path[len(container) + 1 :] if container else path
            name = next((name for name, (_, known) in _PROJECTIONS.items() if known.fullmatch(last)), None)
            if name is not None:
                projections[path] = name
        return projections

    def _heads(self, container: str, outs: list[str]) -> None:
        attention = self.modules[container]
        first: str | None = None
        for path in sorted(outs, key=lambda path: self.noted[path].function != "out"):
            layer = self.layers[path]
            if not isinstance(layer, nn.Linear):
                continue
            fused = next((each for each in self._below[container] if each.endswith("to_qkv_mlp_proj")), None)
            role = self.noted[path]
            if fused is not None:
                self._parallel(attention, fused, path)
                continue
            width = _head_width(attention, layer.in_features)
            if width is None:
                continue
            tied = first if role.function == "text out" and first is not None else None
            tied = tied if tied and self._columns(tied) == layer.in_features else None
            self.noted[path] = replace(role, heads=(0, layer.in_features), head_width=width, with_heads_of=tied)
            first = first or path

    def _parallel(self, attention: nn.Module, fused: str, out: str) -> None:
        """Note an attention that computes a feed-forward beside itself (Flux2): in and out are one matrix each."""
        heads = _number(attention, "heads", "num_heads")
        width = _number(attention, "head_dim", "dim_head") or 0
        columns, inner = self._columns(out), (heads or 0) * width
        part: Part = "attention and feed-forward"
        self.noted[fused] = LayerRole(part, "query, key, value and hidden", "joint")
        known = heads and width and 0 < inner < columns
        self.noted[out] = LayerRole(
            part,
            "out",
            "joint",
            hidden=(inner, columns) if known else None,
            heads=(0, inner) if known else None,
            head_width=width if known else 0,
        )

    def _columns(self, path: str) -> int:
        return self.layers[path].weight.shape[1]

    # Feed-forward.

    def _feed_forward(self, container: str) -> None:
        """Note what the layers of ``container`` are, if some of them are a feed-forward of a repeated block."""
        if not _in_block(container):
            return
        leaves = {p: layer for p, layer in self._leaves(container).items() if p not in self.noted and _pointwise(layer)}
        for down in sorted(leaves, key=lambda path: -_is_down(path)):
            beside = self._beside_attention(container, leaves[down])
            for extra in {0, beside}:
                ups = self._ups(leaves, down, extra) or self._chained(container, leaves, down)
                if ups and (extra or self._widens(container, leaves, down, ups)):
                    return self._note_feed_forward(container, ups, down, extra)

    def _ups(self, leaves: Mapping[str, Layer], down: str, extra: int) -> list[str]:
        """The layers that widen to the hidden units which ``down`` reads behind ``extra`` columns of attention."""
        width, inner = leaves[down].weight.shape[:2]
        hidden = inner - extra
        ups = [
            path
            for path, layer in leaves.items()
            if path != down and layer.weight.shape[1] == width and layer.weight.shape[0] in (hidden, 2 * hidden)
        ]
        return ups if len(ups) <= 2 and (not extra or len(ups) == 1) else []

    def _chained(self, container: str, leaves: Mapping[str, Layer], down: str) -> list[str]:
        """The first of two layers in a row, which may read more than the second gives, such as a skip connection."""
        if not isinstance(self.modules[container], nn.Sequential) or len(leaves) != 2 or down != list(leaves)[-1]:
            return []
        first = next(iter(leaves))
        return [first] if leaves[first].weight.shape[0] == leaves[down].weight.shape[1] else []

    def _widens(self, container: str, leaves: Mapping[str, Layer], down: str, ups: list[str]) -> bool:
        width, hidden = leaves[down].weight.shape[:2]
        if hidden > width:
            return True
        # As many hidden units as inputs, or fewer: a name has to say that it is one, and which layer is the last.
        names = [*container.split("."), type(self.modules[container]).__name__]
        named = any(_FEED_FORWARD_NAME.fullmatch(name) for name in names)
        return named and len(leaves) == len(ups) + 1 and (_is_down(down) or down == list(leaves)[-1])

    def _beside_attention(self, container: str, layer: Layer) -> int:
        """The width of the attention whose output ``layer`` reads beside hidden units, 0 if there is none."""
        if not isinstance(layer, nn.Linear):
            return 0
        for path in self._below[container]:
            role = self.noted.get(path)
            direct = path.count(".") == _depth(container) + 1
            if direct and role is not None and role.part == "attention" and role.function == "value":
                has_out = any(
                    self.noted[other].function == "out"
                    for other in self._below[path.rpartition(".")[0]]
                    if other in self.noted
                )
                heads = self.layers[path].weight.shape[0]
                return 0 if has_out or heads >= layer.in_features else heads
        return 0

    def _note_feed_forward(self, container: str, ups: list[str], down: str, extra: int) -> None:
        stream = _stream_of(container)
        columns = self._columns(down)
        for path in ups:
            self.noted[path] = LayerRole("feed-forward", "in", "joint" if extra else stream)
        if not extra:
            self.noted[down] = LayerRole("feed-forward", "out", stream, hidden=(0, columns))
            # What stands between widening and narrowing, as the depthwise convolution of Sana's.
            for path in self._leaves(container):
                if path not in self.noted and isinstance(self.layers[down], nn.Conv2d):
                    self.noted[path] = LayerRole("feed-forward", "between", stream)
            return
        attention = next(
            self.modules[path.rpartition(".")[0]]
            for path in self._below[container]
            if path in self.noted and self.noted[path].function == "value"
        )
        width = _head_width(attention, extra)
        self.noted[down] = LayerRole(
            "attention and feed-forward",
            "out",
            "joint",
            hidden=(extra, columns),
            heads=(0, extra) if width else None,
            head_width=width or 0,
        )


def _parents(path: str) -> Iterator[str]:
    """The containers of a path, from the denoiser itself ("") to the nearest."""
    parts = path.split(".")
    for end in range(len(parts)):
        yield ".".join(parts[:end])


def _depth(container: str) -> int:
    return len(container.split(".")) if container else 0


def _in_block(path: str) -> bool:
    """Whether a path goes through an element of a list of modules."""
    return any(part.isdigit() for part in path.split("."))


def _stream_of(path: str) -> Stream:
    parts = path.split(".")
    if any(re.fullmatch(r"single_(transformer_)?blocks", part) for part in parts):
        return "joint"
    return "text" if any(_TEXT_PART.fullmatch(part) for part in parts) else "image"


def _pointwise(layer: Layer) -> bool:
    """Whether a layer is a linear map of channels alone."""
    if isinstance(layer, nn.Linear):
        return True
    return layer.groups == 1 and layer.kernel_size == (1, 1)


def _is_down(path: str) -> bool:
    return any(_DOWN_NAME.fullmatch(part) is not None for part in path.split(".")[-2:])


def _number(module: nn.Module, *names: str) -> int | None:
    return next((value for name in names if isinstance(value := getattr(module, name, None), int)), None)


def _head_width(attention: nn.Module, columns: int) -> int | None:
    """The columns of one head among ``columns``, or None where the module does not tell."""
    heads = _number(attention, "heads", "num_heads", "n_heads", "num_attention_heads")
    if heads:
        return columns // heads if columns % heads == 0 else None
    width = _number(attention, "head_dim", "dim_head")
    return width if width and columns % width == 0 else None


def _reads_text(attention: nn.Module, path: str, functions: set[str]) -> tuple[bool, bool]:
    """Whether the picture reads the text by the text's own projections, and whether by the plain keys and values."""
    says_cross = getattr(attention, "is_cross_attention", None)
    by_text = bool(functions & {"text key", "text key and value", "text query, key and value"})
    plain_class = type(attention).__module__.startswith("diffusers.models.attention_processor")
    if by_text and (plain_class or "text query" in functions or not says_cross):
        return True, False
    if by_text:
        return False, True  # Wan: keys and values of the text, and added ones of a picture that conditions
    if says_cross is not None:
        return False, bool(says_cross)
    last = path.rsplit(".", 1)[-1]
    return False, last.endswith("attn2") or "cross" in last.lower() or "Cross" in type(attention).__name__
