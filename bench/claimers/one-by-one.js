/**
 * Claimer: a findOneAndUpdate through Mongoose 9 for each document, as people write it by hand, on
 * the same index.
 */
'use strict';

const { LOCK_MS, openQueue } = require('./queue');

module.exports = async function open(uri, count) {
  const Order = await openQueue(uri, count, (schema) => schema.add({ locked: Date }));
  return {
    async run(claimed) {
      for (;;) {
        const order = await Order.findOneAndUpdate(
          { state: 'new', locked: { $lte: new Date() } },
          { $set: { locked: new Date(Date.now() + LOCK_MS) } },
          { sort: { priority: 1 }, returnDocument: 'after' },
        );
        if (!order) return;
        claimed(1);
      }
    },
  };
};
