/**
 * What the demo keeps in MongoDB: orders, which carry the plugin, and the charges made for them.
 * Shared by the demo and its workers; connects to nothing.
 */
'use strict';

const mongoose = require('../spec/support/mongoose');
const lockRelease = require('..');

const orderSchema = new mongoose.Schema({
  number: Number,
  amount: Number,
  status: { type: String, default: 'open' },
});
orderSchema.plugin(lockRelease);

const chargeSchema = new mongoose.Schema({ order: Number, amount: Number, worker: String });

module.exports = {
  mongoose,
  Order: mongoose.model('Order', orderSchema),
  Charge: mongoose.model('Charge', chargeSchema),
};
