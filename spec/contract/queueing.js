'use strict';
/*
 * What a claim takes beside its query, claims without end, and the helpers that ask for locked or unlocked documents. What
 * becomes of claims under faults and among processes is specified elsewhere.
 */

const assert = require('node:assert/strict');
const { setTimeout: pause } = require('node:timers/promises');
const { QUEUE, SOON_MS, fill, isRefusal, lockedIn, numbers, queue, until } = require('./queue');
const stage = require('./stage');
const { LONG_MS, commandsDuring, failureOf, lockRelease, mongoose } = stage;
const { Schema } = mongoose;

describe('a claim’s', function () {
  describe('options', function () {
    it('keep the locks alive with renew, and not for longer than maxHold', async function () {
      const Job = queue();
      await fill(Job, 3);
      const renew = { renew: true, limit: 2 };
      const kept = await Job.claim({ n: { $lt: 2 } }, 600, renew);
      const [plain] = await Job.claim({ n: 2 }, 600);
      await until(() => !plain.$lock.held, 'the plain one lapses');
      await pause(600);
      assert.deepEqual(
        kept.map(({ $lock }) => $lock.held),
        [true, true],
      );
      for (const job of kept) assert.ok(await job.release());

      const brief = await Job.claim({ n: { $lt: 2 } }, 300, { ...renew, maxHold: 400 });
      await until(() => brief.every(({ $lock }) => !$lock.held), 'maxHold ends it');
      assert.match(String(brief[0].$lock.signal.reason?.message), /maxHold/);
    });

    it('wait for so long, and give an empty array then', async function () {
      const Job = queue();
      await fill(Job, 1);
      await Job.claim({}, LONG_MS);
      for (const limit of [1, 5]) {
        const begun = performance.now();
        assert.deepEqual(await Job.claim({}, LONG_MS, { limit, wait: 300 }), []);
        assert.ok(performance.now() - begun >= 299);
      }
    });

    it('wait without end, however long nothing comes', async function () {
      // Long enough that any pause that grew without bounds would be beyond all numbers.
      const Job = queue({ plugin: { pollInterval: 10 } });
      const waiting = Job.claim({ n: 7 }, LONG_MS, { wait: Infinity });
      await pause(2500);
      await Job.create({ n: 7 });
      assert.deepEqual(numbers(await waiting), [7]);
    });

    for (const limit of [1, 5]) {
      it(`wake up by an insert, a release and a change (limit ${limit})`, async function () {
        const Job = queue();
        await fill(Job, 1);
        const claim = (filter) => Job.claim(filter, LONG_MS, { limit, wait: SOON_MS });
        const [held] = await claim({ n: 0 });
        const waiting = [claim({ n: 0 }), claim({ n: 1 }), claim({ n: 2 })];
        await pause(100);
        await held.release();
        await Job.create({ n: 1 });
        await Job.create({ n: 5 });
        await Job.updateOne({ n: 5 }, { n: 2 });
        const got = await Promise.all(waiting);
        assert.deepEqual(got.map(numbers), [[0], [1], [2]]);
        assert.ok(got.flat().every(({ $lock }) => $lock.held));
      });
    }

    it('wake up when a lock lapses', async function () {
      const Job = queue();
      await fill(Job, 1);
      await Job.claim({}, 300);
      const [job] = await Job.claim({}, LONG_MS, { wait: SOON_MS });
      assert.equal(job.$lock.token, 2);
    });

    it('end with a signal, for its reason, and nothing stays locked', async function () {
      const Job = queue();
      await fill(Job, 20);
      const reason = new Error('enough');
      for (const limit of [1, 20]) {
        const aborted = AbortSignal.abort(reason);
        assert.equal(await failureOf(Job.claim({}, LONG_MS, { limit, signal: aborted })), reason);
        for (let step = 0; step < 8; step += 1) {
          const controller = new AbortController();
          const claiming = Job.claim({}, LONG_MS, { limit, signal: controller.signal });
          if (step > 0) await pause(step - 1);
          controller.abort(reason);
          await claiming.then(
            (claimed) => Promise.all(claimed.map((job) => job.release())),
            (error) => assert.equal(error, reason),
          );
          await until(async () => (await lockedIn(Job)) === 0, 'all are free');
        }
        const controller = new AbortController();
        const nothing = { limit, signal: controller.signal, wait: Infinity };
        const waiting = Job.claim({ n: 100 }, LONG_MS, nothing);
        await pause(50);
        controller.abort(reason);
        assert.equal(await failureOf(waiting), reason);
      }
    });

    it('that have a signal but no wait do not wait', async function () {
      const Job = queue();
      const { signal } = new AbortController();
      const commands = await commandsDuring(Job, async () => {
        assert.deepEqual(await Job.claim({}, LONG_MS, { signal }), []);
        assert.deepEqual(await Job.claim({}, LONG_MS, { signal, limit: 5 }), []);
      });
      assert.equal(commands.length, 2);
    });
  });

  describe('arguments', function () {
    let Job;

    before(async function () {
      Job = queue();
      await fill(Job, 1);
    });

    const REFUSED = [
      [[undefined, LONG_MS], TypeError, 'filter', 'undefined'],
      [[null, LONG_MS], TypeError, 'filter', 'null'],
      [['state', LONG_MS], TypeError, 'filter', "'state'"],
      [[5, LONG_MS], TypeError, 'filter', '5'],
      [[[], LONG_MS], TypeError, 'filter', '[]'],
      [[() => {}, LONG_MS], TypeError, 'filter', 'Function'],
      [[{}], TypeError, 'duration', 'undefined'],
      [[{}, '10'], TypeError, 'duration', "'10'"],
      [[{}, -1], RangeError, 'duration', '-1'],
      [[{}, NaN], RangeError, 'duration', 'NaN'],
      [[{}, Infinity], RangeError, 'duration', 'Infinity'],
      [[{}, LONG_MS, 5], TypeError, 'options', '5'],
      [[{}, LONG_MS, { limits: 5 }], TypeError, 'options.limits', '5'],
      [[{}, LONG_MS, { concurrency: 5 }], TypeError, 'options.concurrency', '5'],
      [[{}, LONG_MS, { limit: 0 }], RangeError, 'options.limit', '0'],
      [[{}, LONG_MS, { limit: -1 }], RangeError, 'options.limit', '-1'],
      [[{}, LONG_MS, { limit: 1.5 }], RangeError, 'options.limit', '1.5'],
      [[{}, LONG_MS, { limit: 1001 }], RangeError, 'options.limit', '1001'],
      [[{}, LONG_MS, { limit: 2 ** 53 }], RangeError, 'options.limit', '9007199254740992'],
      [[{}, LONG_MS, { limit: Infinity }], RangeError, 'options.limit', 'Infinity'],
      [[{}, LONG_MS, { limit: NaN }], RangeError, 'options.limit', 'NaN'],
      [[{}, LONG_MS, { limit: '3' }], TypeError, 'options.limit', "'3'"],
      [[{}, LONG_MS, { limit: 3n }], TypeError, 'options.limit', '3n'],
      [[{}, LONG_MS, { limit: null }], TypeError, 'options.limit', 'null'],
      [[{}, LONG_MS, { wait: -1 }], TypeError, 'options.wait', '-1'],
      [[{}, LONG_MS, { wait: '1' }], TypeError, 'options.wait', "'1'"],
      [[{}, LONG_MS, { signal: {} }], TypeError, 'options.signal', '{}'],
      [[{}, LONG_MS, { renew: 1 }], TypeError, 'options.renew', '1'],
      [[{}, LONG_MS, { maxHold: 0 }], TypeError, 'options.maxHold', '0'],
      [[{}, 99, { renew: true }], RangeError, 'duration', '99'],
    ];

    for (const [given, Type, name, shown] of REFUSED) {
      it(`are refused by name and value: ${name}, ${shown}`, async function () {
        const commands = await commandsDuring(Job, async () => {
          isRefusal(await failureOf(Job.claim(...given)), Type, name, shown);
        });
        assert.deepEqual(commands, []);
      });
    }

    it('are refused where Mongoose takes an object for no filter', async function () {
      for (const filter of [new Date(), /state/, new Map()]) {
        isRefusal(await failureOf(Job.claim(filter, LONG_MS)), TypeError, 'filter', '');
      }
    });

    const REFUSED_WITHOUT_END = [
      [[undefined, LONG_MS], TypeError, 'filter', 'undefined'],
      [[{}], TypeError, 'duration', 'undefined'],
      [[{}, 99], RangeError, 'duration', '99'],
      [[{}, LONG_MS, { limit: 5 }], TypeError, 'options.limit', '5'],
      [[{}, LONG_MS, { wait: 5 }], TypeError, 'options.wait', '5'],
      [[{}, LONG_MS, { concurrency: 0 }], RangeError, 'options.concurrency', '0'],
      [[{}, LONG_MS, { concurrency: 1001 }], RangeError, 'options.concurrency', '1001'],
      [[{}, LONG_MS, { concurrency: '2' }], TypeError, 'options.concurrency', "'2'"],
      [[{}, LONG_MS, { signal: 'stop' }], TypeError, 'options.signal', "'stop'"],
      [[{}, LONG_MS, { renew: 'no' }], TypeError, 'options.renew', "'no'"],
    ];

    for (const [given, Type, name, shown] of REFUSED_WITHOUT_END) {
      it(`of claims are refused at once: ${name}, ${shown}`, async function () {
        let failure;
        try {
          Job.claims(...given);
        } catch (error) {
          failure = error;
        }
        isRefusal(failure, Type, name, shown);
      });
    }

    it('name the caller in the error’s stack', async function () {
      for (const given of [[{}], [{ n: 'x' }, LONG_MS]]) {
        assert.ok((await failureOf(Job.claim(...given))).stack.includes(__filename));
      }
    });
  });
});

describe('claims', function () {
  it('give one document after the other, each until its turn is over', async function () {
    const Job = queue();
    await fill(Job, 3);
    const seen = [];
    let last;
    for await (const job of Job.claims({ state: 'new' }, LONG_MS, { sort: 'n' })) {
      if (last) {
        assert.equal(last.$lock.held, false);
        assert.equal(await lockedIn(Job), 1);
      }
      assert.equal(job.$lock.held, true);
      seen.push(job.n);
      job.state = 'done';
      await job.save();
      last = job;
      if (seen.length === 3) break;
    }
    assert.deepEqual(seen, [0, 1, 2]);
    assert.equal(await lockedIn(Job), 0);
  });

  it('go on with what comes later, until their signal ends them', async function () {
    const Job = queue();
    const stop = new AbortController();
    const seen = [];
    const running = (async () => {
      for await (const job of Job.claims({ state: 'new' }, LONG_MS, { signal: stop.signal })) {
        seen.push(job.n);
        await Job.updateOne(job.$lock.filter, { state: 'done' });
      }
    })();
    for (const n of [1, 2]) {
      await pause(150);
      await Job.create({ n, state: 'new' });
      await until(() => seen.length === n, 'it is handled');
    }
    stop.abort();
    await running;
    assert.deepEqual(seen, [1, 2]);
    assert.equal(await lockedIn(Job), 0);
  });

  it('run as many at once as they are told to with forEach', async function () {
    const Job = queue();
    await fill(Job, 12);
    const stop = new AbortController();
    const options = { concurrency: 3, signal: stop.signal };
    let [atOnce, most, handled] = [0, 0, 0];
    await Job.claims({ state: 'new' }, LONG_MS, options).forEach(async (job, lock) => {
      assert.equal(lock, job.$lock);
      assert.equal(lock.held, true);
      atOnce += 1;
      most = Math.max(most, atOnce);
      await pause(20);
      job.state = 'done';
      await job.save();
      atOnce -= 1;
      handled += 1;
      if (handled === 12) stop.abort();
    });
    assert.equal(most, 3);
    assert.equal(await Job.countDocuments({ state: 'done' }), 12);
    assert.equal(await lockedIn(Job), 0);
  });

  it('fail in their loops when they cannot be had', async function () {
    const Job = queue();
    const broken = Job.claims({ n: 'many' }, LONG_MS);
    const error = await failureOf(broken[Symbol.asyncIterator]().next());
    assert.ok(error instanceof mongoose.Error.CastError);
    const unsorted = Job.claims({}, LONG_MS, { sort: { n: 'up' } });
    isRefusal(await failureOf(unsorted.forEach(() => {})), TypeError, 'options.sort', 'up');
    isRefusal(await failureOf(Job.claims({}, LONG_MS).forEach('fn')), TypeError, 'fn', "'fn'");
  });
});

describe('locked and unlocked', function () {
  let Job;

  beforeEach(async function () {
    Job = queue();
    await fill(Job, 6);
    await Job.claim({}, LONG_MS, { limit: 2, sort: 'n' });
  });

  it('narrow a query by the server’s clock, whatever it does', async function () {
    assert.deepEqual(numbers(await Job.find().locked().sort('n')), [0, 1]);
    assert.deepEqual(numbers(await Job.find().unlocked().sort('n')), [2, 3, 4, 5]);
    assert.equal(await Job.countDocuments().locked(), 2);
    assert.equal(
      await Job.find({ n: { $gt: 2 } })
        .unlocked()
        .countDocuments(),
      3,
    );
    assert.equal((await Job.findOne({ n: 0 }).unlocked()) ?? null, null);
    assert.equal((await Job.findOne({ n: 0 }).locked()).n, 0);
    const updated = await Job.updateMany({}, { state: 'free' }).unlocked();
    assert.equal(updated.matchedCount, 4);
    assert.equal((await Job.find({ state: 'free' }).locked()).length, 0);
    assert.equal((await Job.deleteMany().locked()).deletedCount, 2);
    assert.equal(await Job.countDocuments(), 4);
  });

  it('leave the user’s own conditions alone', async function () {
    const $expr = { $gte: ['$n', 4] };
    assert.deepEqual(numbers(await Job.find({ $expr }).unlocked().sort('n')), [4, 5]);
    assert.deepEqual(numbers(await Job.find({ $and: [{ n: 1 }] }).locked()), [1]);
    assert.deepEqual(numbers(await Job.find().unlocked().where('n').lt(4).sort('n')), [2, 3]);
    assert.deepEqual(await Job.find().locked().unlocked(), []);
  });

  it('take documents without `locked` for unlocked', async function () {
    await Job.collection.insertMany([{ n: 10 }, { n: 11, locked: null }]);
    assert.deepEqual(
      numbers(
        await Job.find({ n: { $gte: 10 } })
          .unlocked()
          .sort('n'),
      ),
      [10, 11],
    );
    assert.equal(await lockedIn(Job), 2);
  });

  it('are expressions for pipelines too', async function () {
    const match = async ($expr) =>
      numbers(await Job.aggregate([{ $match: { $expr } }, { $sort: { n: 1 } }]));
    assert.deepEqual(await match(lockRelease.locked()), [0, 1]);
    assert.deepEqual(await match(lockRelease.unlocked()), [2, 3, 4, 5]);
    const [{ free }] = await Job.aggregate([
      { $group: { _id: null, free: { $sum: { $cond: [lockRelease.unlocked(), 1, 0] } } } },
    ]);
    assert.equal(free, 4);
    const Busy = queue({ plugin: { path: 'work.busy' } });
    await fill(Busy, 0);
    await Busy.collection.insertMany([{ n: 1 }, { n: 2 }]);
    await Busy.claim({ n: 1 }, LONG_MS);
    const held = await Busy.find({ $expr: lockRelease.locked('work.busy') });
    assert.deepEqual(numbers(held), [1]);
    const [free2] = await Busy.find({ $expr: lockRelease.unlocked('work.busy') });
    assert.equal(free2.n, 2);
  });
});

describe('names of the user’s own', function () {
  const own = {
    claim: () => 'own claim',
    claims: () => 'own claims',
    locked() {
      return this.where({ n: 1 });
    },
    unlocked() {
      return this.where({ n: 2 });
    },
  };

  it('are kept: statics and query helpers', async function () {
    const schema = new Schema(QUEUE);
    Object.assign(schema.statics, { claim: own.claim, claims: own.claims });
    Object.assign(schema.query, { locked: own.locked, unlocked: own.unlocked });
    const Job = stage.lockable(schema);
    await fill(Job, 3);
    assert.equal(Job.claim(), 'own claim');
    assert.equal(Job.claims(), 'own claims');
    assert.deepEqual(numbers(await Job.find().locked()), [1]);
    assert.deepEqual(numbers(await Job.find().unlocked()), [2]);
  });

  it('are kept when only some are there, and when they come afterwards', async function () {
    const Job = stage.lockable(QUEUE, {
      prepare(schema) {
        schema.statics.claim = own.claim;
        schema.query.locked = own.locked;
      },
    });
    await fill(Job, 3);
    assert.equal(Job.claim(), 'own claim');
    assert.deepEqual(numbers(await Job.find().locked()), [1]);
    assert.equal((await Job.find().unlocked()).length, 3);
    for await (const job of Job.claims({ n: 2 }, LONG_MS)) {
      assert.equal(job.n, 2);
      break;
    }
  });

  it('are not what the plugin has added before: applied twice, the later settings hold', async function () {
    const schema = new Schema(QUEUE).plugin(lockRelease);
    const Job = stage.lockable(schema, { plugin: { label: 'the second' } });
    await fill(Job, 1);
    const [job] = await Job.claim({}, LONG_MS);
    assert.equal(job.$lock.label, 'the second');
  });
});
