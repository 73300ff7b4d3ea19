// Bundles opened by onnxruntime-node:
//
//   const bundle = await openBundle('all-minilm-l6-v2-ort-cpu-int8');
//   const { embedding } = await bundle.run({ input_ids: { type: 'int64', dims: [1, 2], data: [101, 102] }, … });
//   await bundle.close();

import * as ort from 'onnxruntime-node';

import { Folder } from './folder.mjs';
import { Bundle } from './lib/bundle.mjs';

export * from './lib/errors.mjs';

/** What lib/bundle.mjs runs graphs with. The file is given by its path, so that weights are mapped, not read. */
const runtime = {
  ort,
  buffersInPlace: true,
  name: 'onnxruntime-node',
  version: ort.env.versions.node,
  ranOn: `onnxruntime ${ort.env.versions.node} CPUExecutionProvider, onnxruntime-node on ${process.platform} ${process.arch}`,
  Tokenizer: await importedTokenizer(),
  async model(folder, file) {
    return { model: await folder.place(file), options: { executionProviders: ['cpu'], logSeverityLevel: 3 } };
  },
};

async function importedTokenizer() {
  try {
    return (await import('@huggingface/tokenizers')).Tokenizer;
  } catch (error) {
    if (error.code === 'ERR_MODULE_NOT_FOUND') return undefined;
    throw error;
  }
}

/** Every file is held to its hash, then the engine is opened. Throws subclasses of BundleError, see lib/errors.mjs. */
export function openBundle(folder) {
  return Bundle.open(new Folder(folder), runtime);
}

export { Folder, runtime };
