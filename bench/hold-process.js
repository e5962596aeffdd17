/**
 * The process of row `hold`: stores documents, locks all of them with `renew`, and says what it has
 * lost in the end. What it costs meanwhile is measured from outside. Ends with its parent.
 */
'use strict';

const mongoose = require('mongoose9');
const lockRelease = require('..');
const { assertLoadedAsTold } = require('./build');

const IN_FLIGHT = 100;

const verbs = {
  async prepare(count) {
    await mongoose.connect(process.argv[2]);
    const schema = new mongoose.Schema({ name: String }).plugin(lockRelease);
    Order = mongoose.model('Order', schema);
    assertLoadedAsTold();
    await Order.insertMany(Array.from({ length: count }, () => ({ name: 'held' })));
    orders = await Order.find();
    // Clients and code are there before memory is measured.
    const first = await orders[0].lock(1000, { renew: true });
    await first.release();
    return { rss: memory() };
  },

  async lock(durationMs) {
    const left = orders.keys();
    const lane = async () => {
      // What `lock` returned is dropped: the stored document is what holds.
      for (const i of left) if (!(await orders[i].lock(durationMs, { renew: true }))) refused += 1;
    };
    await Promise.all(Array.from({ length: IN_FLIGHT }, lane));
    return { rss: memory() };
  },

  async count() {
    const locked = await Order.countDocuments({ $expr: { $gt: ['$locked', '$$NOW'] } });
    const held = orders.filter((order) => order.$lock?.held).length;
    return { lost: refused + orders.length - Math.min(held, locked) };
  },
};

let Order;
let orders;
let refused = 0;

function memory() {
  global.gc();
  return process.memoryUsage().rss;
}

process.on('message', async (request) => {
  const [[verb, value]] = Object.entries(request);
  process.send(await verbs[verb](value));
});
process.on('disconnect', async () => {
  await mongoose.disconnect();
  process.exit();
});
