/**
 * Contender: the original's two findOneAndUpdate calls on the bare JavaScript driver (the one that
 * Mongoose 9 brings), with plain objects in place of Mongoose documents. What is left of a lock in
 * JavaScript once Mongoose itself costs nothing.
 */
'use strict';

module.exports = {
  title: 'the bare JavaScript driver',

  async open(uri, collection) {
    const { MongoClient } = require('mongoose9').mongo;
    const client = new MongoClient(uri);
    await client.connect();
    const orders = client.db().collection(collection);

    return {
      documents: await orders.find().toArray(),
      lock(order, duration) {
        const now = new Date();
        return orders.findOneAndUpdate(
          { _id: order._id, locked: { $lte: now } },
          { $set: { locked: new Date(now.getTime() + duration) } },
          { returnDocument: 'after' },
        );
      },
      release: (order) =>
        orders.findOneAndUpdate(
          { _id: order._id },
          { $set: { locked: new Date() } },
          { returnDocument: 'after' },
        ),
      close: () => client.close(),
    };
  },
};
