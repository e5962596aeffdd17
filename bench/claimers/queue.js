/**
 * The queue of the claimers that use Mongoose: its model, its index, and its documents. Owns their
 * shape, so that all of them empty the same queue.
 */
'use strict';

const { ORDER_PATHS, storedOrder } = require('../order');

const CHUNK = 10_000;
const LOCK_MS = 60_000;

async function fill(collection, count, make) {
  for (let from = 0; from < count; from += CHUNK) {
    const size = Math.min(CHUNK, count - from);
    const documents = Array.from({ length: size }, (_, index) => make(from + index));
    await collection.insertMany(documents, { ordered: false, writeConcern: { w: 1 } });
  }
}

/** A queue of orders on Mongoose 9; `plugin` gets the schema before the model is made. */
async function openQueue(uri, count, plugin) {
  const mongoose = require('mongoose9');
  const schema = new mongoose.Schema(
    { ...ORDER_PATHS, state: String, priority: Number },
    { collection: 'orders' },
  );
  plugin(schema);
  schema.index({ state: 1, priority: 1, locked: 1 });
  const Order = mongoose.model('Order', schema);
  await mongoose.connect(uri);
  await Order.init();
  await fill(Order.collection, count, (number) => ({
    ...storedOrder(number),
    state: 'new',
    priority: number,
  }));
  return Order;
}

module.exports = { LOCK_MS, fill, openQueue };
