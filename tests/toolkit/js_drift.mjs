// What lib/ computes of the folder's tensors: drift, padding, and the feeding of an engine of one fixed shape.
import { readFileSync, readdirSync } from 'node:fs';

import { compare } from './lib/comparison.mjs';
import { paddedAt } from './lib/padding.mjs';
import { runByRow } from './lib/rows.mjs';
import { readTensor } from './lib/tensor_proto.mjs';

const folder = process.argv[2];
const files = readdirSync(folder).filter((file) => file.endsWith('.pb'));
const tensors = Object.fromEntries(
  files.map((file) => [file.slice(0, -3), readTensor(readFileSync(`${folder}/${file}`), file)]),
);
const { pairs, padded, rows } = JSON.parse(readFileSync(`${folder}/cases.json`, 'utf-8'));

function compared([one, other, mask]) {
  const fed = mask && { attention_mask: tensors[mask] };
  const skipped = mask && paddedAt(padded.outputs[0], tensors[one].dims, fed, padded);
  const { sqnr, cosine, relativeL2, maxAbs, defect } = compare(tensors[one], tensors[other], skipped);
  return [...[sqnr, cosine, relativeL2, maxAbs].map(String), defect];
}

const seen = [];
function run({ ids }) {
  seen.push(ids.dims.join());
  return { hidden: ids, pooled: { type: 'int64', dims: [1, 1], data: ids.data.slice(0, 1) } };
}

const { hidden, pooled } = await runByRow(run, { ids: tensors.ids }, rows.engine, rows.model);
const joined = [hidden.dims, Array.from(hidden.data, String), pooled.dims, Array.from(pooled.data, String)];
console.log(JSON.stringify({ compared: pairs.map(compared), seen, rows: joined }));
