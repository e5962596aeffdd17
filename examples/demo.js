/**
 * The main job, on a real MongoDB: two processes race for the same orders, and each order must be
 * charged once. Owns the MongoDB, the two workers, what the terminal shows and the final count; how
 * the plugin is used stands in demo-worker.js.
 *
 *   npm run demo                        with lock and release: every order is handled once
 *   npm run demo -- --without-lock      the same without: orders are handled twice
 *
 * Ends with 0 if every order was handled exactly once, else with 1.
 */
'use strict';

const { fork } = require('node:child_process');
const { once } = require('node:events');
const path = require('node:path');

const { deployment } = require('../spec/support/deployment');
const { mongoose, Order, Charge } = require('./demo-models');

const ORDERS = 12;
const WORKERS = ['A', 'B'];
const COLUMN = 30;

const flags = process.argv.slice(2);
const withLock = !flags.includes('--without-lock');
const interrupted = new AbortController();

async function main() {
  console.log('Starting a MongoDB ...');
  const server = await deployment();
  // Only from here on: while it starts, a signal ends this process at once, and MongoDB with it.
  for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => interrupt(server));
  try {
    const uri = server.uriFor(`lock_release_demo_${process.pid}`);
    await mongoose.connect(uri);
    for (let number = 1; number <= ORDERS; number++) {
      await Order.create({ number, amount: 10 * number });
    }
    console.log(
      `${ORDERS} orders, two workers, ${withLock ? 'with' : 'WITHOUT'} lock and release\n`,
    );

    const events = await race(uri);
    return await summarise(events);
  } finally {
    await leaveNothingBehind(server);
  }
}

/** Lets the workers loose on the orders; resolves to what they told once both have ended. */
async function race(uri) {
  const events = [];
  const workers = WORKERS.map((name) =>
    fork(path.join(__dirname, 'demo-worker.js'), [uri, name, ...flags], {
      signal: interrupted.signal,
    }),
  );
  const ended = workers.map(async (worker) => {
    const [code, signal] = await once(worker, 'exit');
    if (code !== 0) throw new Error(`a worker ended with ${signal ?? `exit code ${code}`}`);
  });

  const ready = workers.map((worker) => once(worker, 'message'));
  await Promise.race([Promise.all(ready), Promise.all(ended)]);

  printRow('ms', 'order', ...WORKERS.map((name) => `worker ${name}`));
  const start = performance.now();
  for (const [index, worker] of workers.entries()) {
    worker.on('message', (message) => {
      events.push(message);
      const columns = WORKERS.map((_, column) =>
        column === index ? describe(message, events) : '',
      );
      printRow(Math.round(performance.now() - start), message.order, ...columns);
    });
    worker.send('go');
  }
  await Promise.all(ended);
  return events;
}

function describe({ event, order, amount }, events) {
  const charges = events.filter((other) => other.event === 'charged' && other.order === order);
  switch (event) {
    case 'started':
      return withLock ? 'locked' : 'found open';
    case 'charged':
      return `charged ${amount}${charges.length > 1 ? ', once too often' : ', done'}`;
    case 'refused':
      return 'refused: it is locked';
    case 'skipped':
      return 'locked, but done: skipped';
  }
}

function printRow(ms, order, ...columns) {
  const cells = columns.map((text) => text.padEnd(COLUMN)).join('');
  console.log(`${String(ms).padStart(5)}  ${String(order).padStart(5)}  ${cells}`.trimEnd());
}

/** Counts what counts, the charges in the database, and returns the exit code. */
async function summarise(events) {
  const charged = await Charge.aggregate([{ $group: { _id: '$order', times: { $sum: 1 } } }]);
  const handledOnce = charged.filter(({ times }) => times === 1).length;
  const handledTwice = charged.length - handledOnce;
  const refused = events.filter(({ event }) => event === 'refused').length;

  console.log();
  console.log(`orders          ${String(ORDERS).padStart(3)}`);
  console.log(`handled once    ${String(handledOnce).padStart(3)}`);
  console.log(`handled twice   ${String(handledTwice).padStart(3)}`);
  console.log(`refused locks   ${String(refused).padStart(3)}`);
  return handledOnce === ORDERS ? 0 : 1;
}

/** A MongoDB of our own takes its data with it; one that was there before loses the demo's alone. */
async function leaveNothingBehind(server) {
  const connected = mongoose.connection.readyState === 1;
  if (server.kind === 'external' && connected) await mongoose.connection.dropDatabase();
  await server.stop();
}

async function interrupt(server) {
  interrupted.abort();
  await leaveNothingBehind(server).catch(() => {});
  process.exit(130);
}

main().then(
  (exitCode) => process.exit(exitCode),
  (error) => {
    if (interrupted.signal.aborted) return;
    console.error(error);
    process.exit(1);
  },
);
