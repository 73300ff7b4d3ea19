"""The steps of an image processor as one ONNX graph of standard operators: written as text, then read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from exporters import DEFAULT_OPSET
from model_zoo._image_recipe import Recipe
from model_zoo._resampling import CONSTANTS, FILTERS, NEAREST, axis_pass

__all__ = ["image_graph", "produced_size"]

_IR_VERSION = 10
# By EXIF orientation; 0 and 9 stand for every other number, which turns nothing.
_TURNED = (0, 0, 0, 0, 0, 1, 1, 1, 1, 0)
_FROM_RIGHT = (0, 0, 1, 1, 0, 0, 1, 1, 0, 0)
_FROM_BELOW = (0, 0, 0, 1, 1, 0, 0, 1, 1, 0)

_UPRIGHT = """
    known = Clip(orientation, n0, n9)
    is_turned = Gather(turned, known)
    x_mirror = Gather(from_right, known)
    y_mirror = Gather(from_below, known)
    image_shape = Shape(image)
    image_rows = Gather(image_shape, n0)
    image_columns = Gather(image_shape, n1)
    channel_row = Gather(image_shape, axis_2)
    x_size = Where(is_turned, image_rows, image_columns)
    y_size = Where(is_turned, image_columns, image_rows)
"""
_ROWS_MAY_GO_FIRST = """
    x_less = Sub(x_size, x_full)
    x_less_twice = Mul(x_less, n2)
    y_less = Sub(y_size, y_full)
    bar = Max(x_less_twice, n0)
    rows_first = Greater(y_less, bar)
    columns_first = Not(rows_first)
"""
_COLUMNS_FIRST = """
    columns_first = Identity(always)
"""
# The axis of the first pass comes first; that the image may lie on its side is taken care of in the same step.
_FIRST_AXIS = """
    a_size = Where(columns_first, x_size, y_size)
    a_full = Where(columns_first, x_full, y_full)
    a_want = Where(columns_first, x_want, y_want)
    a_mirror = Where(columns_first, x_mirror, y_mirror)
    b_size = Where(columns_first, y_size, x_size)
    b_full = Where(columns_first, y_full, x_full)
    b_want = Where(columns_first, y_want, x_want)
    b_mirror = Where(columns_first, y_mirror, x_mirror)
    is_swapped = Xor(is_turned, columns_first)
    laid = If (is_swapped) <
        then_branch = swap () => (uint8[?, ?, ?] swapped) { swapped = Transpose <perm = [1, 0, 2]> (image) },
        else_branch = keep () => (uint8[?, ?, ?] unchanged) { unchanged = Identity(image) }
    >
"""
_WITHOUT_ALPHA = """
    in_colour = GreaterOrEqual(channel_row, row_3)
    colours = Where(in_colour, row_3, axis_1)
    plain = Slice(laid, axis_0, colours, axis_2)
"""
_GREY = """
    plain_int = Cast <to = 6> (plain)
    luma_parts = Mul(plain_int, luma)
    luma_sum = ReduceSum <keepdims = 1> (luma_parts, axis_2)
    luma_up = Add(luma_sum, luma_half)
    luma_whole = Div(luma_up, luma_unit)
    coloured = Cast <to = 2> (luma_whole)
"""
_COLOUR = """
    coloured = Identity(plain)
"""
# Resizing weighs colours by their alpha; an image of the right size is left alone, as if it had none.
_WITH_ALPHA = """
    plain_3 = Expand(plain, shape_113)
    padded = Pad <mode = "constant"> (laid, one_behind, opaque, axis_2)
    channel_odd = Mod(channel_row, axis_2)
    alpha_next = Add(channel_row, channel_odd)
    alpha_from = Sub(alpha_next, axis_1)
    alpha_to = Add(alpha_from, axis_1)
    alpha = Slice(padded, alpha_from, alpha_to, axis_2)
    x_same = Equal(x_size, x_full)
    y_same = Equal(y_size, y_full)
    is_kept = And(x_same, y_same)
"""
_PREMULTIPLIED = """
    alpha_weight = Where(is_kept, opaque, alpha)
    plain_int = Cast <to = 6> (plain_3)
    alpha_int = Cast <to = 6> (alpha_weight)
    product = Mul(plain_int, alpha_int)
    product_up = Add(product, i128)
    product_high = Div(product_up, i256)
    product_both = Add(product_up, product_high)
    weighted_int = Div(product_both, i256)
    weighted = Cast <to = 2> (weighted_int)
    coloured = Concat <axis = 2> (weighted, alpha)
"""
_RESTORED = """
    weighted_part = Slice(sized, axis_0, row_3, axis_2)
    alpha_part = Slice(sized, row_3, row_4, axis_2)
    alpha_divides = Where(is_kept, opaque, alpha_part)
    part_int = Cast <to = 6> (weighted_part)
    share_int = Cast <to = 6> (alpha_divides)
    transparent = Equal(share_int, i0)
    share_safe = Where(transparent, i255, share_int)
    part_wide = Mul(part_int, i255)
    part_over = Div(part_wide, share_safe)
    part_clipped = Min(part_over, i255)
    restored = Cast <to = 2> (part_clipped)
    pixels = Concat <axis = 2> (restored, alpha_part)
"""
_ALPHA_APART = """
    coloured = Concat <axis = 2> (plain_3, alpha)
"""
_PASSES = """
    a_head = Unsqueeze(a_size, axis_0)
    a_lines_shape = Concat <axis = 0> (a_head, last)
    a_lines = Reshape(coloured, a_lines_shape)
    {a_pass}
    b_head = Unsqueeze(b_size, axis_0)
    a_row = Unsqueeze(a_want, axis_0)
    a_done_shape = Concat <axis = 0> (a_row, b_head, last)
    a_done_3 = Reshape(a_done, a_done_shape)
    crossed = Transpose <perm = [1, 0, 2]> (a_done_3)
    b_lines_shape = Concat <axis = 0> (b_head, last)
    b_lines = Reshape(crossed, b_lines_shape)
    {b_pass}
    b_row = Unsqueeze(b_want, axis_0)
    b_done_shape = Concat <axis = 0> (b_row, a_row, last)
    sized = Reshape(b_done, b_done_shape)
"""
_VALUES = """
    planes = If (columns_first) <
        then_branch = rows_lie () => (uint8[?, ?, ?] planes_rows) {{
            planes_rows = Transpose <perm = [2, 0, 1]> (pixels)
        }},
        else_branch = columns_lie () => (uint8[?, ?, ?] planes_columns) {{
            planes_columns = Transpose <perm = [2, 1, 0]> (pixels)
        }}
    >
    planes_int = Cast <to = 6> (planes)
    entries = Add(planes_int, table_rows)
    values = Gather(table, entries)
    {output} = Unsqueeze(values, axis_0)
"""
_SHORTEST = """
    shorter = Min(x_size, y_size)
    shorter_real = Cast <to = 11> (shorter)
"""
_BY_SHORTEST = """
    @sized = Mul(@size, shortest)
    @sized_real = Cast <to = 11> (@sized)
    @full_exact = Div(@sized_real, shorter_real)
    @full = Cast <to = 7> (@full_exact)
"""
# A list of one entry is read at 1 where the length is another, so that the run fails by the name of this node.
_REQUIRED = """
    @fits = Equal(@full, @model)
    @other = Not(@fits)
    @off = Cast <to = 7> (@other)
    @image_size_is_not_the_models = Gather(axis_0, @off)
    @want = Add(@full, @image_size_is_not_the_models)
"""


def image_graph(recipe: Recipe, table: NDArray[np.float32], shape: tuple[int, int, int], output: str) -> Any:
    """An `onnx.ModelProto` from `image` uint8 [height, width, channels] and `orientation` int64 [] to `output`.

    `orientation` is EXIF's, 1 to 8; any other number turns nothing. The output is float32 [1, *shape]; `table` float32
    [C, 256] holds what rescaling and normalising make of each 8-bit value. `channels` is 1 (grey), 3 (RGB) or 4 (RGBA).
    """
    import onnx.parser

    channels, height, width = shape
    nodes = "\n".join(
        (_UPRIGHT, _lengths(recipe), _order(recipe), *_colours(recipe, channels), _VALUES.format(output=output))
    )
    model = onnx.parser.parse_model(
        f'<ir_version: {_IR_VERSION}, opset_import: ["" : {DEFAULT_OPSET}]>'
        "preprocess (uint8[height, width, channels] image, int64 orientation) "
        f"=> (float[1, {channels}, {height}, {width}] {output}) {{ {nodes} }}"
    )
    _fill(model.graph, _constants(recipe, table, shape))
    onnx.checker.check_model(model)
    return model


def produced_size(recipe: Recipe) -> tuple[int | None, int | None]:
    """Height and width that every image gets; None where they follow the image's own."""
    fixed = recipe.crop or recipe.resize
    return fixed if isinstance(fixed, tuple) else (None, None)


def _lengths(recipe: Recipe) -> str:
    """From `x_size` and `y_size` to `x_full`, `x_want` and the like."""
    if recipe.resize is None:
        full = "@full = Identity(@size)\n"
    else:
        full = "@full = Identity(@target)\n" if isinstance(recipe.resize, tuple) else _BY_SHORTEST
    if recipe.crop is not None:
        want = "@want = Identity(@crop)\n"
    else:
        want = "@want = Identity(@full)\n" if isinstance(recipe.resize, tuple) else _REQUIRED
    return _SHORTEST + "".join((full + want).replace("@", prefix) for prefix in ("x_", "y_"))


def _order(recipe: Recipe) -> str:
    """Which axis is resized first, as the installed Pillow does it."""
    may = recipe.resize is not None and recipe.resample != NEAREST and _rows_may_go_first()
    return (_ROWS_MAY_GO_FIRST if may else _COLUMNS_FIRST) + _FIRST_AXIS


@cache
def _rows_may_go_first() -> bool:
    """Pillow 13 resizes rows first where the height shrinks by more than twice as many pixels as the width.

    Older ones never do. Both round after the first pass, so that the order shows: this asks the one at hand.
    """
    image = Image.fromarray(np.random.default_rng(0).integers(0, 2, (64, 64), np.uint8) * 255)
    filtered = Image.Resampling.LANCZOS
    return image.resize((60, 40), filtered) == image.resize((64, 40), filtered).resize((60, 40), filtered)


def _colours(recipe: Recipe, channels: int) -> tuple[str, ...]:
    """To the colour mode, through both passes, to `pixels` uint8 [H, W, C or 1]."""
    resample = NEAREST if recipe.resize is None else recipe.resample
    a_pass, b_pass = (axis_pass(axis, resample, crop_to_even=recipe.crop_to_even) for axis in ("a_", "b_"))
    passes = _PASSES.format(a_pass=a_pass, b_pass=b_pass)
    if channels == 4 and resample != NEAREST:
        return _WITHOUT_ALPHA, _WITH_ALPHA, _PREMULTIPLIED, passes, _RESTORED
    if channels == 4:
        return _WITHOUT_ALPHA, _WITH_ALPHA, _ALPHA_APART, passes, "pixels = Identity(sized)"
    return _WITHOUT_ALPHA, _GREY if channels == 1 else _COLOUR, passes, "pixels = Identity(sized)"


def _constants(recipe: Recipe, table: NDArray[np.float32], shape: tuple[int, int, int]) -> dict[str, NDArray[Any]]:
    channels, height, width = shape
    resize = recipe.resize if isinstance(recipe.resize, tuple) else (0, 0)
    crop = recipe.crop or (0, 0)
    lengths = {"n9": 9, "y_target": resize[0], "x_target": resize[1], "y_crop": crop[0], "x_crop": crop[1]}
    lengths |= {"y_model": height, "x_model": width, "shortest": recipe.resize if isinstance(recipe.resize, int) else 0}
    rows = {"axis_2": [2], "row_3": [3], "row_4": [4], "one_behind": [0, 1], "shape_113": [1, 1, 3]}
    whole = {"i0": 0, "i128": 128, "i255": 255, "i256": 256, "luma_half": 1 << 15, "luma_unit": 1 << 16}
    return {
        **CONSTANTS,
        **{name: np.array(value, np.int64) for name, value in {**lengths, **rows}.items()},
        **{name: np.array(value, np.int32) for name, value in whole.items()},
        "always": np.array(True),
        "turned": np.array(_TURNED, np.bool_),
        "from_right": np.array(_FROM_RIGHT, np.int64),
        "from_below": np.array(_FROM_BELOW, np.int64),
        "luma": np.array([19595, 38470, 7471], np.int32),
        "opaque": np.array(255, np.uint8),
        "support": np.array(FILTERS[recipe.resample][0] if recipe.resample in FILTERS else 0.0),
        "table": table.reshape(-1),
        "table_rows": np.arange(channels, dtype=np.int32).reshape(-1, 1, 1) * 256,
    }


def _fill(graph: Any, constants: Mapping[str, NDArray[Any]]) -> None:
    """Name each node by what it makes, and add the constants that some node reads."""
    from onnx import numpy_helper

    read = set()
    for node in graph.node:
        node.name = node.output[0]
        read.update(node.input)
        inner = [part.g for part in node.attribute if part.HasField("g")]
        for body in inner:
            read.update(name for each in body.node for name in each.input)
    graph.initializer.extend(numpy_helper.from_array(constants[name], name) for name in constants if name in read)
