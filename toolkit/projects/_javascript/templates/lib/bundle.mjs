// A bundle that is open: its manifest was read, its files are unchanged, its engine takes what the manifest says.

import { Engine } from './engine.mjs';
import { UnsupportedError } from './errors.mjs';
import { engineFile, readManifest, requireUnchanged, weightFiles } from './manifest.mjs';
import { isOtherwise, runByRow } from './rows.mjs';

export class Bundle {
  #engine;
  #beside = {};

  constructor(source, manifest, runtime) {
    this.source = source;
    this.manifest = manifest;
    this.runtime = runtime;
  }

  /**
   * Read the manifest; nothing else is looked at yet. `source` gives the files, see manifest.mjs; `runtime` is
   * `{ ort, name, version, ranOn, model(source, file, weights) }`, the last to answer what a session is created of.
   */
  static async read(source, runtime) {
    return new Bundle(source, await readManifest(source), runtime);
  }

  /** As `read`, then each file is held to its hash and the engine is opened. Throws subclasses of BundleError. */
  static async open(source, runtime) {
    const bundle = await Bundle.read(source, runtime);
    await requireUnchanged(source, bundle.manifest);
    await bundle.openEngine();
    return bundle;
  }

  /** Names, types and ranks of the engine's inputs and outputs are those of the manifest, or this throws. */
  async openEngine() {
    const { engine, outputs } = this.manifest;
    this.#engine = await this.openGraph(engineFile(this.manifest));
    this.#engine.requireLike(this.engineInputs, engine.outputs?.length ? engine.outputs : outputs);
  }

  get engineInputs() {
    const { engine, inputs } = this.manifest;
    return engine.inputs?.length ? engine.inputs : inputs;
  }

  async openGraph(file) {
    const { model, options } = await this.runtime.model(this.source, file, weightFiles(this.manifest, file));
    return Engine.open(model, options, file, this.runtime);
  }

  /**
   * Tensors `{ type, dims, data }` by name to tensors by name. An engine of one fixed shape is fed row by row, padded.
   * `into` holds Tensors that outputs are written to, see Engine.run. Throws InputError for a tensor that it does not take.
   */
  async run(feeds, into) {
    if (isOtherwise(feeds, this.manifest.engine.inputs ?? [])) {
      return runByRow((one) => this.#engine.run(one), feeds, this.engineInputs, this.manifest);
    }
    return this.#engine.run(feeds, into);
  }

  /** Why the graph before or after the model (`preprocess`, `postprocess`) cannot run here; empty if it can. */
  lacking(place) {
    const entry = this.manifest[place];
    if (!entry?.graph) return `the bundle has no ${place} graph${entry?.reason ? `: ${entry.reason}` : ''}`;
    return entry.needs?.length ? `${this.runtime.name} loads no libraries of operators, and it needs ${entry.needs.join(', ')}` : '';
  }

  /** Run the graph before or after the model, which stays open. Throws UnsupportedError where there is none. */
  async runBeside(place, feeds) {
    const why = this.lacking(place);
    if (why) throw new UnsupportedError(why);
    this.#beside[place] ??= this.openGraph(this.manifest[place].graph);
    return (await this.#beside[place]).run(feeds);
  }

  async close() {
    const beside = await Promise.allSettled(Object.values(this.#beside));
    const open = [this.#engine, ...beside.map((each) => each.value)].filter(Boolean);
    this.#engine = undefined;
    this.#beside = {};
    for (const engine of open) await engine.close();
  }
}
