/**
 * Claimers: this plugin, `limit` documents at a time, and its whole loop with a save and a release
 * for each document.
 */
'use strict';

const { assertLoadedAsTold } = require('../build');
const { LOCK_MS, openQueue } = require('./queue');

const QUEUE = { state: 'new' };

async function open(uri, count) {
  const Order = await openQueue(uri, count, (schema) => schema.plugin(require('../..')));
  await Order.claim({ state: 'none' }, LOCK_MS);
  assertLoadedAsTold();
  return Order;
}

const batches = (limit) => async (uri, count) => {
  const Order = await open(uri, count);
  return {
    async run(claimed) {
      for (;;) {
        const orders = await Order.claim(QUEUE, LOCK_MS, { limit, sort: 'priority' });
        claimed(orders.length);
      }
    },
  };
};

async function loop(uri, count) {
  const Order = await open(uri, count);
  return {
    run: (handled) =>
      Order.claims(QUEUE, LOCK_MS, { concurrency: 100, sort: 'priority' }).forEach(
        async (order) => {
          order.state = 'done';
          await order.save();
          handled(1);
        },
      ),
  };
}

module.exports = { batches, loop };
