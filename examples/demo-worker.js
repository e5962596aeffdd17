/**
 * One of the two workers that race for the same orders: this file shows how the plugin is used.
 * It charges each order that it gets hold of and tells the demo what happened; it prints nothing.
 *
 *   node examples/demo-worker.js <uri> <name> [--without-lock]     (forked by demo.js)
 */
'use strict';

const { once } = require('node:events');
const { setTimeout: sleep } = require('node:timers/promises');

const { mongoose, Order, Charge } = require('./demo-models');

const [uri, worker, flag] = process.argv.slice(2);
const withLock = flag !== '--without-lock';
const LOCK_MS = 10_000;

async function handle(order) {
  // Of all who ask for the lock, one gets it, and with it the order as it is stored right now.
  const current = withLock ? await order.lock(LOCK_MS) : order;
  if (!current) return tell('refused', order);

  try {
    if (current.status === 'done') return tell('skipped', order);
    tell('started', order);
    await chargeTheCard(current);
    current.status = 'done';
    await current.save();
    tell('charged', order);
  } finally {
    if (withLock) await order.release();
  }
}

/** What must happen once and only once; a payment takes its time. */
async function chargeTheCard(order) {
  await sleep(5 + Math.random() * 25);
  await Charge.create({ order: order.number, amount: order.amount, worker });
}

function tell(event, order) {
  process.send({ event, order: order?.number, amount: order?.amount });
}

async function main() {
  await mongoose.connect(uri);
  const orders = await Order.find().sort('number');

  // Both workers have loaded the same orders before either of them begins.
  tell('ready');
  await once(process, 'message');
  for (const order of orders) await handle(order);

  await mongoose.disconnect();
  process.disconnect();
}

// A worker does not outlive the demo.
process.once('disconnect', () => process.exit());

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
