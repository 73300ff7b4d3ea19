"""The ONNX schema of `toolkit::FusedAttention`, version 1."""

from __future__ import annotations

from onnx.defs import OpSchema

__all__ = ["DOMAIN", "OP_TYPE", "SCHEMA", "UNCACHED_SCHEMA", "VERSION"]

DOMAIN = "toolkit"
OP_TYPE = "FusedAttention"
VERSION = 1

_DOC = """
Scaled dot-product attention as one node.

Scores are `query · transpose(key) · scale`. With a positive `softcap` they become `softcap · tanh(scores / softcap)`.
Then the float mask is added, `alibi_slopes[h] · |i - j|` is subtracted, and every pair (query i, key j) that the
boolean mask, `is_causal` or the window forbids is excluded. A softmax over the keys weighs the values.
A query that may attend no key at all gives a row of zeros.

With a past, its keys and values come before the new ones; `present_key` and `present_value` are the two joined,
and Skv counts both. Key j stands at position j, query i at position P + i, where P is the length of the past (0
without one): upper-left alignment, whatever the lengths are. `i` above and below means the query's position.

Query heads may be a multiple of key/value heads: query head h reads key/value head h // (Hq / Hkv).

Symbols: B batch, Hq query heads, Hkv key/value heads, Sq queries, Sn new keys, P past keys, Skv = P + Sn keys in all,
D and Dv head sizes.
"""

_FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(double)"]
_OPTIONAL = OpSchema.FormalParameterOption.Optional


def _inputs() -> list[OpSchema.FormalParameter]:
    parameter = OpSchema.FormalParameter
    return [
        parameter("query", "T", "Queries, [B, Hq, Sq, D]."),
        parameter("key", "T", "New keys, [B, Hkv, Sn, D]; Hq is a multiple of Hkv."),
        parameter("value", "T", "New values, [B, Hkv, Sn, Dv]."),
        parameter(
            "attn_mask",
            "U",
            "Rank 2 to 4, broadcastable to [B, Hq, Sq, Skv]. Boolean: True where the query may attend the key. "
            "Float: added to the scores after softcap, of the query's type.",
            param_option=_OPTIONAL,
        ),
        parameter(
            "alibi_slopes",
            "T",
            "One slope a query head, [Hq]: slope · |i - j| is subtracted from the scores after softcap.",
            param_option=_OPTIONAL,
        ),
        parameter("past_key", "T", "Keys of earlier positions, [B, Hkv, P, D].", param_option=_OPTIONAL),
        parameter("past_value", "T", "Values of earlier positions, [B, Hkv, P, Dv].", param_option=_OPTIONAL),
    ]


def _outputs() -> list[OpSchema.FormalParameter]:
    parameter = OpSchema.FormalParameter
    return [
        parameter("output", "T", "Weighted values, [B, Hq, Sq, Dv]."),
        parameter("present_key", "T", "Past and new keys, [B, Hkv, Skv, D].", param_option=_OPTIONAL),
        parameter("present_value", "T", "Past and new values, [B, Hkv, Skv, Dv].", param_option=_OPTIONAL),
    ]


def _attributes() -> list[OpSchema.Attribute]:
    attribute, kind = OpSchema.Attribute, OpSchema.AttrType
    return [
        attribute("scale", kind.FLOAT, "Factor on the scores; usually 1/sqrt(D).", required=True),
        attribute("is_causal", kind.INT, "1: query i attends key j only if j <= i. 0: no such limit.", required=True),
        attribute("softcap", kind.FLOAT, "Bound of the scores; 0 means none.", required=True),
        attribute(
            "left_window_size",
            kind.INT,
            "Query i attends key j only if j >= i - left_window_size; -1 means no limit.",
            required=True,
        ),
        attribute(
            "right_window_size",
            kind.INT,
            "Query i attends key j only if j <= i + right_window_size; -1 means no limit.",
            required=True,
        ),
    ]


def _schema(inputs: int, outputs: int) -> OpSchema:
    return OpSchema(
        OP_TYPE,
        DOMAIN,
        VERSION,
        _DOC,
        inputs=_inputs()[:inputs],
        outputs=_outputs()[:outputs],
        type_constraints=[
            ("T", _FLOATS, "Floating-point tensors of one type."),
            ("U", ["tensor(bool)", *_FLOATS], "A boolean mask, or a float mask of type T."),
        ],
        attributes=_attributes(),
    )


SCHEMA = _schema(inputs=7, outputs=3)
UNCACHED_SCHEMA = _schema(inputs=5, outputs=1)
"""The schema without past and present: torch.onnx gives a node as many outputs as its schema has."""
