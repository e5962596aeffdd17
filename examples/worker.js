/**
 * A queue on a real MongoDB: two processes handle open orders, each order once, and wait for more. Ctrl-C stops them
 * cleanly: what they have begun is finished first.
 *
 *   node examples/worker.js
 *
 * The same file plays three parts: the shop, which takes orders and shows what becomes of them; the workers, which show
 * how `claims` is used; and the owner of a throw-away MongoDB. Ends with 0 if every order that was begun was handled once.
 */
'use strict';

const { fork } = require('node:child_process');
const { once } = require('node:events');
const { setTimeout: sleep } = require('node:timers/promises');

const mongoose = require('../spec/support/mongoose');
const lockRelease = require('..');

const orderSchema = new mongoose.Schema({
  number: Number,
  express: { type: Boolean, default: false },
  status: { type: String, default: 'open' },
  handledBy: [String],
});
// What the filter names, what the sort names, and `locked` at the end: see "Queues" in the README.
orderSchema.index({ status: 1, express: -1, number: 1, locked: 1 });
orderSchema.plugin(lockRelease);
const Order = mongoose.model('Order', orderSchema);

const ORDERS = 40;
const LATER_ORDERS = 10;
const WORKERS = ['A', 'B'];

const parts = {
  /** Handles open orders, three at once, until it is told to stop. */
  async worker(uri, name) {
    const stop = new AbortController();
    process.on('SIGINT', () => stop.abort());
    // A worker does not outlive the shop.
    process.once('disconnect', () => stop.abort());
    await mongoose.connect(uri);

    const open = Order.claims({ status: 'open' }, 10_000, {
      sort: { express: -1, number: 1 },
      concurrency: 3,
      signal: stop.signal,
    });
    await open.forEach(async (order) => {
      tell({ name, event: 'begins', number: order.number, express: order.express });
      await sleep(20 + Math.random() * 60);
      order.status = 'done';
      order.handledBy.push(name);
      // Fenced: it is refused if this process has lost the lock meanwhile.
      await order.save();
      tell({ name, event: 'is done', number: order.number, express: order.express });
    });

    await mongoose.disconnect();
    if (process.connected) process.disconnect();
  },

  /** Keeps MongoDB out of the terminal's reach: Ctrl-C must not end it before the workers have finished. */
  async mongodb() {
    const { deployment } = require('../spec/support/deployment');
    const server = await deployment();
    tell({ uri: server.uriFor(`lock_release_worker_${process.pid}`) });
    await once(process, 'disconnect');
    await server.stop();
  },

  async shop() {
    const interrupted = new AbortController();
    process.on('SIGINT', () => interrupted.abort());
    console.log('Starting a MongoDB ...');
    const mongodb = fork(__filename, ['mongodb'], { detached: true });
    const [{ uri }] = await firstMessage(mongodb);
    try {
      await mongoose.connect(uri);
      await Order.init();
      await order(1, ORDERS);
      console.log(`${ORDERS} orders, two workers; Ctrl-C stops them\n`);
      await run(uri, interrupted.signal);
      return await summarise(interrupted.signal.aborted);
    } finally {
      await mongoose.connection.dropDatabase();
      await mongoose.disconnect();
      mongodb.disconnect();
      await once(mongodb, 'exit');
    }
  },
};

function tell(message) {
  if (process.connected) process.send(message);
}

async function firstMessage(child) {
  const ended = once(child, 'exit').then(([code]) => {
    throw new Error(`it ended with exit code ${code}`);
  });
  return Promise.race([once(child, 'message'), ended]);
}

async function order(from, to) {
  const numbers = Array.from({ length: to - from + 1 }, (_, i) => from + i);
  await Order.insertMany(numbers.map((number) => ({ number, express: number % 10 === 0 })));
}

/** Runs the workers until all orders are done, or somebody has had enough. */
async function run(uri, interrupted) {
  const workers = WORKERS.map((name) => fork(__filename, ['worker', uri, name]));
  const ended = workers.map(async (worker) => {
    const [code, signal] = await once(worker, 'exit');
    // One that is stopped before it has begun has nothing to finish.
    const isStopped = signal === 'SIGINT' && interrupted.aborted;
    if (code !== 0 && !isStopped) {
      throw new Error(`a worker ended with ${signal ?? `exit code ${code}`}`);
    }
  });
  for (const worker of workers) worker.on('message', print);
  const wanted = { open: ORDERS + LATER_ORDERS };
  const later = sleep(1500, undefined, { signal: interrupted }).then(() => {
    console.log(`${' '.repeat(4)}${LATER_ORDERS} more orders come in`);
    return order(ORDERS + 1, wanted.open);
  });
  await Promise.race([later.then(() => allDone(wanted.open, interrupted)), ...ended]).catch(
    (error) => {
      if (!interrupted.aborted) throw error;
    },
  );
  // They end by themselves, once they have finished what they have begun.
  for (const worker of workers) worker.kill('SIGINT');
  await Promise.all(ended);
}

async function allDone(count, signal) {
  while ((await Order.countDocuments({ status: 'done' })) < count) {
    await sleep(50, undefined, { signal });
  }
}

function print({ name, event, number, express }) {
  const column = WORKERS.indexOf(name) * 36;
  console.log(
    `${' '.repeat(4 + column)}${name}: ${express ? 'express ' : ''}order ${number} ${event}`,
  );
}

/** Counts what is stored, and returns the exit code. */
async function summarise(wasInterrupted) {
  const handled = await Order.find({ status: 'done' });
  const by = (name) => handled.filter(({ handledBy }) => handledBy.includes(name)).length;
  const twice = handled.filter(({ handledBy }) => handledBy.length > 1).length;
  const locked = await Order.find().locked().countDocuments();
  const open = await Order.countDocuments({ status: 'open' });
  const rows = {
    ...Object.fromEntries(WORKERS.map((name) => [`handled by ${name}`, by(name)])),
    'handled twice': twice,
    'still open': open,
    'still locked': locked,
  };
  console.log();
  for (const [what, count] of Object.entries(rows)) {
    console.log(`${what.padEnd(16)}${String(count).padStart(3)}`);
  }
  return twice === 0 && locked === 0 && (open === 0 || wasInterrupted) ? 0 : 1;
}

const [part = 'shop', ...given] = process.argv.slice(2);
parts[part](...given).then(
  (exitCode) => {
    process.exitCode = exitCode;
  },
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
