/*
 * A process of its own that plays one of the scenes below: waits for locked documents, alone or among others, and ends. It
 * tells its parent what it saw and asserts nothing.
 */
'use strict';

const { setTimeout: pause } = require('node:timers/promises');
const { Worker, isMainThread, parentPort, workerData } = require('node:worker_threads');
const mongoose = require('../support/mongoose');

const LONG = 600_000;

/** Resolves once the parent has got it. */
function say(value) {
  return new Promise((resolve) => process.send(value, resolve));
}

const scenes = {
  /** Locks, and holds until it is killed. */
  async hold({ find, duration, renew = false }) {
    const locked = await (await find()).lock(duration, { renew });
    await say({ until: +locked.locked });
    await pause(LONG);
  },

  /** Takes turns with others from one word to the next, and tells each time. */
  async share({ find, work }) {
    const doc = await find();
    const word = () => new Promise((resolve) => process.once('message', resolve));
    await Promise.all([say('ready'), word()]);
    let isOver = false;
    word().then(() => (isOver = true));
    let [count, longest, overlaps] = [0, 0, 0];
    while (!isOver) {
      const start = performance.now();
      await doc.withLock(LONG, { wait: Infinity, renew: false }, async (locked) => {
        longest = Math.max(longest, performance.now() - start);
        const { modifiedCount } = await locked.collection.updateOne(
          { _id: locked._id, inside: { $ne: true } },
          { $set: { inside: true }, $inc: { n: 1 } },
        );
        overlaps += 1 - modifiedCount;
        await pause(work);
        await locked.collection.updateOne({ _id: locked._id }, { $set: { inside: false } });
        count += 1;
      });
      process.send({ count });
    }
    await say({ count, longest, overlaps, isOver });
    process.exit();
  },

  /** Waits for a locked document, and ends meanwhile. */
  async end({ find, ending, options }) {
    const doc = await find();
    const waiting = doc.lock(LONG, { wait: Infinity, ...options }).then(
      (locked) => ({ locked: Boolean(locked) }),
      ({ name, message }) => ({ name, message }),
    );
    await pause(300);
    await say('waiting');
    if (ending === 'exit') process.exit(3);
    if (ending === 'throw') throw new Error('the work went wrong');
    if (ending === 'disconnect') await mongoose.disconnect();
    const outcome = await waiting;
    await say(outcome);
    // Nothing is left to do: it has to end by itself.
    if (ending !== 'disconnect') await mongoose.disconnect();
    process.disconnect();
  },

  /** Threads that wait for one document, each terminated at another moment of its wait. */
  async workers({ uri, id, count, renew, find }) {
    const own = (await find()).lock(LONG, { wait: Infinity });
    for (let number = 0; number < count; number++) {
      const worker = new Worker(__filename, { workerData: { uri, id, renew } });
      await new Promise((resolve, reject) => {
        worker.once('message', resolve);
        worker.once('error', reject);
      });
      await pause(number * 7);
      if (number === count - 1) {
        // Released while the last one waits: it may get the lock just before its end.
        await say('release');
        await pause(5);
      }
      await worker.terminate();
    }
    await say({ locked: Boolean(await own) });
    await (await own).release();
    await say('released');
    await pause(LONG);
  },

  /** A thread that waits for one document, is blocked when it gets it, and is terminated before it can know. */
  async deaf({ uri, id, renew }) {
    const worker = new Worker(__filename, { workerData: { uri, id, renew, isDeaf: true } });
    await new Promise((resolve, reject) => {
      worker.on('message', (said) => said === 'deaf' && resolve());
      worker.once('error', reject);
    });
    const word = new Promise((resolve) => process.once('message', resolve));
    await say('deaf');
    await word;
    await worker.terminate();
    await say('terminated');
    await pause(LONG);
  },
};

function model() {
  const schema = new mongoose.Schema({ name: String, n: Number }, { collection: 'orders' });
  return mongoose.model('Order', schema.plugin(require('../..')));
}

async function main([scene, json]) {
  const { uri, ...args } = JSON.parse(json);
  const Order = model();
  await mongoose.connect(uri);
  await scenes[scene]({ uri, ...args, find: () => Order.findById(args.id) });
}

async function work({ uri, id, renew, isDeaf }) {
  const Order = model();
  await mongoose.connect(uri);
  const doc = await Order.findById(id);
  void doc.lock(LONG, { wait: Infinity, renew });
  parentPort.postMessage('waiting');
  setInterval(() => {}, 1000);
  if (!isDeaf) return;
  await pause(300);
  parentPort.postMessage('deaf');
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
}

if (isMainThread) main(process.argv.slice(2));
else work(workerData);
