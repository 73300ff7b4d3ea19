// Tensors as plain objects `{ type, dims, data }`, which is what an onnxruntime Tensor has as well.

import { halvesToNumbers } from './float16.mjs';

export const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  float16: Uint16Array,
  int8: Int8Array,
  uint8: Uint8Array,
  bool: Uint8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
  string: Array,
};

export function elements(dims) {
  return dims.reduce((product, size) => product * size, 1);
}

export function isFloat(type) {
  return type.startsWith('float');
}

/** `float32 [batch, 1, 8, 8]`, of a tensor or of what the manifest says about one. */
export function spelled(type, shape) {
  return `${type} [${shape.join(', ')}]`;
}

/** The data as something that can be read number by number, 64-bit integers excepted: those stay BigInt. */
export function readable(tensor) {
  return tensor.type === 'float16' ? halvesToNumbers(tensor.data) : tensor.data;
}

function strides(dims) {
  const steps = new Array(dims.length).fill(1);
  for (let axis = dims.length - 2; axis >= 0; axis--) steps[axis] = steps[axis + 1] * dims[axis + 1];
  return steps;
}

export function emptyLike(tensor, dims) {
  const size = elements(dims);
  if (tensor.type === 'string') return { type: 'string', dims, data: new Array(size).fill('') };
  return { type: tensor.type, dims, data: new tensor.data.constructor(size) };
}

/** The tensor with each axis cut, or padded with zeros at its end, to the sizes in `dims`. */
export function resized(tensor, dims) {
  if (tensor.dims.every((size, axis) => size === dims[axis])) return tensor;
  const result = emptyLike(tensor, dims);
  const shared = dims.map((size, axis) => Math.min(size, tensor.dims[axis]));
  const from = strides(tensor.dims);
  const to = strides(dims);
  const width = shared.at(-1);
  copyRuns(tensor.data, result.data, shared, from, to, width);
  return result;
}

function copyRuns(source, target, shared, from, to, width) {
  const outer = shared.slice(0, -1);
  const runs = elements(outer);
  const index = new Array(outer.length).fill(0);
  for (let run = 0; run < (width ? runs : 0); run++) {
    const start = index.reduce((sum, at, axis) => sum + at * from[axis], 0);
    const place = index.reduce((sum, at, axis) => sum + at * to[axis], 0);
    for (let i = 0; i < width; i++) target[place + i] = source[start + i];
    for (let axis = outer.length - 1; axis >= 0 && ++index[axis] === outer[axis]; axis--) index[axis] = 0;
  }
}

/** One index of axis 0, that axis kept. */
export function row(tensor, index) {
  const size = elements(tensor.dims.slice(1));
  const data = tensor.data.slice(index * size, (index + 1) * size);
  return { type: tensor.type, dims: [1, ...tensor.dims.slice(1)], data };
}

/** Tensors of one type and shape, put together along axis 0. */
export function joined(tensors) {
  const [first] = tensors;
  const dims = [tensors.reduce((sum, tensor) => sum + tensor.dims[0], 0), ...first.dims.slice(1)];
  const result = emptyLike(first, dims);
  let at = 0;
  for (const tensor of tensors) {
    for (let i = 0; i < tensor.data.length; i++) result.data[at + i] = tensor.data[i];
    at += tensor.data.length;
  }
  return result;
}
