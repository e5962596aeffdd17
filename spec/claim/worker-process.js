/*
 * A process of its own that works on the jobs in one of the ways below, and tells its parent what it has done. It asserts
 * nothing.
 */
'use strict';

const { setTimeout: pause } = require('node:timers/promises');
const mongoose = require('../support/mongoose');
const { handle, jobsOn } = require('./jobs');

const [way, given] = process.argv.slice(2);
const args = JSON.parse(given);

/** Resolves once the parent has got it. */
function say(value) {
  return new Promise((resolve) => process.send(value, resolve));
}

const isLeft = (Job) => Job.exists({ state: 'new' });

const ways = {
  /** Claims and handles in batches of these sizes until there is no new job left. */
  async batches(Job, { limits, duration }) {
    const told = { handled: 0, claims: 0, empty: 0 };
    for (let round = 0; ; round += 1) {
      const limit = limits[round % limits.length];
      const jobs = await Job.claim({ state: 'new' }, duration, { limit, sort: 'priority' });
      told.claims += 1;
      if (jobs.length > 0) {
        told.handled += await handle(Job, jobs, process.pid);
        continue;
      }
      told.empty += 1;
      if (!(await isLeft(Job))) return told;
      // What is left is locked by others, one of whom may have been killed.
      await pause(20);
    }
  },

  /** The same without claiming: finds and handles. */
  async unlocked(Job, { limits }) {
    const update = { $inc: { handled: 1 }, $set: { state: 'done' } };
    for (;;) {
      const jobs = await Job.find({ state: 'new' }).sort('priority').limit(limits[0]);
      if (jobs.length === 0) return {};
      await Job.updateMany({ _id: { $in: jobs.map(({ _id }) => _id) } }, update);
    }
  },

  /** Claims, tells so, and does nothing more until it is killed. */
  async hang(Job, { limits, duration }) {
    const jobs = await Job.claim({ state: 'new' }, duration, { limit: limits[0] });
    await say({ hangs: jobs.length });
    await pause(2 ** 30);
  },

  /** Handles with `claims` until SIGTERM; then finishes what runs, and ends by itself. */
  async untilTold(Job, { duration, concurrency, ms }) {
    const stop = new AbortController();
    process.once('SIGTERM', () => stop.abort());
    const told = { handled: 0, begun: 0 };
    await say('ready');
    const jobs = Job.claims({ state: 'new' }, duration, { concurrency, signal: stop.signal });
    await jobs.forEach(async (job) => {
      told.begun += 1;
      if (told.begun === concurrency) await say('busy');
      await pause(ms);
      const handled = await handle(Job, [job], process.pid);
      told.handled += handled;
    });
    return told;
  },
};

async function main() {
  const connection = await mongoose.createConnection(args.uri, { autoIndex: false }).asPromise();
  const Job = jobsOn(connection);
  const told = await ways[way](Job, args);
  await connection.close();
  await say(told);
  // No exit: nothing may keep the process alive.
  process.disconnect();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
