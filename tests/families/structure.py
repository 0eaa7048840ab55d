"""Where diffusers' classes keep their feed-forward layers and attention heads, written down class by class.

Nothing here looks at how modules are connected, or at the package's own table, which is held against this one.
"""

from __future__ import annotations

from torch import nn

# The class of a feed-forward layer -> its linear (or 1x1 convolution) that reads the hidden units.
OUTPUTS = {
    "Flux2FeedForward": "linear_out",
    "LuminaFeedForward": "linear_2",
    "AuraFlowFeedForward": "out_projection",
    "HiDreamImageFeedForwardSwiGLU": "w2",
    "AceStepMLP": "down_proj",
    "Krea2SwiGLU": "down",
    "Kandinsky5FeedForward": "out_layer",
    "PRXBlock": "down_proj",
    "AudioDiTFeedForward": "ff.3",
    "Kandinsky3AttentionBlock": "feed_forward.2",
    "ConvNextBlock": "channelwise_linear_2",
    "SDCascadeResBlock": "channelwise.4",
    "GLUMBConv": "conv_point",
    "GLUMBTempConv": "conv_point",
}
# The class of a block that is more than a feed-forward layer -> the names of what belongs to that.
PARTS_OF = {
    "PRXBlock": ("gate_proj", "up_proj", "down_proj"),
    "Kandinsky3AttentionBlock": ("feed_forward",),
    "ConvNextBlock": ("channelwise_linear_1", "channelwise_linear_2"),
    "SDCascadeResBlock": ("channelwise",),
}
# What reads attention and hidden units, or makes both: part of a feed-forward layer in a way, and in a way not.
EITHER = ("proj_out", "to_out", "to_qkv_mlp_proj")
# The class of an attention -> its output linears, and the name of its number of heads.
ATTENTIONS = {
    "HiDreamAttention": (("to_out", "to_out_t"), "heads"),
    "Krea2Attention": (("to_out.0",), "num_heads"),
    "Kandinsky5Attention": (("out_layer",), "num_heads"),
}


def is_parallel(module: nn.Module) -> bool:
    """Whether a block's last linear reads the outputs of its attention and of its feed-forward layer side by side."""
    return type(module).__name__.endswith("SingleTransformerBlock") and hasattr(module, "proj_mlp")


def _output_of(module: nn.Module) -> str | None:
    kind = type(module).__name__
    if kind == "FeedForward":
        if hasattr(module, "w2"):
            return "w2"
        return f"net.{max(i for i, part in enumerate(module.net) if isinstance(part, nn.Linear))}"
    return OUTPUTS.get(kind)


def _joined(*names: str) -> str:
    return ".".join(name for name in names if name)


def hidden_units(denoiser: nn.Module) -> dict[str, int]:
    """{module that reads hidden units: how many}."""
    found = {}
    for name, module in denoiser.named_modules():
        output = _output_of(module)
        if output is not None:
            weight = module.get_submodule(output).weight
            found[_joined(name, output)] = weight.shape[1]
        elif is_parallel(module):
            found[_joined(name, "proj_out")] = module.proj_out.in_features - module.attn.to_q.out_features
        elif type(module).__name__ == "Flux2ParallelSelfAttention":
            found[_joined(name, "to_out")] = module.to_out.in_features - module.inner_dim
    return found


def heads(denoiser: nn.Module) -> dict[str, int]:
    """{module that reads the outputs of heads: how many}."""
    found = {}
    for name, module in denoiser.named_modules():
        kind = type(module).__name__
        if is_parallel(module):
            found[_joined(name, "proj_out")] = module.attn.heads
        elif kind == "Flux2ParallelSelfAttention":
            found[_joined(name, "to_out")] = module.heads
        elif kind in ATTENTIONS:
            outputs, number = ATTENTIONS[kind]
            found |= {
                _joined(name, output): getattr(module, number)
                for output in outputs
                if hasattr(module, output.split(".")[0])
            }
        elif kind.endswith("Attention") and isinstance(getattr(module, "to_out", None), nn.ModuleList):
            found[_joined(name, "to_out.0")] = module.heads
            if isinstance(getattr(module, "to_add_out", None), nn.Linear):
                found[_joined(name, "to_add_out")] = module.heads
    return found


def feed_forward(denoiser: nn.Module) -> tuple[set[str], set[str]]:
    """The linears and 2-D convolutions of feed-forward layers, and those that are so in a way only."""
    sure, maybe = set(), set()
    for name, module in denoiser.named_modules():
        kind = type(module).__name__
        if is_parallel(module) or kind == "Flux2ParallelSelfAttention":
            sure |= {_joined(name, "proj_mlp")} if is_parallel(module) else set()
            maybe |= {_joined(name, part) for part in EITHER}
        elif _output_of(module) is not None:
            for path, part in module.named_modules():
                mine = kind not in PARTS_OF or path.split(".")[0] in PARTS_OF[kind]
                if mine and isinstance(part, (nn.Linear, nn.Conv2d)):
                    sure.add(_joined(name, path))
    return sure, maybe
