// ONNX `TensorProto` messages (onnx.proto, ONNX 1.23) read from protobuf's wire format.

import { BrokenBundleError } from './errors.mjs';
import { ARRAYS, elements } from './tensors.mjs';

/** onnx.proto's DataType, without what no runtime in JavaScript takes. */
const TYPES = {
  1: 'float32', 2: 'uint8', 3: 'int8', 4: 'uint16', 5: 'int16', 6: 'int32', 7: 'int64', 8: 'string', 9: 'bool',
  10: 'float16', 11: 'float64', 12: 'uint32', 13: 'uint64',
};

const DIMS = 1, DATA_TYPE = 2, FLOATS = 4, INT32S = 5, STRINGS = 6, INT64S = 7, NAME = 8, RAW = 9, DOUBLES = 10;
const UINT64S = 11, LOCATION = 14;
const VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5;

class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.at = 0;
  }

  get done() {
    return this.at >= this.bytes.length;
  }

  take(count) {
    if (count > this.bytes.length - this.at) throw new RangeError('it ends too early');
    this.at += count;
    return this.bytes.subarray(this.at - count, this.at);
  }

  varint() {
    let value = 0n;
    for (let shift = 0n; shift < 70n; shift += 7n) {
      const [byte] = this.take(1);
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return BigInt.asUintN(64, value);
    }
    throw new RangeError('a number in it is longer than 64 bits');
  }

  field() {
    const key = Number(this.varint());
    const wire = key & 7;
    if (wire === VARINT) return { number: key >>> 3, wire, value: this.varint() };
    if (wire === BYTES) return { number: key >>> 3, wire, value: this.take(Number(this.varint())) };
    if (wire === FIXED64 || wire === FIXED32) return { number: key >>> 3, wire, value: this.take(wire === FIXED64 ? 8 : 4) };
    throw new RangeError(`a field in it has the unknown wire type ${wire}`);
  }
}

function integers({ wire, value }) {
  if (wire === VARINT) return [value];
  const reader = new Reader(value);
  const found = [];
  while (!reader.done) found.push(reader.varint());
  return found;
}

function collect(bytes) {
  const tensor = { dims: [], type: 0, name: '', raw: null, fixed: [], numbers: [], texts: [], external: false };
  const reader = new Reader(bytes);
  while (!reader.done) {
    const field = reader.field();
    if (field.number === DIMS) tensor.dims.push(...integers(field).map((size) => Number(BigInt.asIntN(64, size))));
    else if (field.number === DATA_TYPE) tensor.type = Number(field.value);
    else if (field.number === NAME) tensor.name = new TextDecoder().decode(field.value);
    else if (field.number === RAW) tensor.raw = field.value;
    else if (field.number === STRINGS) tensor.texts.push(new TextDecoder().decode(field.value));
    else if (field.number === FLOATS || field.number === DOUBLES) tensor.fixed.push(field.value);
    else if ([INT32S, INT64S, UINT64S].includes(field.number)) tensor.numbers.push(...integers(field));
    else if (field.number === LOCATION) tensor.external = field.value === 1n;
  }
  return tensor;
}

function asArray(Kind, bytes) {
  // A typed array must start at a multiple of its element's size, and a message's bytes start anywhere.
  return new Kind(Uint8Array.from(bytes).buffer);
}

function fromNumbers(type, numbers) {
  if (type === 'int64' || type === 'uint64') return ARRAYS[type].from(numbers);
  return ARRAYS[type].from(numbers, (number) => Number(BigInt.asIntN(64, number)));
}

function data(tensor, type) {
  if (type === 'string') return tensor.texts;
  if (tensor.raw) return asArray(ARRAYS[type], tensor.raw);
  if (tensor.fixed.length) {
    const whole = new Uint8Array(tensor.fixed.reduce((sum, part) => sum + part.length, 0));
    tensor.fixed.reduce((at, part) => (whole.set(part, at), at + part.length), 0);
    return asArray(ARRAYS[type], whole);
  }
  return fromNumbers(type, tensor.numbers);
}

function read(bytes) {
  const tensor = collect(bytes);
  const type = TYPES[tensor.type];
  if (!type) throw new RangeError(`its data type ${tensor.type} is none that a runtime in JavaScript takes`);
  if (tensor.external) throw new RangeError('its data lies in another file');
  const values = data(tensor, type);
  const count = elements(tensor.dims);
  if (values.length !== count) throw new RangeError(`it holds ${values.length} values, its shape is of ${count}`);
  return { name: tensor.name, type, dims: tensor.dims, data: values };
}

/** `{ name, type, dims, data }`. Throws BrokenBundleError, which names the file, for bytes that are no tensor. */
export function readTensor(bytes, file) {
  try {
    return read(bytes);
  } catch (error) {
    if (error instanceof RangeError) throw new BrokenBundleError(`${file}: no ONNX tensor, ${error.message}`);
    throw error;
  }
}
