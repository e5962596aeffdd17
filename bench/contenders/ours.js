/**
 * Contender: this plugin on Mongoose 9, with the addon as it is shipped (release profile).
 */
'use strict';

const { ORDER_PATHS } = require('../order');
const { assertReleaseBinary } = require('../build');

module.exports = {
  title: 'this plugin, Mongoose 9',
  needsBuild: true,

  async open(uri, collection) {
    const mongoose = require('mongoose9');
    const schema = new mongoose.Schema(ORDER_PATHS, { collection });
    schema.plugin(require('../..'));
    const Order = mongoose.model('Order', schema);
    await mongoose.connect(uri);

    const documents = await Order.find();
    // The binding may be loaded as late as by the first call, so the check comes after one.
    await documents[0].lock(0);
    await documents[0].release();
    assertReleaseBinary();
    return {
      documents,
      lock: (order, duration) => order.lock(duration),
      release: (order) => order.release(),
      close: () => mongoose.disconnect(),
    };
  },
};
