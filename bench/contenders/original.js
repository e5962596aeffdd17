/**
 * Contender: the npm package mongoose-lock-release@0.0.3 on Mongoose 6, the last Mongoose that it
 * runs on. It knows callbacks only, so they are promisified, as anybody who awaits it has to.
 */
'use strict';

const { promisify } = require('node:util');

const { ORDER_PATHS } = require('../order');

module.exports = {
  title: 'the original, Mongoose 6',

  async open(uri, collection) {
    const mongoose = require('mongoose6');
    mongoose.set('strictQuery', true);
    const schema = new mongoose.Schema(ORDER_PATHS, { collection });
    schema.plugin(require('mongoose-lock-release-original'), 'Order');
    const Order = mongoose.model('Order', schema);
    await mongoose.connect(uri);

    const lock = promisify(Order.prototype.lock);
    const release = promisify(Order.prototype.release);
    return {
      documents: await Order.find(),
      lock: (order, duration) => lock.call(order, duration),
      release: (order) => release.call(order),
      close: () => mongoose.disconnect(),
    };
  },
};
