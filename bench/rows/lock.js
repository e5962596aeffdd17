/**
 * Row `lock`: lock+release pairs, all contenders side by side on one server. Owns which contenders
 * run, in which order and for how long, and what is read from it. Each lane has documents of its
 * own, so that nobody ever waits for a lock: what is measured is the cost of locking alone.
 */
'use strict';

const { deployment } = require('../../spec/support/deployment');
const { buildRelease } = require('../build');
const { Comparison, goalRows, gridTable } = require('../comparison');
const { startContender } = require('../contender');
const { onDatabase } = require('../database');
const { table } = require('../figures');
const { storedOrder } = require('../order');
const { progress, rotated } = require('../rounds');

const CONTENDERS = ['original', 'mongoose9', 'driver', 'ours', 'limit'];
const FLIGHTS = [1, 16, 64];
/** Several for each lane, so that a pair does not follow right upon the last one on its document. */
const DOCUMENTS = 1024;

const LENGTHS = {
  full: { rounds: 5, warmMs: 500, measureMs: 3000, delayMs: 2000 },
  quick: { rounds: 2, warmMs: 200, measureMs: 700, delayMs: 500 },
};

const PAIRS = { key: 'pairsPerSecond', title: 'pairs per second', more: true };
const METRICS = [
  PAIRS,
  { key: 'mainMicros', title: 'main-thread CPU per pair', unit: 'µs' },
  { key: 'clientMicros', title: 'CPU of the whole client per pair', unit: 'µs' },
  { key: 'serverMicros', title: 'CPU of mongod per pair', unit: 'µs' },
  { key: 'delayP99Ms', title: 'event-loop delay p99', unit: 'ms' },
];

/** By number in flight: how many times better than the original this plugin is meant to be. */
const GOALS = {
  pairsPerSecond: { 1: 1, 16: 1.5, 64: 1.7 },
  mainMicros: { 16: 4.5, 64: 5.5 },
  delayP99Ms: { 64: 10 },
};
/** And which share of the pure Rust loop's pairs per second it is meant to reach. */
const LIMIT_GOALS = { 16: 0.85, 64: 0.9 };

module.exports = {
  summary: 'lock+release pairs: throughput, CPU and event-loop delay, against other ways to lock',

  async run({ quick, rounds, only }) {
    const names = only ?? CONTENDERS;
    const lengths = { ...(quick ? LENGTHS.quick : LENGTHS.full), ...(rounds && { rounds }) };
    if (names.some((name) => contenderOf(name).needsBuild)) buildRelease();

    const server = await deployment();
    const contenders = [];
    try {
      const uri = server.uriFor(`lock_release_bench_${process.pid}`);
      const serverVersion = await prepare(uri, names);
      const serverPids = server.servers.map(({ pid }) => pid);
      for (const name of names) {
        const collections = [collectionOf(name)];
        contenders.push(await startContender(name, { uri, collections, serverPids }));
      }
      const measured = await measureAll(contenders, lengths);
      await Promise.all(contenders.splice(0).map((contender) => contender.stop()));
      if (server.kind === 'external') await onDatabase(uri, (db) => db.dropDatabase());
      const result = summarise(measured);
      return { result: { serverVersion, lengths, ...result, measured }, text: describe(result) };
    } finally {
      await Promise.all(contenders.map((contender) => contender.stop()));
      await server.stop();
    }
  },
};

/** Gives each contender a collection of its own; resolves to the server's version. */
async function prepare(uri, names) {
  return onDatabase(uri, async (db) => {
    for (const name of names) {
      const orders = Array.from({ length: DOCUMENTS }, (_, number) => storedOrder(number));
      await db.collection(collectionOf(name)).insertMany(orders);
    }
    return (await db.admin().serverInfo()).version;
  });
}

function contenderOf(name) {
  return require(`../contenders/${name}`);
}

function collectionOf(name) {
  return `orders_${name}`;
}

/** Round 0 warms everything up and is thrown away. */
async function measureAll(contenders, { rounds, warmMs, measureMs, delayMs }) {
  const measured = [];
  for (let round = 0; round <= rounds; round++) {
    for (const flight of FLIGHTS) {
      for (const contender of rotated(contenders, round)) {
        progress(`round ${round} of ${rounds}: ${flight} in flight, ${contender.title}`);
        const figures = await contender.measure({ flight, warmMs, measureMs });
        if (contender.hasEventLoop) {
          // Apart from the throughput, which the sampling of the event loop would lower.
          const watched = { flight, warmMs, measureMs: delayMs, watchDelay: true };
          figures.delayP99Ms = (await contender.measure(watched)).delayP99Ms;
        }
        const measurement = { round, contender: contender.name, column: flight, ...figures };
        if (round > 0) measured.push(measurement);
      }
    }
  }
  progress('');
  return measured;
}

function summarise(measured) {
  const comparison = new Comparison(measured);
  const perMetric = (grid) => Object.fromEntries(METRICS.map((one) => [one.key, grid(one)]));
  return {
    timesBetterThanOriginal: perMetric((metric) => comparison.ratios(metric, 'original')),
    shareOfLimit: comparison.ratios(PAIRS, 'limit'),
    figures: perMetric((metric) => comparison.figures(metric)),
  };
}

function describe({ timesBetterThanOriginal, shareOfLimit, figures }) {
  const titles = {
    titleOf: (name) => contenderOf(name).title,
    columnTitle: (flight) => `${flight} in flight`,
  };
  const all = (grids, unitOf) =>
    METRICS.map((metric) =>
      gridTable(`${metric.title}${unitOf(metric)}`, grids[metric.key], titles),
    );
  const goals = METRICS.flatMap(({ key, title }) =>
    goalRows(`${title}, in flight`, GOALS[key], timesBetterThanOriginal[key].ours),
  );
  goals.push(...goalRows('share of the limit, in flight', LIMIT_GOALS, shareOfLimit.ours));
  return [
    'RATIOS: how many times better than the original of the same round (above 1 is better).',
    'Median of the rounds, with the lowest and the highest in brackets.',
    ...all(timesBetterThanOriginal, () => ''),
    gridTable('pairs per second, share of the limit', shareOfLimit, titles),
    'FIGURES: median of the rounds, with the lowest and the highest in brackets.',
    ...all(figures, ({ unit }) => (unit ? `, ${unit}` : '')),
    ...(goals.length ? ['GOALS of this plugin, by the medians of its ratios.', table(goals)] : []),
  ]
    .filter(Boolean)
    .join('\n\n');
}
