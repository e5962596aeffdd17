/*
 * `Model.claims`: documents without end for those who handle them. How many are locked at once, who gets which, and that
 * all are released soon, however the handling ends.
 */
'use strict';

const assert = require('node:assert/strict');
const { setTimeout: pause } = require('node:timers/promises');
const { WireRelay } = require('./faults/wire-relay');
const { deployment } = require('./support/deployment');
const mongoose = require('./support/mongoose');
const lockRelease = require('..');
const { fill, jobsOn } = require('./claim/jobs');

const LONG = 600_000;
const SOON_MS = 20_000;

describe('claims without end', function () {
  this.timeout(120_000);

  let server;
  let connection;
  let Job;
  let count = 0;

  before(async function () {
    server = await deployment();
    connection = await mongoose.createConnection(server.uriFor('endless')).asPromise();
  });

  beforeEach(function () {
    count += 1;
    Job = jobsOn(connection, { name: `Jobs${count}` });
  });

  after(async function () {
    await connection?.close();
    await server?.stop();
  });

  const lockedIn = () => Job.find().locked().countDocuments();

  /** The same at one moment, and not while it is counted. */
  async function lockedAtOnce() {
    const pipeline = [{ $match: { $expr: lockRelease.locked() } }];
    const readConcern = { level: 'snapshot' };
    return (await Job.collection.aggregate(pipeline, { readConcern }).toArray()).length;
  }

  async function until(condition, what) {
    const deadline = Date.now() + SOON_MS;
    while (!(await condition())) {
      assert.ok(Date.now() < deadline, `${what} within ${SOON_MS} ms`);
      await pause(10);
    }
  }

  const allFree = () => until(async () => (await lockedIn()) === 0, 'all are free');

  async function done(job) {
    job.state = 'done';
    job.handled += 1;
    await job.save();
  }

  const claims = (options) => Job.claims({ state: 'new' }, LONG, { sort: 'n', ...options });

  const inOrder = (n) => ({ n, state: 'new', priority: 0, handled: 0 });

  it('come in the order of the query', async function () {
    await fill(Job, 40, inOrder);
    const seen = [];
    for await (const job of claims({ concurrency: 8 })) {
      seen.push(job.n);
      await done(job);
      if (seen.length === 40) break;
    }
    assert.deepEqual(seen, [...Array(40).keys()]);
    await allFree();
  });

  for (const [concurrency, loops] of [
    [1, 1],
    [5, 1],
    [5, 5],
    [3, 7],
  ]) {
    it(`never have more locked than their concurrency: ${concurrency} in ${loops} loops`, async function () {
      await fill(Job, 30, inOrder);
      const stop = new AbortController();
      const shared = claims({ concurrency, signal: stop.signal });
      let watching = true;
      let most = 0;
      const watch = (async () => {
        while (watching) most = Math.max(most, await lockedAtOnce());
      })();
      const seen = [];
      const loop = async () => {
        for await (const job of shared) {
          seen.push(job.n);
          await pause(10);
          await done(job);
          if (seen.length === 30) stop.abort();
        }
      };
      await Promise.all(Array.from({ length: loops }, loop));
      watching = false;
      await watch;
      assert.deepEqual(
        seen.toSorted((a, b) => a - b),
        [...Array(30).keys()],
      );
      assert.ok(most <= concurrency, `${most} were locked at once`);
      assert.ok(most > concurrency / 2, `${most} were locked at once, claimed ahead`);
      assert.equal(await Job.countDocuments({ handled: 1 }), 30);
      await allFree();
    });
  }

  it('stop claiming while nobody takes any', async function () {
    await fill(Job, 50, inOrder);
    const iterator = claims({ concurrency: 4 })[Symbol.asyncIterator]();
    assert.equal((await iterator.next()).value.n, 0);
    await until(async () => (await lockedIn()) === 4, 'the others are claimed ahead');
    await pause(500);
    assert.equal(await lockedIn(), 4);
    await iterator.return();
    assert.equal(await lockedIn(), 0);
    assert.deepEqual(await iterator.next(), { done: true, value: undefined });
    assert.equal(await lockedIn(), 0);
  });

  const ENDINGS = {
    'a break': async (shared) => {
      for await (const job of shared) if (job.n >= 2) break;
    },
    'an exception': async (shared) => {
      await assert.rejects(async () => {
        for await (const job of shared) if (job.n >= 2) throw new Error('too much');
      }, /too much/);
    },
    'a return from within': async (shared) => {
      const find = async () => {
        for await (const job of shared) if (job.n >= 2) return job.n;
        return undefined;
      };
      assert.equal(await find(), 2);
    },
    'its signal': async (shared, stop) => {
      for await (const job of shared) if (job.n >= 2) stop.abort();
    },
    'a function that fails': async (shared) => {
      let running = 0;
      const handling = shared.forEach(async (job) => {
        running += 1;
        await pause(20);
        running -= 1;
        if (job.n >= 2) throw new Error(`of ${job.n}`);
      });
      await assert.rejects(handling, /^Error: of 2$/);
      assert.equal(running, 0, 'what ran was finished');
    },
    'a function that fails at once': (shared) =>
      assert.rejects(
        shared.forEach(() => {
          throw new Error('at once');
        }),
        /at once/,
      ),
  };

  for (const [name, end] of Object.entries(ENDINGS)) {
    for (const options of [{}, { renew: false }]) {
      it(`release everything at the end by ${name}${options.renew === false ? ', not renewed' : ''}`, async function () {
        await fill(Job, 30, inOrder);
        const stop = new AbortController();
        // Nobody changes the state, so each comes again: what was released is claimed once more, last of all.
        const sort = { handled: 1, n: 1 };
        const claimed = Job.claims({}, LONG, {
          ...options,
          sort,
          concurrency: 6,
          signal: stop.signal,
        });
        await end(claimed, stop);
        await allFree();
        await pause(100);
        assert.equal(await lockedIn(), 0);
        // They have ended for good.
        for await (const job of claimed) assert.fail(`${job.n} came`);
      });
    }
  }

  it('end before they begin, with a signal that is aborted already', async function () {
    await fill(Job, 3, inOrder);
    const signal = AbortSignal.abort();
    for await (const job of claims({ signal })) assert.fail(`${job.n} came`);
    await claims({ signal, concurrency: 3 }).forEach(() => assert.fail('it ran'));
    assert.equal(await Job.collection.countDocuments({ lockedBy: { $exists: true } }), 0);
  });

  it('leave those that one loop leaves to the others', async function () {
    await fill(Job, 20, inOrder);
    const stop = new AbortController();
    const shared = claims({ concurrency: 4, signal: stop.signal });
    const seen = [];
    const loop = async (most) => {
      let own = 0;
      for await (const job of shared) {
        seen.push(job.n);
        await done(job);
        own += 1;
        if (own === most) break;
        if (seen.length === 20) stop.abort();
      }
      return own;
    };
    assert.deepEqual(await Promise.all([loop(2), loop(Infinity)]), [2, 18]);
    assert.equal(new Set(seen).size, 20);
  });

  it('skip what was lost before its turn came', async function () {
    await fill(Job, 4, inOrder);
    const options = { concurrency: 4, renew: false, sort: 'n' };
    const seen = [];
    const stop = new AbortController();
    const claimed = Job.claims({ state: 'new' }, 700, { ...options, signal: stop.signal });
    for await (const job of claimed) {
      assert.equal(job.$lock.held, true);
      seen.push(job.n);
      if (seen.length === 1) await pause(1000);
      await Job.updateOne({ _id: job._id }, { state: 'done', $inc: { handled: 1 } });
      if ((await Job.countDocuments({ state: 'new' })) === 0) stop.abort();
    }
    assert.deepEqual(seen, [0, 1, 2, 3]);
    const tokens = (await Job.find().select('+lockedBy').sort('n')).map(
      ({ lockedBy }) => lockedBy.token,
    );
    assert.deepEqual(tokens, [1, 2, 2, 2]);
    await allFree();
  });

  it('keep what waits for its turn alive, unless told otherwise', async function () {
    await fill(Job, 3, inOrder);
    const seen = [];
    for await (const job of Job.claims({ state: 'new' }, 600, { sort: 'n', concurrency: 3 })) {
      seen.push([job.n, job.$lock.held, job.$lock.token]);
      if (seen.length === 1) await pause(1500);
      await done(job);
      if (seen.length === 3) break;
    }
    assert.deepEqual(seen, [
      [0, true, 1],
      [1, true, 1],
      [2, true, 1],
    ]);
  });

  it('do not mind a body that releases, locks again or deletes by itself', async function () {
    await fill(Job, 4, inOrder);
    let seen = 0;
    for await (const job of claims({ concurrency: 2 })) {
      seen += 1;
      await done(job);
      if (job.n === 0) await job.release();
      if (job.n === 1) await job.deleteOne();
      if (job.n === 2) {
        await job.release();
        assert.ok(await job.lock(LONG));
      }
      if (seen === 4) break;
    }
    await allFree();
  });

  it('can be asked for more before there is one, and be left meanwhile', async function () {
    const iterator = claims({ concurrency: 2 })[Symbol.asyncIterator]();
    const asked = [iterator.next(), iterator.next()];
    await pause(50);
    await fill(Job, 3, inOrder);
    assert.deepEqual(
      (await Promise.all(asked)).map(({ value }) => value.n),
      [0, 1],
    );
    await iterator.return();
    await Job.updateMany({}, { state: 'done' });
    const empty = claims({ concurrency: 2 })[Symbol.asyncIterator]();
    const waiting = empty.next();
    await pause(50);
    await empty.return();
    assert.deepEqual(await waiting, { done: true, value: undefined });
    await allFree();
  });

  it('go on when the server was away for a moment', async function () {
    await fill(Job, 30, inOrder);
    const relay = await WireRelay.start(await server.primary());
    const query = { serverSelectionTimeoutMS: 20_000, heartbeatFrequencyMS: 500 };
    const own = await mongoose.createConnection(relay.uriFor('endless', query)).asPromise();
    try {
      const stop = new AbortController();
      const Own = own.model(Job.modelName, Job.schema);
      const seen = [];
      const options = { concurrency: 3, signal: stop.signal };
      await Own.claims({ state: 'new' }, LONG, options).forEach(async ({ _id, n }) => {
        seen.push(n);
        if (seen.length === 10) {
          relay.reset();
          relay.blackhole = true;
          await pause(1000);
          relay.blackhole = false;
        }
        // By another way: it is not what is specified here.
        await Job.updateOne({ _id }, { state: 'done', $inc: { handled: 1 } });
        if ((await Job.countDocuments({ state: 'new' })) === 0) stop.abort();
      });
      assert.equal(await Job.countDocuments({ handled: 1 }), 30);
      await allFree();
    } finally {
      await own.close();
      await relay.stop();
    }
  });

  it('fail in every loop when the connection is closed, and so does what waits', async function () {
    const own = await mongoose.createConnection(server.uriFor('endless')).asPromise();
    const Own = own.model(Job.modelName, Job.schema);
    const shared = Own.claims({ state: 'new' }, LONG, { concurrency: 2 });
    const running = shared.forEach(() => assert.fail('nothing came'));
    const claiming = Own.claim({ state: 'new' }, LONG, { wait: Infinity });
    await pause(200);
    await Promise.all([
      assert.rejects(running, { name: 'MongoTopologyClosedError' }),
      assert.rejects(claiming, { name: 'MongoTopologyClosedError' }),
      own.close(),
    ]);
  });
});
