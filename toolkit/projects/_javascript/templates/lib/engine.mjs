// A graph opened by ONNX Runtime: what goes in is checked before, and its errors say what to do.

import { BrokenBundleError, InputError, UnsupportedError, reasonOf } from './errors.mjs';
import { ARRAYS, spelled } from './tensors.mjs';

const OPERATOR = [
  /Could not find an implementation for (?<name>[\w.]+)\(/,
  /(?<domain>[\w.]+):(?<name>\w+)\(-?\d+\) is not a registered function\/op/,
  /schema\((?<domain>[\w.]*)::(?<name>\w+):\d+\)/,
  /In Node, \("[^"]*", (?<name>\w+), "(?<domain>[\w.]*)"/,
  /No Op registered for (?<name>\w+)/,
  /Unsupported operator '?(?<name>\w+)/i,
];
const GROUPED = 'GroupQueryAttention';
const ELSE = 'Export the model with --target ort-cpu-fp32, a language model with ort-portable-fp32: standard operators.';
const PORTABLE = 'Export the model with --target ort-portable-int4 (or -int8, -fp32), which asks for nothing that is new.';

function operatorIn(message) {
  for (const pattern of OPERATOR) {
    const groups = pattern.exec(message)?.groups;
    if (groups) return groups;
  }
  return null;
}

function refusal(error, file, runtime) {
  const message = reasonOf(error);
  const operator = operatorIn(message);
  if (!operator) return new BrokenBundleError(`${file}: ${runtime.name} does not open it: ${message}`, { cause: error });
  const name = operator.domain ? `${operator.domain}.${operator.name}` : operator.name;
  return new UnsupportedError(
    `${file}: ${runtime.name} ${runtime.version} does not run its operator ${name}. ${operator.name === GROUPED ? PORTABLE : ELSE}`,
    { cause: error },
  );
}

function same(spec, metadata) {
  return metadata && metadata.isTensor && metadata.type === spec.dtype && metadata.shape.length === spec.shape.length;
}

/** Whether a tensor of these sizes may be fed: the rank, and each size that is a number. */
function fits(tensor, metadata) {
  return tensor.type === metadata.type && tensor.dims.length === metadata.shape.length &&
    metadata.shape.every((size, axis) => typeof size !== 'number' || size === tensor.dims[axis]);
}

function spelledMetadata(metadata) {
  return metadata.isTensor ? spelled(metadata.type, metadata.shape) : 'no tensor';
}

export class Engine {
  #ort;
  #session;

  constructor(session, ort, file) {
    this.#session = session;
    this.#ort = ort;
    this.file = file;
  }

  /**
   * `model` is what `ort.InferenceSession.create` takes first, `options` what it takes second.
   * `runtime` is `{ ort, name, version }`. Throws UnsupportedError that names the operator which it does not run.
   */
  static async open(model, options, file, runtime) {
    try {
      return new Engine(await runtime.ort.InferenceSession.create(model, options), runtime.ort, file);
    } catch (error) {
      throw refusal(error, file, runtime);
    }
  }

  get inputs() {
    return this.#session.inputMetadata;
  }

  get outputs() {
    return this.#session.outputMetadata;
  }

  /** Throws BrokenBundleError where names, types or ranks are not those that the manifest gives. */
  requireLike(inputs, outputs) {
    for (const [word, specs, found] of [['input', inputs, this.inputs], ['output', outputs, this.outputs]]) {
      for (const spec of specs) {
        const metadata = found.find((each) => each.name === spec.name);
        if (same(spec, metadata)) continue;
        const has = metadata ? `${word === 'input' ? 'takes' : 'gives'} ${spelledMetadata(metadata)}` : 'has none of that name';
        throw new BrokenBundleError(
          `${word} '${spec.name}' is ${spelled(spec.dtype, spec.shape)} in the manifest; the model ${has}`,
        );
      }
      const extra = found.find((each) => !specs.some((spec) => spec.name === each.name));
      if (extra) throw new BrokenBundleError(`${word} '${extra.name}' of the model is not in the manifest`);
    }
  }

  /**
   * Tensors by name to tensors by name. `into` names the outputs that are wanted, all by default: null, or a Tensor that
   * is written to. Throws InputError for a tensor that the model does not take.
   */
  async run(feeds, into) {
    const given = Object.fromEntries(this.inputs.map((metadata) => [metadata.name, this.#fed(feeds, metadata)]));
    try {
      return into ? await this.#session.run(given, into) : await this.#session.run(given);
    } catch (error) {
      throw new InputError(`${this.file}: it does not run on these inputs: ${reasonOf(error)}`, { cause: error });
    }
  }

  #fed(feeds, metadata) {
    const tensor = feeds[metadata.name];
    if (!tensor) throw new InputError(`input '${metadata.name}' is missing; the model takes ${spelledMetadata(metadata)}`);
    if (!fits(tensor, metadata)) {
      throw new InputError(
        `input '${metadata.name}' is ${spelled(tensor.type, tensor.dims)}; the model takes ${spelledMetadata(metadata)}`,
      );
    }
    return tensor instanceof this.#ort.Tensor ? tensor : new this.#ort.Tensor(tensor.type, dataOf(tensor), tensor.dims);
  }

  async close() {
    await this.#session.release();
  }
}

function dataOf({ type, data }) {
  return type === 'string' || data instanceof ARRAYS[type] ? data : ARRAYS[type].from(data);
}
