// The page: which bundle, its self-test, and what its model does with a picture or with texts.

import { openBundle, reasonOf, runtime } from './bundle.mjs';
import { classify, cosine, embed } from './lib/answers.mjs';
import { readManifest } from './lib/manifest.mjs';
import { selftest } from './lib/selftest.mjs';
import { tokenizerOf } from './lib/tokenizer.mjs';
import { Served } from './served.mjs';

const SHOWN = 5, LARGEST_SIDE = 1024;
const at = (id) => document.getElementById(id);

let open = null;

function addressOf(name) {
  return new URL(`bundles/${encodeURIComponent(name)}/`, document.baseURI);
}

/** The chosen bundle, opened once. */
async function chosen() {
  const name = at('bundle').value;
  if (open?.name === name) return open.bundle;
  await open?.bundle.close();
  open = null;
  const bundle = await openBundle(addressOf(name));
  open = { name, bundle };
  return bundle;
}

/** While `work` runs its button is off; what it throws is shown. */
async function working(button, work) {
  at('trouble').textContent = '';
  button.disabled = true;
  try {
    await work();
  } catch (error) {
    console.warn(error);
    at('trouble').textContent = reasonOf(error);
  } finally {
    button.disabled = false;
  }
}

function list(element, lines) {
  element.replaceChildren(...lines.map((line) => Object.assign(document.createElement('li'), { textContent: line })));
}

function verdict(text, kind) {
  at('verdict').className = kind;
  at('verdict').textContent = text;
}

async function runSelftest() {
  const report = at('report');
  const print = (line) => report.append(`${line}\n`);
  report.textContent = '';
  verdict('running…', '');
  try {
    await selftest(new Served(addressOf(at('bundle').value)), await runtime(), print);
    print('selftest passed');
    verdict('selftest passed', 'passed');
  } catch (error) {
    console.warn(error);
    print(`selftest FAILED: ${reasonOf(error)}`);
    verdict(`selftest FAILED: ${reasonOf(error)}`, 'failed');
  }
}

/** The picture's pixels, red, green, blue and alpha, made smaller where it is very large. */
async function pixels(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  const context = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0, width, height);
  return { dims: [height, width, 4], data: context.getImageData(0, 0, width, height).data };
}

async function showClasses() {
  const [file] = at('picture').files;
  if (!file) return;
  const classes = await classify(await chosen(), await pixels(file));
  list(at('classes'), classes.slice(0, SHOWN).map(({ label, share }) => `${label}: ${(100 * share).toFixed(2)}%`));
}

async function showCosines() {
  const texts = at('lines').value.split('\n').filter((line) => line.trim());
  if (!texts.length) return;
  const bundle = await chosen();
  const vectors = await embed(bundle, await tokenizerOf(bundle), texts);
  list(at('cosines'), vectors.map((vector, index) => `${cosine(vectors[0], vector).toFixed(4)}: ${texts[index]}`));
}

/** Shows what the chosen bundle's model can be tried on. */
async function offer() {
  for (const id of ['report', 'verdict', 'classes', 'cosines']) at(id).replaceChildren();
  const { model, preprocess, files } = await readManifest(new Served(addressOf(at('bundle').value)));
  at('images').hidden = !(model.task === 'image-classification' && preprocess?.graph && !preprocess.needs?.length);
  at('texts').hidden = !(model.kind === 'encoder' && files['assets/tokenizer.json']);
}

async function start() {
  const names = await (await fetch('bundles.json', { cache: 'no-cache' })).json();
  at('bundle').replaceChildren(...names.map((name) => new Option(name, name)));
  at('bundle').addEventListener('change', () => working(at('bundle'), offer));
  at('run').addEventListener('click', () => working(at('run'), runSelftest));
  at('compare').addEventListener('click', () => working(at('compare'), showCosines));
  at('picture').addEventListener('change', () => working(at('picture'), showClasses));
  await offer();
}

await working(at('run'), start);
