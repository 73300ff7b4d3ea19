// IEEE 754 half precision, read from its 16 bits.

/** The number that these 16 bits stand for. */
export function halfToNumber(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0x1f) return fraction ? NaN : sign * Infinity;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** A float16 tensor's data as numbers; a runtime gives the bits, or a Float16Array where there is one. */
export function halvesToNumbers(data) {
  return data instanceof Uint16Array ? Float64Array.from(data, halfToNumber) : data;
}
