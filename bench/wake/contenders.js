/**
 * The contenders of row `wake`: ways to get the lock of one document that other processes want too.
 * Each runs in many processes at once (process.js) and has the others only through its server.
 *
 * A contender is `{ title, server, open(uri, name) }`, where `open` resolves to
 * `{ lock(), release(held), close() }`; `lock` resolves to what it holds, or to null if it gave up.
 */
'use strict';

const { setTimeout: sleep } = require('node:timers/promises');

const { ORDER_PATHS } = require('../order');
const { assertLoadedAsTold } = require('../build');

/** Long enough that no lock ever ends by itself. */
const LOCK_MS = 10_000;
const WAIT_MS = 60_000;
const POLL_MS = 250;

const waiting = (order) => order.lock(LOCK_MS, { wait: WAIT_MS });

/**
 * By hand, as it is done without `wait`. The first pause is a random part of the interval: else a
 * poll that begins while the lock is held would always end equally late after its release. It makes
 * polling look better than that.
 */
async function polling(order) {
  for (let pause = Math.random() * POLL_MS; ; pause = POLL_MS) {
    const held = await order.lock(LOCK_MS);
    if (held) return held;
    await sleep(pause);
  }
}

async function openPlugin(uri, collection, lock) {
  const mongoose = require('mongoose9');
  const schema = new mongoose.Schema(ORDER_PATHS, { collection });
  schema.plugin(require('../..'));
  const Order = mongoose.model('Order', schema);
  await mongoose.connect(uri);

  const order = await Order.findOne().orFail();
  // The binding may be loaded as late as by the first call, so the check comes after one.
  await order.lock(0);
  await order.release();
  assertLoadedAsTold();
  return {
    lock: () => lock(order),
    async release(held) {
      if (!(await held.release())) throw new Error('a lock was lost while it was held');
    },
    close: () => mongoose.disconnect(),
  };
}

async function openRedlock(uri, resource) {
  const { Redis } = require('ioredis');
  const { default: Redlock, ExecutionError } = require('redlock');
  const client = new Redis(uri);
  const redlock = new Redlock([client]);
  // It tells of each refused try here; what matters comes from `acquire` as well.
  redlock.on('error', () => {});
  await client.ping();
  return {
    async lock() {
      try {
        return await redlock.acquire([resource], LOCK_MS);
      } catch (error) {
        if (error instanceof ExecutionError) return null;
        throw error;
      }
    },
    release: (held) => held.release(),
    close: () => client.quit(),
  };
}

module.exports = {
  ours: {
    title: 'this plugin, wait',
    server: 'replicaSet',
    open: (uri, name) => openPlugin(uri, name, waiting),
  },
  poll250: {
    title: 'this plugin, polled each 250 ms',
    server: 'replicaSet',
    open: (uri, name) => openPlugin(uri, name, polling),
  },
  redlock: { title: 'redlock 5 on Redis', server: 'redis', open: openRedlock },
  single: {
    title: 'this plugin, wait, single server',
    server: 'single',
    open: (uri, name) => openPlugin(uri, name, waiting),
  },
};
