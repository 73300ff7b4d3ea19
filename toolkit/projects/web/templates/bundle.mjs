// Bundles opened by onnxruntime-web on WebAssembly:
//
//   const bundle = await openBundle(new URL('bundles/vit-digits-ort-cpu-int8/', document.baseURI));
//   const { logits } = await bundle.run({ pixel_values: { type: 'float32', dims: [1, 1, 8, 8], data } });
//   await bundle.close();

import { Bundle } from './lib/bundle.mjs';
import { UnsupportedError } from './lib/errors.mjs';
import { Served } from './served.mjs';

export * from './lib/errors.mjs';

const RUNTIME = new URL('node_modules/onnxruntime-web/dist/', import.meta.url).href;
const TOKENIZERS = new URL('node_modules/@huggingface/tokenizers/dist/tokenizers.min.mjs', import.meta.url).href;

let loaded;

/** What lib/bundle.mjs runs graphs with. Throws UnsupportedError where `npm install` has not been run. */
export function runtime() {
  loaded ??= load();
  return loaded;
}

async function load() {
  const ort = await imported(`${RUNTIME}ort.wasm.min.mjs`);
  if (!ort) throw new UnsupportedError('onnxruntime-web is not beside the page: run npm install in its folder');
  ort.env.wasm.wasmPaths = RUNTIME;
  // Threads share memory, which a browser gives to pages that are isolated from other origins only.
  const threads = globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 8) : 1;
  ort.env.wasm.numThreads = threads;
  const version = ort.env.versions.web;
  return {
    ort,
    name: 'onnxruntime-web',
    version,
    ranOn: `onnxruntime ${version} CPUExecutionProvider, onnxruntime-web on WebAssembly, ${threads} thread${threads > 1 ? 's' : ''}`,
    Tokenizer: (await imported(TOKENIZERS))?.Tokenizer,
    // A session here copies what it is given into WebAssembly's memory, and answers copies of it.
    buffersInPlace: false,
    model,
  };
}

async function imported(address) {
  try {
    return await import(address);
  } catch (error) {
    console.warn(`${address}: ${error.message}`);
    return undefined;
  }
}

async function model(served, file, weights) {
  const externalData = [];
  for (const { file: path, name } of weights) externalData.push({ path: name, data: await served.take(path) });
  const options = { executionProviders: ['wasm'], logSeverityLevel: 3, externalData };
  return { model: await served.take(file), options };
}

/** Every file is held to its hash, then the engine is opened. Throws subclasses of BundleError, see lib/errors.mjs. */
export async function openBundle(base) {
  return Bundle.open(new Served(base), await runtime());
}
