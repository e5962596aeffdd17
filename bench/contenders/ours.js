/**
 * Contender: this plugin on Mongoose 9, with the addon as it is shipped (release profile).
 */
'use strict';

const { ORDER_PATHS } = require('../order');
const { assertLoadedAsTold } = require('../build');

module.exports = {
  title: 'this plugin, Mongoose 9',
  needsBuild: true,

  async open(uri, collections, filter) {
    const mongoose = require('mongoose9');
    const models = collections.map((collection, index) => {
      const schema = new mongoose.Schema(ORDER_PATHS, { collection });
      schema.plugin(require('../..'));
      return mongoose.model(`Order${index}`, schema);
    });
    await mongoose.connect(uri);

    const documents = (await Promise.all(models.map((Order) => Order.find(filter)))).flat();
    // The binding may be loaded as late as by the first call, so the check comes after one.
    await documents[0].lock(0);
    await documents[0].release();
    assertLoadedAsTold();
    return {
      documents,
      lock: (order, duration) => order.lock(duration),
      release: (order) => order.release(),
      close: () => mongoose.disconnect(),
    };
  },
};
