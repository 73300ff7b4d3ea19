// What the self-test does, in the order of docs/selftest.md; `print` takes each line, and what it throws is the reason.

import { Bundle } from './bundle.mjs';
import { compare, described, judge, worse } from './comparison.mjs';
import { BrokenBundleError, DriftError } from './errors.mjs';
import { readSamples, requireUnchanged } from './manifest.mjs';
import { paddedAt } from './padding.mjs';
import { checkProcessing } from './processing.mjs';

function driftOf(output, sample, answers, manifest) {
  const reference = sample.outputs[output.name];
  const padded = reference ? paddedAt(output, reference.dims, sample.inputs, manifest) : null;
  return compare(reference, answers[output.name], padded);
}

async function measure(bundle, samples) {
  const { outputs } = bundle.manifest;
  const worst = {};
  for (const sample of samples) {
    const answers = await bundle.run(sample.inputs);
    for (const output of outputs) {
      const drift = driftOf(output, sample, answers, bundle.manifest);
      worst[output.name] = worst[output.name] ? worse(worst[output.name], drift) : drift;
    }
  }
  return worst;
}

async function checkGolden(bundle, print) {
  const samples = await readSamples(bundle.source, bundle.manifest, 'test_data_set_');
  if (!samples.length) throw new BrokenBundleError('the bundle holds no golden inputs, so there is nothing to check it on');
  let first = '';
  for (const [name, drift] of Object.entries(await measure(bundle, samples))) {
    const reason = judge(name, drift, bundle.manifest.gates.check);
    print(`output ${name}: ${described(drift)}: ${reason ? 'FAIL' : 'pass'}`);
    first ||= reason;
  }
  if (first) throw new DriftError(first);
}

/** Throws a BundleError whose message is the reason; when it returns, the self-test passed. */
export async function selftest(source, runtime, print) {
  const bundle = await Bundle.read(source, runtime);
  const { model, target, toolkit, files } = bundle.manifest;
  print(`bundle ${model.name} ${target.runtime}-${target.scheme}, made by toolkit ${toolkit}`);
  await requireUnchanged(source, bundle.manifest);
  print(`files ${Object.keys(files).length} unchanged`);
  try {
    await bundle.openEngine();
    print(`runtime ${runtime.ranOn}`);
    await checkGolden(bundle, print);
    for (const place of ['preprocess', 'postprocess']) await checkProcessing(bundle, place, print);
  } finally {
    await bundle.close();
  }
}
