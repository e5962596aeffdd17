/*
 * Claims of several processes: each document is handled once, by whoever is left, and few commands are wasted on the
 * others; what a claim costs the server; and what becomes of it under faults. The contract of one claimer alone is
 * specified in contract/.
 */
'use strict';

const assert = require('node:assert/strict');
const { setTimeout: pause } = require('node:timers/promises');
const { WireRelay } = require('./faults/wire-relay');
const { deployment } = require('./support/deployment');
const mongoose = require('./support/mongoose');
const { APP_NAME, fill, jobsOn } = require('./claim/jobs');
const { Worker } = require('./claim/worker');

/** Longer than any spec runs: what is free again was released. */
const LONG = 600_000;
const SOON_MS = 20_000;

describe('claims', function () {
  this.timeout(128_000);

  let server;
  let connection;
  let db;
  let count = 0;
  const opened = [];

  before(async function () {
    server = await deployment();
    connection = await mongoose.createConnection(server.uriFor('claims')).asPromise();
    db = connection.db;
    await db.createCollection('system.profile', { capped: true, size: 64 * 2 ** 20 });
  });

  afterEach(async function () {
    await Worker.killAll();
    await Promise.all(opened.splice(0).map((own) => own.close()));
  });

  after(async function () {
    await connection?.close();
    await server?.stop();
  });

  /** A model of its own collection. */
  function jobs(how) {
    count += 1;
    return jobsOn(connection, { name: `Jobs${count}`, ...how });
  }

  /** The same model through a connection of its own. */
  async function through(Job, uri, options) {
    const own = await mongoose.createConnection(uri, { autoIndex: false, ...options }).asPromise();
    opened.push(own);
    return own.model(Job.modelName, Job.schema);
  }

  const lockedIn = (Job) => Job.find().locked().countDocuments();

  async function until(condition, what) {
    const deadline = Date.now() + SOON_MS;
    while (!(await condition())) {
      assert.ok(Date.now() < deadline, `${what} within ${SOON_MS} ms`);
      await pause(20);
    }
  }

  /** Runs `work` and resolves to what the server did on the collection meanwhile. */
  async function profile(Job, work) {
    await db.command({ profile: 2 });
    try {
      await work();
    } finally {
      await db.command({ profile: 0 });
    }
    const ns = `claims.${Job.collection.collectionName}`;
    const entries = await db.collection('system.profile').find({ ns }).sort({ ts: 1 }).toArray();
    await db.dropCollection('system.profile');
    await db.createCollection('system.profile', { capped: true, size: 64 * 2 ** 20 });
    return entries;
  }

  describe('of several processes', function () {
    let Job;

    beforeEach(async function () {
      Job = jobsOn(connection);
    });

    afterEach(async function () {
      await Job.collection.drop();
      connection.deleteModel('Job');
    });

    /** How often the jobs were handled: `[{ _id: times, count }]`. */
    const handled = () =>
      Job.aggregate([{ $group: { _id: '$handled', count: { $sum: 1 } } }, { $sort: { _id: 1 } }]);

    const args = (limits, duration = LONG) => ({ uri: server.uriFor('claims'), limits, duration });

    it('handle each document once: 8 processes with 100 at a time', async function () {
      await fill(Job, 28_000);
      const entries = await profile(Job, async () => {
        const workers = Array.from({ length: 8 }, () => Worker.start('batches', args([100])));
        const told = await Promise.all(workers.map((worker) => worker.next()));
        assert.equal(
          told.reduce((sum, { handled }) => sum + handled, 0),
          28_000,
        );
        assert.ok(
          told.every(({ handled }) => handled > 0),
          JSON.stringify(told),
        );
      });
      assert.deepEqual(await handled(), [{ _id: 1, count: 28_000 }]);

      // What it cost that there were others.
      const claims = entries.filter(({ op, command }) => op === 'update' && command.q.$and);
      const locked = claims.reduce((sum, { nModified }) => sum + nModified, 0);
      assert.equal(locked, 28_000);
      const empty = claims.filter(({ nModified }) => nModified === 0).length;
      const contested = claims.filter(
        ({ nModified, command }) => nModified < command.q._id.$in.length,
      );
      this.test.title += `, ${claims.length} updates: ${contested.length} contested, ${empty} for nothing`;
      assert.ok(
        empty < claims.length * 0.2,
        `${empty} of ${claims.length} updates were for nothing`,
      );
      assert.ok(claims.length < 2 * 280, `${claims.length} updates for 280 batches`);
    });

    it('handle each document once: 4 processes with 1, 10 and 100 at a time', async function () {
      await fill(Job, 6_000);
      const workers = Array.from({ length: 4 }, () => Worker.start('batches', args([1, 10, 100])));
      const told = await Promise.all(workers.map((worker) => worker.next()));
      assert.equal(
        told.reduce((sum, { handled }) => sum + handled, 0),
        6_000,
      );
      assert.deepEqual(await handled(), [{ _id: 1, count: 6_000 }]);
    });

    it('would not without claiming', async function () {
      await fill(Job, 2_000);
      const workers = Array.from({ length: 3 }, () => Worker.start('unlocked', args([100])));
      await Promise.all(workers.map((worker) => worker.next()));
      assert.ok((await handled()).some(({ _id }) => _id > 1));
    });

    it('take over what killed ones have left, once its duration has passed', async function () {
      await fill(Job, 1_500);
      const duration = 3000;
      const victims = [100, 100, 1].map((limit) => Worker.start('hang', args([limit], duration)));
      for (const victim of victims) assert.ok((await victim.next()).hangs > 0);
      const ids = (await Job.find().locked()).map(({ _id }) => _id);
      assert.equal(ids.length, 201);
      const workers = Array.from({ length: 2 }, () =>
        Worker.start('batches', args([100, 10], duration)),
      );
      for (const victim of victims) await victim.kill();
      await Promise.all(workers.map((worker) => worker.next()));
      assert.deepEqual(await handled(), [{ _id: 1, count: 1_500 }]);
      const taken = await Job.collection.find({ _id: { $in: ids } }).toArray();
      assert.ok(taken.every(({ lockedBy }) => lockedBy.token === 2));
    });

    it('wait for work, finish what runs on SIGTERM, and end by themselves', async function () {
      const work = { ...args([1]), concurrency: 3, ms: 500 };
      const workers = [1, 2].map(() => Worker.start('untilTold', work));
      for (const worker of workers) assert.equal(await worker.next(), 'ready');
      await pause(300);
      await fill(Job, 30);
      for (const worker of workers) assert.equal(await worker.next(), 'busy');
      for (const worker of workers) worker.signal('SIGTERM');
      const told = await Promise.all(workers.map((worker) => worker.next()));
      for (const worker of workers) assert.deepEqual(await worker.ended, { code: 0, signal: null });
      for (const { begun, handled } of told) assert.equal(handled, begun);
      const sum = told.reduce((sum, { handled }) => sum + handled, 0);
      assert.ok(sum >= 6 && sum < 30, `${sum} were handled`);
      assert.equal(await Job.countDocuments({ state: 'done', handled: 1 }), sum);
      assert.equal(await lockedIn(Job), 0);
    });
  });

  describe('cost the server', function () {
    it('two round trips for one document, and three for many', async function () {
      const Job = jobs();
      await fill(Job, 2_300);
      const sort = 'priority';
      for (const [limit, expected] of [
        [1, ['find', 'findAndModify']],
        [100, ['find', 'update', 'find']],
        [1000, ['find', 'update', 'find']],
      ]) {
        const entries = await profile(Job, async () => {
          const claimed = await Job.claim({ state: 'new' }, LONG, { limit, sort });
          assert.equal(claimed.length, limit);
        });
        const names = entries.map(({ op, command }) =>
          op === 'update' ? 'update' : Object.keys(command)[0],
        );
        assert.deepEqual(
          names.map((name) => (name === 'findandmodify' ? 'findAndModify' : name)),
          expected,
        );
      }
    });

    it('few looks at what is locked or done, with an index that ends in `locked`', async function () {
      const Job = jobs();
      const later = new Date(Date.now() + LONG);
      await fill(Job, 100_000, (n) => ({
        n,
        state: n % 2 ? 'done' : 'new',
        priority: n % 10,
        locked: n >= 2_000 ? later : new Date(0),
      }));
      for (const limit of [1, 100]) {
        const [{ command }] = await profile(Job, async () => {
          const claimed = await Job.claim({ state: 'new' }, LONG, { limit, sort: 'priority' });
          assert.equal(claimed.length, limit);
        });
        const { find, filter, sort, projection, limit: most } = command;
        const again = { find, filter, sort, projection, limit: most };
        const { executionStats } = await db.command({
          explain: again,
          verbosity: 'executionStats',
        });
        const { totalKeysExamined, totalDocsExamined, nReturned } = executionStats;
        this.test.title += `, ${totalKeysExamined} keys for ${limit}`;
        assert.equal(nReturned, limit);
        assert.ok(totalDocsExamined <= limit, `${totalDocsExamined} documents`);
        assert.ok(totalKeysExamined <= limit + 20, `${totalKeysExamined} keys`);
      }
      // The plugin makes none.
      const names = (await Job.collection.indexes()).map(({ name }) => name);
      assert.deepEqual(names, ['_id_', 'state_1_priority_1_locked_1']);
    });

    it('little while they wait, however much happens that does not concern them', async function () {
      const Job = jobs({ plugin: { pollInterval: 100 } });
      await fill(Job, 200, (n) => ({ state: 'done', n, locked: new Date(0) }));
      const stop = new AbortController();
      const begun = performance.now();
      let ended = begun;
      const entries = await profile(Job, async () => {
        const waiting = Job.claim({ state: 'new' }, LONG, { wait: Infinity, signal: stop.signal });
        // To a change stream each is a release.
        while (ended - begun < 2_000) {
          await Job.collection.updateMany({}, [{ $set: { locked: '$$NOW' } }]);
          ended = performance.now();
        }
        stop.abort();
        await assert.rejects(waiting, { name: 'AbortError' });
      });
      const looks = entries.filter(({ command }) => command.find).length;
      assert.ok(looks >= 5, `${looks} looks`);
      assert.ok(looks < (ended - begun) / 25 + 20, `${looks} looks in ${ended - begun} ms`);
    });

    it('no more than one answer can hold: documents of more than 16 MB together come whole', async function () {
      const Job = jobs();
      const body = 'x'.repeat(1.1 * 2 ** 20);
      await Job.insertMany(Array.from({ length: 30 }, (_, n) => ({ n, body, state: 'new' })));
      const claimed = await Job.claim({ state: 'new' }, LONG, { limit: 30, sort: 'n' });
      assert.deepEqual(
        claimed.map(({ n }) => n),
        [...Array(30).keys()],
      );
      assert.ok(claimed.every((job) => job.body.length === body.length && job.$lock.held));
      await Job.collection.drop();
    });
  });

  describe('that fail', function () {
    /** Lets commands of the claimers fail. */
    async function fail(mode, failCommands, data) {
      const member = await server.primary();
      await member.command({
        configureFailPoint: 'failCommand',
        mode,
        data: { failCommands, appName: APP_NAME, ...data },
      });
    }

    afterEach(() => fail('off', []));

    const claimer = (Job, options) =>
      through(Job, server.uriFor('claims', { appName: APP_NAME }), {
        serverSelectionTimeoutMS: 5000,
        heartbeatFrequencyMS: 500,
        ...options,
      });

    /** What a claim comes to: its documents, of which there are no others, or an error, and none is locked. */
    async function outcome(Job, claiming, limit) {
      const claimed = await claiming.catch((error) => error);
      const jobs = Array.isArray(claimed) ? claimed : [];
      assert.ok(jobs.length <= limit);
      assert.ok(jobs.every(({ $lock }) => $lock.held));
      await until(async () => (await lockedIn(Job)) === jobs.length, 'nothing else is locked');
      const ids = new Set((await Job.find().locked()).map(({ _id }) => String(_id)));
      assert.ok(jobs.every(({ _id }) => ids.has(String(_id))));
      for (const job of jobs) assert.ok(await job.release());
      return claimed;
    }

    const WRITES = { 1: 'findAndModify', 10: 'update' };
    const PASSING = {
      'a closed connection': { closeConnection: true },
      'a step-down': { errorCode: 11602 },
      'a write that was not acknowledged': { writeConcernError: { code: 91, errmsg: 'shutdown' } },
    };
    const FINAL = {
      'a refusal': { errorCode: 13 },
      'a write concern': { writeConcernError: { code: 64, errmsg: 'timed out' } },
    };

    for (const limit of [1, 10]) {
      for (const [name, data] of Object.entries(PASSING)) {
        it(`for a moment are not seen: ${name}, limit ${limit}`, async function () {
          const Job = jobs();
          await fill(Job, 30);
          const Own = await claimer(Job);
          await Own.claim({ state: 'none' }, LONG);
          for (const command of ['find', WRITES[limit]]) {
            if (command === 'find' && data.writeConcernError) continue;
            await fail({ times: 1 }, [command], data);
            const claiming = Own.claim({ state: 'new' }, LONG, { limit });
            assert.equal((await outcome(Job, claiming, limit)).length, limit, command);
          }
        });
      }

      for (const [name, data] of Object.entries(FINAL)) {
        it(`for good leave nothing locked: ${name}, limit ${limit}`, async function () {
          const Job = jobs();
          await fill(Job, 30);
          const Own = await claimer(Job);
          await Own.claim({ state: 'none' }, LONG);
          for (const command of ['find', WRITES[limit]]) {
            if (command === 'find' && data.writeConcernError) continue;
            await fail({ times: 1 }, [command], data);
            const claiming = Own.claim({ state: 'new' }, LONG, { limit });
            const error = await outcome(Job, claiming, limit);
            assert.equal(error.code, data.errorCode ?? data.writeConcernError.code);
            assert.ok(error instanceof mongoose.mongo.MongoServerError);
            assert.ok(error.stack.includes(__filename));
          }
        });
      }
    }

    for (const [name, data] of Object.entries({
      'an error': { errorCode: 2 },
      'closed connections': { closeConnection: true },
    })) {
      it(`when they are to be read back are released: ${name}`, async function () {
        const Job = jobs();
        await fill(Job, 30);
        const Own = await claimer(Job, { serverSelectionTimeoutMS: 1500 });
        await Own.claim({ state: 'none' }, LONG);
        // The first find is for the candidates.
        await fail({ skip: 1 }, ['find'], data);
        const claiming = Own.claim({ state: 'new' }, LONG, { limit: 10 });
        assert.ok((await outcome(Job, claiming, 10)) instanceof Error);
        const raw = await Job.collection.countDocuments({ 'lockedBy.token': 1 });
        assert.equal(raw, 10, 'they had been locked');
      });
    }

    it('by a validator come as the server’s error', async function () {
      const Job = jobs();
      await db.createCollection(Job.collection.collectionName, {
        validator: { lockedBy: { $exists: false } },
      });
      await fill(Job, 3);
      for (const limit of [1, 10]) {
        const error = await outcome(Job, Job.claim({}, LONG, { limit }), limit);
        assert.equal(error.name, 'MongoServerError');
        assert.equal(error.code, 121);
      }
    });

    for (const limit of [1, 10]) {
      for (const fault of ['loseRequest', 'loseAnswer', { late: 300 }]) {
        const name = fault.late ? 'a late request' : fault;
        it(`on the way are tried again, and give no more than the limit: ${name}, limit ${limit}`, async function () {
          const Job = jobs();
          await fill(Job, 30);
          const relay = await WireRelay.start(await server.primary());
          try {
            const query = { serverSelectionTimeoutMS: 5000 };
            const Own = await through(Job, relay.uriFor('claims', query));
            await Own.claim({ state: 'none' }, LONG);
            for (const which of [0, 1, 2].slice(0, limit === 1 ? 2 : 3)) {
              let seen = -1;
              relay.judge = (command) => {
                if (Object.values(command)[0] !== Job.collection.collectionName) return undefined;
                seen += 1;
                return seen === which ? fault : undefined;
              };
              const claiming = Own.claim({ state: 'new' }, LONG, { limit });
              const claimed = await claiming;
              assert.ok(seen > which, 'it was hit');
              relay.judge = undefined;
              await pause(fault.late ?? 0);
              assert.equal((await outcome(Job, claiming, limit)).length, limit);
              assert.equal(claimed.length, limit);
            }
          } finally {
            await opened.pop().close();
            await relay.stop();
          }
        });
      }
    }

    it('in an init hook of the user’s give nobody the documents, and release them', async function () {
      const failing = new Set([3]);
      const Job = jobs({
        prepare(schema) {
          schema.post('init', (job) => {
            if (failing.has(job.n)) throw new Error('a hook');
          });
        },
      });
      await fill(Job, 6);
      for (const options of [{ limit: 6 }, { limit: 6, renew: true }]) {
        await assert.rejects(Job.claim({}, LONG, options), /a hook/);
        await until(
          async () => (await Job.collection.countDocuments(LOCKED)) === 0,
          'all are free',
        );
      }
      await assert.rejects(Job.claim({ n: 3 }, LONG), /a hook/);
      await until(async () => (await Job.collection.countDocuments(LOCKED)) === 0, 'it is free');
      failing.clear();
      assert.equal((await Job.claim({}, LONG, { limit: 10 })).length, 6);
    });
  });
});

const LOCKED = { $expr: { $gt: ['$locked', '$$NOW'] } };
