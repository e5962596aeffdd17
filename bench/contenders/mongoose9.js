/**
 * Contender: the original's two findOneAndUpdate calls, written by hand on Mongoose 9. What a
 * project that left Mongoose 6 would have without this plugin.
 */
'use strict';

const { ORDER_PATHS } = require('../order');

module.exports = {
  title: 'the same calls, Mongoose 9',

  async open(uri, collections, filter) {
    const mongoose = require('mongoose9');
    const models = collections.map((collection, index) => {
      const schema = new mongoose.Schema({ ...ORDER_PATHS, locked: Date }, { collection });
      return mongoose.model(`Order${index}`, schema);
    });
    await mongoose.connect(uri);

    const found = await Promise.all(models.map((Order) => Order.find(filter)));
    return {
      documents: found.flat(),
      lock(order, duration) {
        const now = new Date();
        return order.constructor.findOneAndUpdate(
          { _id: order._id, locked: { $lte: now } },
          { locked: new Date(now.getTime() + duration) },
          { returnDocument: 'after' },
        );
      },
      release: (order) =>
        order.constructor.findOneAndUpdate(
          { _id: order._id },
          { locked: new Date() },
          { returnDocument: 'after' },
        ),
      close: () => mongoose.disconnect(),
    };
  },
};
