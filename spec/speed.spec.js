/*
 * That the native path stays ahead of the package that it succeeds: both run in turns on one server, and what is compared
 * is the median of their ratios, by a margin that a machine's mood does not use up. How far ahead it is, `npm run bench`
 * tells.
 */
'use strict';

const assert = require('node:assert/strict');
const { NativeBridge } = require('../binding');
const { startContender } = require('../bench/contender');
const { onDatabase } = require('../bench/database');
const { spread } = require('../bench/figures');
const { storedOrder } = require('../bench/order');
const { startReplicaSet } = require('./support/deployment');

const ROUNDS = 5;
const DOCUMENTS = 1024;
const NAMES = ['original', 'ours'];

/**
 * How many times better than the original at the least, by calls in flight. About half of what is measured: losing that
 * much takes more than a slow minute. Throughput has the larger part of its time in the server, so less can be asked.
 */
const FLOORS = {
  16: { mainMicros: 2, pairsPerSecond: 0.8 },
  64: { mainMicros: 3, pairsPerSecond: 1 },
};

describe('speed', function () {
  this.timeout(300_000);

  let server;
  const contenders = [];

  before(async function () {
    if (!NativeBridge.isOptimized()) {
      assert.notEqual(process.env.REQUIRE_TOOLS, '1', 'the addon is no optimized build');
      this.test.parent.title += ' (needs an optimized build: npm run build)';
      this.skip();
    }
    server = await startReplicaSet();
    const uri = server.uriFor('speed');
    await onDatabase(uri, async (db) => {
      for (const name of NAMES) {
        const orders = Array.from({ length: DOCUMENTS }, (_, number) => storedOrder(number));
        await db.collection(name).insertMany(orders);
      }
    });
    for (const name of NAMES) {
      const settings = { uri, collections: [name], serverPids: [], addon: null };
      contenders.push(await startContender(name, settings));
    }
  });

  after(async function () {
    for (const contender of contenders) await contender.stop();
    await server?.stop();
  });

  /** Median ratios, above 1 where ours is better. */
  async function compare(flight) {
    const ratios = { mainMicros: [], pairsPerSecond: [] };
    // The first round warms everything up.
    for (let round = 0; round <= ROUNDS; round++) {
      const figures = {};
      for (const contender of round % 2 ? contenders : contenders.toReversed()) {
        const length = { flight, warmMs: 300, measureMs: 1000 };
        figures[contender.name] = await contender.measure(length);
      }
      if (round === 0) continue;
      ratios.mainMicros.push(figures.original.mainMicros / figures.ours.mainMicros);
      ratios.pairsPerSecond.push(figures.ours.pairsPerSecond / figures.original.pairsPerSecond);
    }
    return ratios;
  }

  for (const [flight, floors] of Object.entries(FLOORS)) {
    it(`costs the main thread less than the original, and takes no longer: ${flight} in flight`, async function () {
      const ratios = await compare(Number(flight));
      for (const [figure, floor] of Object.entries(floors)) {
        const { median, lowest, highest } = spread(ratios[figure]);
        const told = `${figure} ${median.toFixed(2)} times better (${lowest.toFixed(2)} to ${highest.toFixed(2)})`;
        this.test.title += `, ${told}`;
        assert.ok(median > floor, `${told}; it has to be more than ${floor}`);
      }
    });
  }
});
