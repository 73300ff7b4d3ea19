// Engines of one fixed shape, fed row by row (docs/selftest.md, "Engines of one fixed shape").

import { InputError } from './errors.mjs';
import { joined, resized, row, spelled } from './tensors.mjs';

/** Whether an input has another size than the number that the engine has at that axis. */
export function isOtherwise(feeds, specs) {
  return specs.some(({ name, shape }) =>
    feeds[name] && shape.some((size, axis) => typeof size === 'number' && size !== feeds[name].dims[axis]));
}

/** What each name of an axis, as `batch` and `sequence`, stands for in these inputs. */
function sizesOf(feeds, specs) {
  const sizes = {};
  for (const { name, shape } of specs) {
    shape.forEach((axis, index) => { if (typeof axis === 'string' && feeds[name]) sizes[axis] = feeds[name].dims[index]; });
  }
  return sizes;
}

function padded(tensor, spec) {
  const dims = spec.shape.map((size, axis) => (typeof size === 'number' ? size : tensor.dims[axis]));
  if (tensor.dims.some((size, axis) => size > dims[axis])) {
    throw new InputError(
      `input '${spec.name}' is ${spelled(tensor.type, tensor.dims)}, larger than the engine's ${spelled(spec.dtype, spec.shape)}`,
    );
  }
  return resized(tensor, dims);
}

function cut(tensor, spec, sizes) {
  const dims = tensor.dims.map((size, axis) => (axis > 0 ? (sizes[spec.shape[axis]] ?? size) : size));
  return resized(tensor, dims);
}

/**
 * `run` called once a row, its outputs put together and cut to what the inputs' sizes ask for.
 * `engine` are the engine's inputs, `model` the manifest's `{ inputs, outputs }`. Throws InputError for what is larger.
 */
export async function runByRow(run, feeds, engine, model) {
  const names = Object.keys(feeds);
  const rows = feeds[names[0]].dims[0];
  const pieces = [];
  for (let index = 0; index < rows; index++) {
    const one = names.map((name) => [name, padded(row(feeds[name], index), engine.find((spec) => spec.name === name))]);
    pieces.push(await run(Object.fromEntries(one)));
  }
  const sizes = sizesOf(feeds, model.inputs);
  return Object.fromEntries(model.outputs.flatMap((spec) => {
    const parts = pieces.map((piece) => piece[spec.name]).filter(Boolean);
    return parts.length === rows ? [[spec.name, cut(joined(parts), spec, sizes)]] : [];
  }));
}
