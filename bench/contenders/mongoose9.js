/**
 * Contender: the original's two findOneAndUpdate calls, written by hand on Mongoose 9. What a
 * project that left Mongoose 6 would have without this plugin.
 */
'use strict';

const { ORDER_PATHS } = require('../order');

module.exports = {
  title: 'the same calls, Mongoose 9',

  async open(uri, collection) {
    const mongoose = require('mongoose9');
    const schema = new mongoose.Schema({ ...ORDER_PATHS, locked: Date }, { collection });
    const Order = mongoose.model('Order', schema);
    await mongoose.connect(uri);

    return {
      documents: await Order.find(),
      lock(order, duration) {
        const now = new Date();
        return Order.findOneAndUpdate(
          { _id: order._id, locked: { $lte: now } },
          { locked: new Date(now.getTime() + duration) },
          { returnDocument: 'after' },
        );
      },
      release: (order) =>
        Order.findOneAndUpdate(
          { _id: order._id },
          { locked: new Date() },
          { returnDocument: 'after' },
        ),
      close: () => mongoose.disconnect(),
    };
  },
};
