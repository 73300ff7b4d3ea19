// `manifest.json`, and whether each file is still what it says. A source has `read(path)`, which answers bytes or null
// for a file that is missing, `bytes(path)`, its size or null, and `sha256(path)` in hex.

import { BrokenBundleError } from './errors.mjs';
import { readTensor } from './tensor_proto.mjs';

export const MANIFEST = 'manifest.json';
const SCHEMA = 1;
const WEIGHTS = '.data';
const ORT_FORMAT = '.ort';

function isInside(path) {
  const parts = path.split('/');
  const odd = parts.some((part) => part === '' || part === '.' || part === '..');
  return !odd && !/[\\\0]/.test(path) && !parts[0].includes(':');
}

function parsed(bytes) {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (error) {
    throw new BrokenBundleError(`${MANIFEST}: no JSON, ${error.message}`);
  }
}

const NEEDED = {
  model: 'object', target: 'object', files: 'object', gates: 'object', engine: 'object', inputs: 'object',
  outputs: 'object', graph: 'string',
};

function requireWhole(manifest) {
  for (const [name, kind] of Object.entries(NEEDED)) {
    const value = manifest[name];
    if (value === null || typeof value !== kind) throw new BrokenBundleError(`${MANIFEST}: '${name}' is missing`);
  }
  if (!manifest.outputs.length) throw new BrokenBundleError(`${MANIFEST}: the model has no outputs`);
  if (!manifest.gates.check) throw new BrokenBundleError(`${MANIFEST}: gates must hold 'check'`);
  for (const path of [manifest.graph, ...Object.keys(manifest.files)]) {
    if (!isInside(path)) throw new BrokenBundleError(`${MANIFEST}: '${path}' is not a relative path inside the bundle`);
  }
  const beside = [manifest.preprocess?.graph, manifest.postprocess?.graph].filter(Boolean);
  for (const path of [engineFile(manifest), ...beside]) {
    if (!Object.hasOwn(manifest.files, path)) throw new BrokenBundleError(`${MANIFEST}: not listed in files: ${path}`);
  }
}

/** The manifest as an object. Throws BrokenBundleError where it is missing, broken, or of another schema. */
export async function readManifest(source) {
  const bytes = await source.read(MANIFEST);
  if (!bytes) throw new BrokenBundleError(`${MANIFEST}: missing`);
  const manifest = parsed(bytes);
  if (manifest?.schema_version !== SCHEMA) {
    throw new BrokenBundleError(`${MANIFEST}: schema version ${manifest?.schema_version}; this program reads ${SCHEMA}`);
  }
  requireWhole(manifest);
  return manifest;
}

/** Throws BrokenBundleError that names the first file which is missing or changed. */
export async function requireUnchanged(source, manifest) {
  for (const [path, entry] of Object.entries(manifest.files)) {
    const size = await source.bytes(path);
    if (size === null) throw new BrokenBundleError(`${path}: missing`);
    if (size !== entry.bytes) {
      throw new BrokenBundleError(`${path}: changed, ${size} bytes where the manifest has ${entry.bytes}`);
    }
    if ((await source.sha256(path)) !== entry.sha256) {
      throw new BrokenBundleError(`${path}: changed, another SHA-256 than the manifest's`);
    }
  }
}

/** The file that the runtime opens: the graph, or what was made of it for phones. */
export function engineFile(manifest) {
  return (manifest.engine.files ?? []).find((file) => file.endsWith(ORT_FORMAT)) ?? manifest.graph;
}

/** The file with a graph's weights, which the graph knows by its name alone: `[{ file, name }]`, or none. */
export function weightFiles(manifest, graph) {
  const file = `${graph}${WEIGHTS}`;
  return Object.hasOwn(manifest.files, file) ? [{ file, name: file.slice(file.lastIndexOf('/') + 1) }] : [];
}

function numbered(manifest, pattern) {
  const found = Object.keys(manifest.files).flatMap((file) => {
    const match = pattern.exec(file);
    return match ? [{ file, numbers: match.slice(1).map(Number) }] : [];
  });
  const compare = (left, right) => left.numbers[0] - right.numbers[0] || left.numbers[1] - right.numbers[1];
  return found.sort(compare);
}

async function readSets(source, manifest, prefix, word) {
  const sets = [];
  for (const { file, numbers } of numbered(manifest, new RegExp(`^${prefix}(\\d+)/${word}_(\\d+)\\.pb$`))) {
    const { name, ...tensor } = readTensor(await source.read(file), file);
    (sets[numbers[0]] ??= {})[name] = tensor;
  }
  return sets;
}

/** Pairs `{ number, inputs, outputs }` of the folders `<prefix>N`, tensors by name. Throws BrokenBundleError. */
export async function readSamples(source, manifest, prefix) {
  const [inputs, outputs] = [
    await readSets(source, manifest, prefix, 'input'),
    await readSets(source, manifest, prefix, 'output'),
  ];
  return inputs.map((given, number) => ({ number, inputs: given, outputs: outputs[number] ?? {} })).filter(Boolean);
}
