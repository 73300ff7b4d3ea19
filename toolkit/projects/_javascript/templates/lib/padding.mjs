// Positions that nobody attends to have no meaning, so they are no drift (docs/selftest.md, "The comparison").

const MASK = 'attention_mask', TOKENS = 'input_ids';

function axesOf(output, inputs) {
  for (const input of inputs) {
    if (input.name !== MASK && input.name !== TOKENS) continue;
    const once = input.shape.every((axis) => output.shape.filter((other) => other === axis).length === 1);
    if (once) return input.shape.map((axis) => output.shape.indexOf(axis));
  }
  return null;
}

function stride(dims, axis) {
  return dims.slice(axis + 1).reduce((product, size) => product * size, 1);
}

/**
 * A function of a flat index: whether that element of `output` lies at a padded position. Null where none does.
 * `output` is the manifest's entry, `dims` the tensor's shape, `fed` the golden inputs.
 */
export function paddedAt(output, dims, fed, manifest) {
  if (!manifest.inputs.some((input) => input.name === MASK) || !fed[MASK]) return null;
  const axes = axesOf(output, manifest.inputs);
  const mask = fed[MASK];
  if (!axes || axes.length !== 2 || dims.length <= Math.max(...axes) || mask.data.every((value) => Number(value) !== 0)) {
    return null;
  }
  const [rows, positions] = axes.map((axis) => dims[axis]);
  const [maskRows, width] = mask.dims;
  if (rows !== maskRows || positions > width) return null;
  const [rowStride, positionStride] = axes.map((axis) => stride(dims, axis));
  const skipped = width - positions;
  return (index) => {
    const row = Math.floor(index / rowStride) % rows;
    const position = Math.floor(index / positionStride) % positions;
    return Number(mask.data[row * width + skipped + position]) === 0;
  };
}
