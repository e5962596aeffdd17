/**
 * Row `grow`: how the cost of lock+release pairs grows with calls in flight, with the size of the
 * documents, with the number of models, and with the collection. Owns which contenders run, in which
 * order and for how long, and what is read from it; what grows is in grow/parts.js.
 */
'use strict';

const { deployment } = require('../../spec/support/deployment');
const { buildRelease } = require('../build');
const { Comparison, gridTable } = require('../comparison');
const { startContender } = require('../contender');
const { onDatabase } = require('../database');
const { growingParts } = require('../grow/parts');
const { progress, rotated } = require('../rounds');

const CONTENDERS = ['original', 'ours', 'limit'];

const LENGTHS = {
  full: { rounds: 3, warmMs: 700, measureMs: 2500, largestCollection: 1_000_000 },
  quick: { rounds: 1, warmMs: 200, measureMs: 500, largestCollection: 100_000 },
};

const METRICS = [
  { key: 'pairsPerSecond', title: 'pairs per second', more: true },
  { key: 'mainMicros', title: 'main-thread CPU per pair', unit: 'µs' },
  { key: 'clientMicros', title: 'CPU of the whole client per pair', unit: 'µs' },
  { key: 'serverMicros', title: 'CPU of mongod per pair', unit: 'µs' },
];

/** A million documents in one message would be too many, and so would a message for each. */
const BATCH = 10_000;

module.exports = {
  summary: 'lock+release pairs by calls in flight, document size, models and collection size',

  async run({ quick, rounds, only }) {
    const names = only ?? CONTENDERS;
    const lengths = { ...(quick ? LENGTHS.quick : LENGTHS.full), ...(rounds && { rounds }) };
    if (names.some((name) => contenderOf(name).needsBuild)) buildRelease();

    const parts = growingParts(lengths.largestCollection);
    const server = await deployment();
    try {
      const results = {};
      for (const [key, part] of Object.entries(parts)) {
        const able = names.filter((name) => part.takesPrograms || !contenderOf(name).binary);
        if (able.length === 0) continue;
        const measured = await measurePart(server, key, part, able, lengths);
        results[key] = { ...summarise(measured), measured };
      }
      const serverVersion = await onDatabase(
        server.uriFor('admin'),
        async (db) => (await db.admin().serverInfo()).version,
      );
      return {
        result: { serverVersion, lengths, parts: results },
        text: describe(parts, results),
      };
    } finally {
      await server.stop();
    }
  },
};

function contenderOf(name) {
  return require(`../contenders/${name}`);
}

/** Measures one part in a database of its own, which is gone before the next part begins. */
async function measurePart(server, key, part, names, lengths) {
  const uri = server.uriFor(`lock_release_bench_${process.pid}_${key}`);
  const serverPids = server.servers.map(({ pid }) => pid);
  const stages = new Map(part.steps.map(({ stage }) => [stage, []]));
  const all = () => [...stages.values()].flat();
  try {
    for (const [index, stage] of [...stages.keys()].entries()) {
      for (const name of names) {
        progress(`${key}: filling collections, ${index + 1} of ${stages.size}, for "${name}"`);
        const collections = await fill(uri, `orders_${name}_${index}`, stage);
        const { settings } = stage;
        const contender = await startContender(name, { uri, collections, settings, serverPids });
        stages.get(stage).push(contender);
      }
    }
    return await measureAll(key, part.steps, stages, lengths);
  } finally {
    progress('');
    await Promise.all(all().map((contender) => contender.stop()));
    await onDatabase(uri, (db) => db.dropDatabase());
  }
}

/** Fills the collections of one contender; resolves to their names. */
async function fill(uri, prefix, { collections, documents, orderOf }) {
  const names = Array.from({ length: collections }, (_, index) => `${prefix}_${index}`);
  await onDatabase(uri, async (db) => {
    for (const name of names) {
      for (let first = 0; first < documents; first += BATCH) {
        const length = Math.min(BATCH, documents - first);
        const orders = Array.from({ length }, (_, index) => orderOf(first + index));
        await db.collection(name).insertMany(orders, { ordered: false });
      }
    }
  });
  return names;
}

/**
 * Round 0 warms everything up and is thrown away. Each round goes through all steps, so that a slow
 * minute of the machine bends no curve.
 */
async function measureAll(key, steps, stages, { rounds, warmMs, measureMs }) {
  const measured = [];
  for (let round = 0; round <= rounds; round++) {
    for (const { column, title, flight, stage } of steps) {
      for (const contender of rotated(stages.get(stage), round)) {
        progress(`${key}, round ${round} of ${rounds}: ${title}, ${contender.title}`);
        const figures = await contender.measure({ flight, warmMs, measureMs });
        if (round > 0) measured.push({ round, contender: contender.name, column, ...figures });
      }
    }
  }
  return measured;
}

function summarise(measured) {
  const comparison = new Comparison(measured);
  const perMetric = (grid) => Object.fromEntries(METRICS.map((one) => [one.key, grid(one)]));
  return {
    timesBetterThanOriginal: perMetric((metric) => comparison.ratios(metric, 'original')),
    figures: perMetric((metric) => comparison.figures(metric)),
  };
}

function describe(parts, results) {
  return [
    'Above each other: how many times better than the original of the same round (above 1 is better),',
    'and the figures themselves. Median of the rounds, with the lowest and the highest in brackets.',
    '',
    ...Object.entries(results).map(([key, result]) => describePart(parts[key], result)),
  ].join('\n');
}

function describePart({ title, steps }, { timesBetterThanOriginal, figures }) {
  const titles = {
    titleOf: (column) => steps.find((step) => step.column === Number(column)).title,
    columnTitle: (name) => contenderOf(name).title,
  };
  const tables = METRICS.flatMap(({ key, title, unit }) => [
    gridTable(`${title}, times better`, turned(timesBetterThanOriginal[key]), titles),
    gridTable(unit ? `${title}, ${unit}` : title, turned(figures[key]), titles),
  ]);
  return `${[title, ...tables].filter(Boolean).join('\n\n')}\n`;
}

/** Steps downwards and contenders across: so it is read how a figure grows. */
function turned(grid) {
  const across = {};
  for (const [name, cells] of Object.entries(grid)) {
    for (const [column, figures] of Object.entries(cells)) {
      across[column] = { ...across[column], [name]: figures };
    }
  }
  return across;
}
