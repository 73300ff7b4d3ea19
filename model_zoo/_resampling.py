"""One pass of Pillow's resizing along an axis, written as ONNX text in standard operators.

The arithmetic is that of Pillow's `src/libImaging/Resample.c` (fixed-point weights of 22 bits, double precision before
they are rounded, 8 bits after each pass) and of `ImagingScaleAffine` in `Geometry.c` for the nearest pixel. All sums
are of whole numbers below 2**53, so that double precision is exact whatever the order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CONSTANTS", "FILTERS", "NEAREST", "axis_pass"]

NEAREST = 0
_BOX = """
    @right = Greater(@argument, minus_half)
    @left = LessOrEqual(@argument, half)
    @under = And(@right, @left)
    @value = Where(@under, one, zero)
"""
_BILINEAR = """
    @distance = Abs(@argument)
    @slope = Sub(one, @distance)
    @value = Max(@slope, zero)
"""
_BICUBIC = """
    @distance = Abs(@argument)
    @near_0 = Mul(@distance, three_halves)
    @near_1 = Sub(@near_0, five_halves)
    @near_2 = Mul(@near_1, @distance)
    @near_3 = Mul(@near_2, @distance)
    @near = Add(@near_3, one)
    @far_0 = Sub(@distance, five)
    @far_1 = Mul(@far_0, @distance)
    @far_2 = Add(@far_1, eight)
    @far_3 = Mul(@far_2, @distance)
    @far_4 = Sub(@far_3, four)
    @far = Mul(@far_4, minus_half)
    @is_near = Less(@distance, one)
    @is_far = Less(@distance, two)
    @outer = Where(@is_far, @far, zero)
    @value = Where(@is_near, @near, @outer)
"""
_SINC = """
    @@angle = Mul(@@place, pi)
    @@middle = Equal(@@place, zero)
    @@safe = Where(@@middle, one, @@angle)
    @@sine = Sin(@@safe)
    @@off = Div(@@sine, @@safe)
    @@sinc = Where(@@middle, one, @@off)
"""
_HAMMING = f"""
    @1_place = Identity(@argument)
    {_SINC.replace("@@", "@1_")}
    @cosine = Cos(@1_angle)
    @swing = Mul(@cosine, hamming_swing)
    @window = Add(@swing, hamming_base)
    @windowed = Mul(@1_sinc, @window)
    @distance = Abs(@argument)
    @is_near = Less(@distance, one)
    @value = Where(@is_near, @windowed, zero)
"""
_LANCZOS = f"""
    @1_place = Identity(@argument)
    {_SINC.replace("@@", "@1_")}
    @3_place = Div(@argument, three)
    {_SINC.replace("@@", "@3_")}
    @windowed = Mul(@1_sinc, @3_sinc)
    @right = GreaterOrEqual(@argument, minus_three)
    @left = Less(@argument, three)
    @under = And(@right, @left)
    @value = Where(@under, @windowed, zero)
"""

FILTERS: dict[int, tuple[float, str]] = {
    1: (3.0, _LANCZOS),
    2: (1.0, _BILINEAR),
    3: (2.0, _BICUBIC),
    4: (0.5, _BOX),
    5: (1.0, _HAMMING),
}
"""By Pillow's number of a filter: its support in pixels, and the text from `@argument` to `@value`."""

CONSTANTS: dict[str, NDArray[Any]] = {
    name: np.array(value, np.float64)
    for name, value in {
        "zero": 0.0,
        "one": 1.0,
        "two": 2.0,
        "three": 3.0,
        "minus_three": -3.0,
        "four": 4.0,
        "five": 5.0,
        "eight": 8.0,
        "half": 0.5,
        "minus_half": -0.5,
        "three_halves": 1.5,
        "five_halves": 2.5,
        "pi": np.pi,
        "hamming_base": 0.54,
        "hamming_swing": 0.46,
        "weight_unit": float(1 << 22),
        "weight_half": float(1 << 21),
        "weight_inverse": 1.0 / (1 << 22),
        "white": 255.0,
    }.items()
} | {
    "n0": np.array(0, np.int64),
    "n1": np.array(1, np.int64),
    "n2": np.array(2, np.int64),
    "axis_0": np.array([0], np.int64),
    "axis_1": np.array([1], np.int64),
    "last": np.array([-1], np.int64),
    "no_pixel": np.array(0, np.uint8),
}
"""What the texts name: float64 scalars by words, int64 by `n` and a digit."""

_SHIFT = """
    @around = Add(@full, @want)
    @middle = Div(@around, n2)
    @shift = Sub(@middle, @want)
"""
_SHIFT_TO_EVEN = """
    @margin = Sub(@full, @want)
    @margin_real = Cast <to = 11> (@margin)
    @before = Mul(@margin_real, half)
    @before_even = Round(@before)
    @shift = Cast <to = 7> (@before_even)
"""
_PLACES = """
    @places = Range(n0, @want, n1)
    @at = Add(@places, @shift)
    @not_before = GreaterOrEqual(@at, n0)
    @not_after = Less(@at, @full)
    @exists = And(@not_before, @not_after)
    @exists_column = Unsqueeze(@exists, axis_1)
    @end = Sub(@size, n1)
    @size_real = Cast <to = 11> (@size)
    @full_real = Cast <to = 11> (@full)
    @scale = Div(@size_real, @full_real)
"""
_SOURCE = """
    @clipped = Min(@index, @end)
    @from_end = Sub(@end, @clipped)
    @backwards = Cast <to = 9> (@mirror)
    @source = Where(@backwards, @from_end, @clipped)
"""
_WEIGHTS = """
    @stretch = Max(@scale, one)
    @support = Mul(@stretch, support)
    @at_real = Cast <to = 11> (@at)
    @at_middle = Add(@at_real, half)
    @centre = Mul(@at_middle, @scale)
    @low = Sub(@centre, @support)
    @low_half = Add(@low, half)
    @low_whole = Cast <to = 7> (@low_half)
    @first = Max(@low_whole, n0)
    @high = Add(@centre, @support)
    @high_half = Add(@high, half)
    @high_whole = Cast <to = 7> (@high_half)
    @stop = Min(@high_whole, @size)
    @reach_real = Ceil(@support)
    @reach = Cast <to = 7> (@reach_real)
    @both = Mul(@reach, n2)
    @taps = Add(@both, n1)
    @steps = Range(n0, @taps, n1)
    @first_column = Unsqueeze(@first, axis_1)
    @index = Add(@first_column, @steps)
    @stop_column = Unsqueeze(@stop, axis_1)
    @inside = Less(@index, @stop_column)
    @index_real = Cast <to = 11> (@index)
    @centre_column = Unsqueeze(@centre, axis_1)
    @from_centre = Sub(@index_real, @centre_column)
    @from_middle = Add(@from_centre, half)
    @shrink = Div(one, @stretch)
    @argument = Mul(@from_middle, @shrink)
"""
_ROUNDED = """
    @kept = Where(@inside, @value, zero)
    @running = CumSum(@kept, n1)
    @total = Gather <axis = 1> (@running, last)
    @nothing = Equal(@total, zero)
    @divisor = Where(@nothing, one, @total)
    @share = Div(@kept, @divisor)
    @fixed = Mul(@share, weight_unit)
    @below_zero = Less(@share, zero)
    @away = Where(@below_zero, minus_half, half)
    @nudged = Add(@fixed, @away)
    @whole = Cast <to = 7> (@nudged)
    @whole_real = Cast <to = 11> (@whole)
    @weights = Where(@exists_column, @whole_real, zero)
"""
# One line of the answer at a time: the taps of all of them together are several times the photograph.
_SUMS = """
    @done = Scan <num_scan_inputs = 2, body = @line
        (int64[?] @line_source, double[?] @line_weights) => (uint8[?] @line_pixels)
    {
        @line_taps = Gather(@lines, @line_source)
        @line_real = Cast <to = 11> (@line_taps)
        @line_sum = MatMul(@line_weights, @line_real)
        @line_up = Add(@line_sum, weight_half)
        @line_shifted = Mul(@line_up, weight_inverse)
        @line_whole = Floor(@line_shifted)
        @line_low = Max(@line_whole, zero)
        @line_clipped = Min(@line_low, white)
        @line_pixels = Cast <to = 2> (@line_clipped)
    }> (@source, @weights)
"""
_NEAREST = """
    @step_row = Unsqueeze(@scale, axis_0)
    @full_row = Unsqueeze(@full, axis_0)
    @to_middle = Mul(@step_row, half)
    @ahead = Sub(@full_row, axis_1)
    @later = Expand(@step_row, @ahead)
    @jumps = Concat <axis = 0> (@to_middle, @later)
    @positions = CumSum(@jumps, n0)
    @wholes = Cast <to = 7> (@positions)
    @at_least = Max(@at, n0)
    @last_full = Sub(@full, n1)
    @at_most = Min(@at_least, @last_full)
    @index = Gather(@wholes, @at_most)
"""
_PICKED = """
    @taken = Gather(@lines, @source)
    @done = Where(@exists_column, @taken, no_pixel)
"""


def axis_pass(prefix: str, resample: int, *, crop_to_even: bool = False) -> str:
    """The text of a pass whose names begin with `prefix`; `FILTERS` or `NEAREST` has `resample`.

    In: `@lines` uint8 [size, others], the int64 scalars `@size`, `@full` (the length it is resized to) and `@want` (the
    length that is kept around the centre; zeros stand where it is more than `@full`), and `@mirror`, 1 to read from
    the end, else 0. Out: `@done` uint8 [want, others]. Here `@` stands for the prefix. `crop_to_even` is the recipe's.
    """
    places = (_SHIFT_TO_EVEN if crop_to_even else _SHIFT) + _PLACES
    if resample == NEAREST:
        text = places + _NEAREST + _SOURCE + _PICKED
    else:
        text = places + _WEIGHTS + FILTERS[resample][1] + _ROUNDED + _SOURCE + _SUMS
    return text.replace("@", prefix)
