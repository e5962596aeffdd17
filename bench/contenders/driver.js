/**
 * Contender: the original's two findOneAndUpdate calls on the bare JavaScript driver (the one that
 * Mongoose 9 brings), with plain objects in place of Mongoose documents. What is left of a lock in
 * JavaScript once Mongoose itself costs nothing.
 */
'use strict';

module.exports = {
  title: 'the bare JavaScript driver',

  async open(uri, collections, filter) {
    const { MongoClient } = require('mongoose9').mongo;
    const client = new MongoClient(uri);
    await client.connect();

    const found = collections.map(async (collection) => {
      const orders = client.db().collection(collection);
      return (await orders.find(filter).toArray()).map(({ _id }) => ({ orders, _id }));
    });
    return {
      documents: (await Promise.all(found)).flat(),
      lock({ orders, _id }, duration) {
        const now = new Date();
        return orders.findOneAndUpdate(
          { _id, locked: { $lte: now } },
          { $set: { locked: new Date(now.getTime() + duration) } },
          { returnDocument: 'after' },
        );
      },
      release: ({ orders, _id }) =>
        orders.findOneAndUpdate(
          { _id },
          { $set: { locked: new Date() } },
          { returnDocument: 'after' },
        ),
      close: () => client.close(),
    };
  },
};
