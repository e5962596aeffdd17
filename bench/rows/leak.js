/**
 * Row `leak`: what is left in memory of locks that are long released. Owns how many pairs, when memory
 * is sampled, and the bound above which the row fails. The pairs are made in a process of their own
 * (leak-process.js).
 */
'use strict';

const { fork } = require('node:child_process');
const { on, once } = require('node:events');
const path = require('node:path');

const { deployment } = require('../../spec/support/deployment');
const { ADDON_BINARY, buildRelease } = require('../build');
const { onDatabase } = require('../database');
const { digits, slope, spread, table, written } = require('../figures');
const { storedOrder } = require('../order');
const { progress } = require('../rounds');

const PROCESS = path.join(__dirname, '..', 'leak-process.js');
const COLLECTION = 'orders';
const DOCUMENTS = 1024;

/**
 * What a pair may leave behind in the second half, in bytes. The least that can be forgotten is more:
 * glibc's smallest piece of memory takes 32, and a JavaScript object with one field 32. Pools, caches,
 * compiled code and the allocators' reserves have grown to their size in the first half; in the second
 * one they move by a few megabytes, which half a million pairs turn into a few bytes each. The quick
 * run has too few pairs for that, and finds only what forgets whole documents.
 */
const LENGTHS = {
  full: { rounds: 1, pairs: 1_000_000, samples: 20, bytesPerPair: 16 },
  quick: { rounds: 1, pairs: 50_000, samples: 20, bytesPerPair: 64 },
};
const PER = 100_000;

const METRICS = [
  { key: 'rss', title: 'resident memory (RSS)' },
  { key: 'heap', title: 'V8 heap and external memory' },
];

module.exports = {
  summary: 'memory that a million lock+release pairs leave behind; fails above a bound',

  async run({ quick, rounds }) {
    buildRelease();
    const lengths = { ...(quick ? LENGTHS.quick : LENGTHS.full), ...(rounds && { rounds }) };
    const server = await deployment();
    try {
      const measured = [];
      for (let round = 1; round <= lengths.rounds; round++) {
        const uri = server.uriFor(`lock_release_bench_${process.pid}_${round}`);
        measured.push(await sample(uri, round, lengths));
        await onDatabase(uri, (db) => db.dropDatabase());
      }
      const bytesPerPair = Object.fromEntries(
        METRICS.map(({ key }) => [key, spread(measured.map((samples) => growth(samples, key)))]),
      );
      return {
        result: { lengths, bytesPerPair, measured },
        text: describe(bytesPerPair, measured, lengths),
        failure: failureOf(bytesPerPair, lengths),
      };
    } finally {
      await server.stop();
    }
  },
};

/** Resolves to `{ pairs, rss, heap }` at even intervals, in bytes. */
async function sample(uri, round, { rounds, pairs, samples }) {
  const orders = Array.from({ length: DOCUMENTS }, (_, number) => storedOrder(number));
  await onDatabase(uri, (db) => db.collection(COLLECTION).insertMany(orders));
  const child = fork(PROCESS, [uri, COLLECTION, pairs, samples].map(String), {
    execArgv: ['--expose-gc'],
    env: { ...process.env, NAPI_RS_NATIVE_LIBRARY_PATH: ADDON_BINARY },
  });
  const ended = once(child, 'exit');
  try {
    const taken = [];
    for await (const [one] of on(child, 'message', { close: ['disconnect'] })) {
      taken.push(one);
      progress(`round ${round} of ${rounds}: ${one.pairs} of ${pairs} pairs`);
    }
    const [code] = await ended;
    if (taken.length < samples)
      throw new Error(`the process that makes the pairs ended with ${code}`);
    return taken;
  } finally {
    progress('');
    if (child.connected) child.disconnect();
    await ended;
  }
}

/** Bytes per pair, in the second half of the samples. */
function growth(samples, key) {
  const settled = samples.slice(samples.length / 2);
  return slope(settled.map((one) => [one.pairs, one[key]]));
}

function failureOf(figures, { bytesPerPair }) {
  const over = METRICS.filter(({ key }) => figures[key].median > bytesPerPair);
  if (over.length === 0) return undefined;
  const grown = over.map(({ key, title }) => `${title} by ${digits(figures[key].median)} bytes`);
  return `memory grows with each pair: ${grown.join(', ')}; the bound is ${bytesPerPair}`;
}

function describe(figures, measured, { rounds, bytesPerPair }) {
  const kilobytes = ({ median, lowest, highest }) => {
    const scaled = [median, lowest, highest].map((bytes) => (bytes * PER) / 1000);
    return written({ median: scaled[0], lowest: scaled[1], highest: scaled[2] });
  };
  const megabytes = (key, index) =>
    written(spread(measured.map((samples) => samples.at(index)[key] / 1e6)));
  const middle = Math.floor(measured[0].length / 2) - 1;
  const after = (index) => `after ${measured[0].at(index).pairs.toLocaleString('en-US')} pairs`;
  return [
    table([
      [`median of ${rounds} (lowest to highest), MB`, ...[0, middle, -1].map(after)],
      ...METRICS.map(({ key, title }) => [
        `  ${title}`,
        ...[0, middle, -1].map((index) => megabytes(key, index)),
      ]),
    ]),
    table([
      [`growth per ${PER.toLocaleString('en-US')} pairs, second half, KB`, 'median', 'bound'],
      ...METRICS.map(({ key, title }) => [
        `  ${title}`,
        kilobytes(figures[key]),
        `${(bytesPerPair * PER) / 1000} (${bytesPerPair} bytes per pair)`,
      ]),
    ]),
  ].join('\n\n');
}
