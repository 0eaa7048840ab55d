"""Operators: one per file, each with a native and a slow reference version, registered with torch as cad_fast::<op>.

The names imported here are the public ones.
"""

from cad_fast.ops.bits_linear import bits_linear as bits_linear
from cad_fast.ops.count_bits import count_bits as count_bits
from cad_fast.ops.dispatch import backend_report as backend_report
from cad_fast.ops.dispatch import can_run as can_run
from cad_fast.ops.dispatch import get_backend as get_backend
from cad_fast.ops.dispatch import use_backend as use_backend
from cad_fast.ops.edited_conv2d import edited_conv2d as edited_conv2d
from cad_fast.ops.edited_linear import edited_linear as edited_linear
from cad_fast.ops.gated_conv2d import gated_conv2d as gated_conv2d
from cad_fast.ops.gated_linear import gated_linear as gated_linear
from cad_fast.ops.gram_bits import gram_bits as gram_bits
from cad_fast.ops.masked_conv2d import masked_conv2d as masked_conv2d
from cad_fast.ops.masked_linear import masked_linear as masked_linear
from cad_fast.ops.masked_linear_scores import masked_linear_scores as masked_linear_scores
from cad_fast.ops.pack_bits import pack_bits as pack_bits
from cad_fast.ops.seeded_mask import seeded_mask as seeded_mask
from cad_fast.ops.unpack_bits import unpack_bits as unpack_bits
