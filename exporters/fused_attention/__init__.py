"""The operator `toolkit::FusedAttention`: schema, torch operator, translation to ONNX, function body, node reading.

Reading and giving meaning to nodes needs no torch and is exported here. The PyTorch side is imported from its own
modules: `torch_op` (`fused_attention`), `translation` (`TRANSLATIONS`) and `interface` (`register`, `NAME`).
"""

from exporters.fused_attention.function import attach_function, remove_function
from exporters.fused_attention.node import FusedAttention, attention_nodes, is_attention, read
from exporters.fused_attention.schema import DOMAIN, OP_TYPE, SCHEMA, VERSION

__all__ = [
    "DOMAIN",
    "OP_TYPE",
    "SCHEMA",
    "VERSION",
    "FusedAttention",
    "attach_function",
    "attention_nodes",
    "is_attention",
    "read",
    "remove_function",
]
