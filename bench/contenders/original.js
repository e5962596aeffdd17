/**
 * Contender: the npm package mongoose-lock-release@0.0.3 on Mongoose 6, the last Mongoose that it
 * runs on. It knows callbacks only, so they are promisified, as anybody who awaits it has to.
 */
'use strict';

const { promisify } = require('node:util');

const { ORDER_PATHS } = require('../order');

module.exports = {
  title: 'the original, Mongoose 6',

  async open(uri, collections, filter) {
    const mongoose = require('mongoose6');
    mongoose.set('strictQuery', true);
    const models = collections.map((collection, index) => {
      const name = `Order${index}`;
      const schema = new mongoose.Schema(ORDER_PATHS, { collection });
      schema.plugin(require('mongoose-lock-release-original'), name);
      return mongoose.model(name, schema);
    });
    await mongoose.connect(uri);

    const found = await Promise.all(models.map((Order) => Order.find(filter)));
    return {
      documents: found.flat(),
      lock: promisify((order, duration, done) => order.lock(duration, done)),
      release: promisify((order, done) => order.release(done)),
      close: () => mongoose.disconnect(),
    };
  },
};
