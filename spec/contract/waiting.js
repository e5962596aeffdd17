'use strict';
/*
 * What `wait` and `signal` promise to the one who waits. Many waiters, several processes, faults, and what it costs the
 * server are the subject of waiting.spec.js.
 */

const assert = require('node:assert/strict');
const { setTimeout: pause } = require('node:timers/promises');
const stage = require('./stage');
const { LONG_MS, commandsDuring, failureOf, load, mongoose, stored } = stage;

/** Long enough to tell that somebody waited from that nobody did, on a busy machine too. */
const MOMENT_MS = 150;
/** How late an answer may be here: much later than it ever is, much earlier than the lock lapses. */
const SOON_MS = 20_000;

/** Resolves to what `work` came to, and how many milliseconds that took. */
async function timed(work) {
  const start = performance.now();
  const result = await work();
  return { result, ms: performance.now() - start };
}

function abortable() {
  const controller = new AbortController();
  return { signal: controller.signal, abort: () => controller.abort() };
}

describe('waiting', function () {
  let Order;
  let order;

  before(function () {
    Order = stage.lockable();
  });

  beforeEach(async function () {
    order = await Order.create({ name: 'awaited' });
  });

  const isLocked = async (doc) => {
    const $expr = { $gt: ['$locked', '$$NOW'] };
    return (await doc.collection.countDocuments({ _id: doc._id, $expr })) === 1;
  };

  /** Whether the promise is settled after a moment. */
  async function isSettled(promise) {
    const unsettled = Symbol('unsettled');
    const first = await Promise.race([promise.catch(() => {}), pause(MOMENT_MS, unsettled)]);
    return first !== unsettled;
  }

  it('is not needed for a document that is free', async function () {
    for (const options of [{ wait: 1 }, { wait: SOON_MS }, { wait: Infinity }]) {
      const commands = await commandsDuring(Order, async () => {
        const locked = await order.lock(LONG_MS, options);
        assert.ok(locked.$lock.held);
        assert.notEqual(locked, order);
        assert.equal(locked.$lock, order.$lock);
      });
      assert.equal(commands.length, 1);
      await order.release();
      // Released by oneself a moment ago, others are given a chance to be first.
      await pause(50);
    }
  });

  it('resolves with the fresh document as soon as the lock is released', async function () {
    for (const wait of [SOON_MS, Infinity]) {
      const holder = await load(order);
      await holder.lock(LONG_MS);
      const waiting = order.lock(LONG_MS, { wait });
      assert.equal(await isSettled(waiting), false);
      await Order.collection.updateOne({ _id: order._id }, { $set: { name: 'changed' } });
      const { token } = holder.$lock;
      await holder.release();
      const locked = await waiting;
      assert.ok(locked.$lock.held);
      assert.equal(locked.$lock.token, token + 1);
      assert.equal(locked.name, 'changed');
      await order.release();
    }
  });

  it('resolves when the lock lapses, never before, with the full duration ahead', async function () {
    const { locked: until } = await (await load(order)).lock(700);
    const locked = await order.lock(LONG_MS, { wait: SOON_MS });
    assert.ok(locked.$lock.since >= until);
    assert.ok(locked.$lock.remaining > LONG_MS - SOON_MS);
  });

  it('resolves with null when the time is up, no sooner, and changes nothing', async function () {
    await (await load(order)).lock(LONG_MS);
    const before = await stored(order);
    const { result, ms } = await timed(() => order.lock(LONG_MS, { wait: 300 }));
    assert.equal(result, null);
    assert.ok(ms >= 299 && ms < SOON_MS, `${ms}`);
    assert.deepEqual(await stored(order), before);
    assert.equal(order.$lock, undefined);
    assert.equal(await order.release(), null, 'a lock that was refused is another’s');
  });

  it('tries once with `wait: 0`, as without it', async function () {
    await (await load(order)).lock(LONG_MS);
    const commands = await commandsDuring(Order, async () => {
      for (const options of [{ wait: 0 }, { wait: undefined }]) {
        assert.equal(await order.lock(LONG_MS, options), null);
      }
    });
    assert.equal(commands.length, 2);
  });

  it('ends with null when the document is deleted, or was before', async function () {
    const gone = await Order.create({ name: 'gone' });
    await Order.deleteOne({ _id: gone._id });
    assert.equal(await gone.lock(LONG_MS, { wait: Infinity }), null);

    await (await load(order)).lock(LONG_MS);
    const waiting = order.lock(LONG_MS, { wait: Infinity });
    assert.equal(await isSettled(waiting), false);
    await Order.collection.deleteOne({ _id: order._id });
    assert.equal(await waiting, null);
  });

  it('notices a lock that somebody else has released by hand', async function () {
    await (await load(order)).lock(LONG_MS);
    const waiting = order.lock(LONG_MS, { wait: SOON_MS });
    assert.equal(await isSettled(waiting), false);
    await stage.write(order, { $set: { locked: new Date(0) } });
    assert.ok((await waiting).$lock.held);
  });

  it('is ended by its signal, with the signal’s reason', async function () {
    await (await load(order)).lock(LONG_MS);
    for (const reason of [new Error('the request was closed'), 'closed', undefined]) {
      const controller = new AbortController();
      const waiting = order.lock(LONG_MS, { wait: Infinity, signal: controller.signal });
      assert.equal(await isSettled(waiting), false);
      controller.abort(reason);
      const { result: error, ms } = await timed(() => failureOf(waiting));
      assert.equal(error, controller.signal.reason);
      assert.ok(ms < SOON_MS, `${ms}`);
    }
    const timeout = AbortSignal.timeout(50);
    const error = await failureOf(order.lock(LONG_MS, { wait: Infinity, signal: timeout }));
    assert.equal(error.name, 'TimeoutError');
    assert.equal(order.$lock, undefined);
  });

  it('does not begin with a signal that is aborted already', async function () {
    const reason = new Error('too late');
    const signal = AbortSignal.abort(reason);
    const commands = await commandsDuring(Order, async () => {
      for (const options of [{ signal }, { signal, wait: 0 }, { signal, wait: SOON_MS }]) {
        assert.equal(await failureOf(order.lock(LONG_MS, options)), reason);
      }
      assert.equal(await failureOf(order.withLock(LONG_MS, { signal }, () => 'never')), reason);
    });
    assert.deepEqual(commands, []);
    assert.equal(order.$lock, undefined);
  });

  it('is not undone by a signal that is aborted once the lock is had', async function () {
    const controller = new AbortController();
    const { signal } = controller;
    await order.lock(LONG_MS, { wait: SOON_MS, signal });
    controller.abort();
    await pause(50);
    assert.ok(order.$lock.held && (await isLocked(order)));
    await order.release();

    const during = new AbortController();
    const result = await order.withLock(LONG_MS, { signal: during.signal }, async (_, lock) => {
      during.abort();
      await pause(50);
      lock.assertHeld();
      return 'done';
    });
    assert.equal(result, 'done');
  });

  it('leaves no lock behind when it was aborted, whenever that is', async function () {
    const docs = await Order.create(Array.from({ length: 24 }, () => ({ name: 'aborted' })));
    const outcomes = await Promise.all(
      docs.map(async (doc, number) => {
        const { signal, abort } = abortable();
        const waiting = doc.lock(LONG_MS, { wait: SOON_MS, signal });
        if (number < 20) setTimeout(abort, number / 2);
        else process.nextTick(abort);
        try {
          await waiting;
        } catch (error) {
          assert.equal(error, signal.reason);
          return 'aborted';
        }
        await doc.release();
        return 'locked';
      }),
    );
    assert.ok(outcomes.includes('aborted'), `${outcomes}`);
    // What is on its way by now may still come in.
    await pause(MOMENT_MS);
    const $expr = { $gt: ['$locked', '$$NOW'] };
    const left = () => Order.collection.countDocuments({ name: 'aborted', $expr });
    const deadline = performance.now() + SOON_MS;
    let count = await left();
    while (count > 0 && performance.now() < deadline) {
      await pause(10);
      count = await left();
    }
    assert.equal(count, 0);
  });

  it('takes a callback, which is called once and never at once', async function () {
    const calls = [];
    const ask = (doc, options) =>
      new Promise((resolve) => {
        const returned = doc.lock(LONG_MS, options, function callback(...args) {
          calls.push(args.length);
          resolve(args);
        });
        assert.equal(returned, undefined);
        assert.equal(calls.length, before);
      });
    let before = 0;
    const [nothing, locked] = await ask(order, { wait: SOON_MS });
    assert.equal(nothing, null);
    assert.ok(locked.$lock.held);

    before = 1;
    const other = await load(order);
    assert.deepEqual(await ask(other, { wait: 50 }), [null, null]);

    before = 2;
    const controller = new AbortController();
    const aborted = ask(other, { wait: Infinity, signal: controller.signal });
    controller.abort(new Error('enough'));
    const [error] = await aborted;
    assert.equal(error.message, 'enough');

    before = 3;
    const waiting = ask(other, { wait: SOON_MS });
    await pause(MOMENT_MS);
    await order.release();
    assert.ok((await waiting)[1].$lock.held);
    await pause(50);
    assert.equal(calls.length, 4);
  });

  it('lets withLock run its work once it is its turn, or reject', async function () {
    const holder = await load(order);
    await holder.lock(LONG_MS);
    const events = [];
    const working = order.withLock(LONG_MS, { wait: Infinity }, (locked, lock) => {
      events.push('work');
      assert.ok(lock.held);
      return locked.name;
    });
    assert.equal(await isSettled(working), false);
    const never = () => events.push('never');
    const refused = await failureOf((await load(order)).withLock(LONG_MS, { wait: 50 }, never));
    assert.equal(refused.code, 'ERR_LOCK_UNAVAILABLE');
    const signal = AbortSignal.timeout(50);
    const again = await load(order);
    const aborted = await failureOf(again.withLock(LONG_MS, { wait: Infinity, signal }, never));
    assert.equal(aborted.name, 'TimeoutError');
    events.push('release');
    await holder.release();
    assert.equal(await working, 'awaited');
    assert.deepEqual(events, ['release', 'work']);
    assert.equal(await isLocked(order), false);
  });

  it('serves those who wait in one process in the order of their coming', async function () {
    const holder = await load(order);
    await holder.lock(LONG_MS);
    const served = [];
    const waiters = [];
    for (let number = 0; number < 20; number++) {
      const own = await load(order);
      waiters.push(
        own.lock(LONG_MS, { wait: SOON_MS }).then(async (locked) => {
          served.push(number);
          assert.ok(locked.$lock.held);
          await own.release();
        }),
      );
    }
    await pause(20);
    await holder.release();
    await Promise.all(waiters);
    assert.deepEqual(
      served,
      Array.from({ length: 20 }, (_, number) => number),
    );
  });

  it('lets nobody in beside another, and everybody in', async function () {
    let inside = 0;
    const work = async (locked) => {
      inside += 1;
      assert.equal(inside, 1);
      await Order.updateOne({ _id: locked._id, ...locked.$lock.filter }, { $set: { name: 'x' } });
      inside -= 1;
      return 1;
    };
    const docs = await Promise.all(Array.from({ length: 30 }, () => load(order)));
    const done = await Promise.all(
      docs.map((doc) => doc.withLock(LONG_MS, { wait: Infinity }, work)),
    );
    assert.equal(done.length, 30);
    assert.equal((await stored(order)).lockedBy.token, 30);
  });

  it('goes on while the lock is prolonged, by extend or by renewal', async function () {
    const holder = await load(order);
    await holder.lock(400);
    const waiting = order.lock(LONG_MS, { wait: SOON_MS });
    const { locked: until } = await holder.extend(1500);
    const first = await waiting;
    assert.ok(first.$lock.since >= until);

    const other = await load(order);
    await order.release();
    const renewed = await other.lock(500, { renew: true });
    assert.equal(await order.lock(LONG_MS, { wait: 1500 }), null);
    assert.ok(renewed.$lock.held);
    await renewed.release();
  });

  it('is possible for documents with any _id, each for itself', async function () {
    const Any = stage.lockable(new mongoose.Schema({ _id: {}, name: String }));
    const { Decimal128, Long } = mongoose.mongo.BSON;
    const ids = [
      ...['text', '1', 1, 1.5, -1, true, new Date(7), new mongoose.Types.ObjectId()],
      ...[Long.fromString('9007199254740993'), Decimal128.fromString('2.50')],
      ...[Buffer.from('bytes'), { a: 1, b: { c: '$x' } }, { b: { c: '$x' }, a: 1 }],
    ];
    await Any.collection.insertMany(ids.map((_id) => ({ _id, name: 'any' })));
    const holders = await Any.find();
    const waiters = await Any.find();
    await Promise.all(holders.map((doc) => doc.lock(LONG_MS)));
    const got = new Set();
    const waiting = waiters.map((doc, number) =>
      doc.lock(LONG_MS, { wait: SOON_MS }).then((locked) => {
        assert.ok(locked.$lock.held);
        got.add(number);
      }),
    );
    await pause(MOMENT_MS);
    for (const [number, holder] of holders.entries()) {
      assert.equal(got.size, number);
      await holder.release();
      await waiting[number];
    }
  });

  it('takes an _id that is equal to the server for one, whatever type of number it has', async function () {
    const Any = stage.lockable(new mongoose.Schema({ _id: {}, name: String }));
    const { Double, Long, Int32 } = mongoose.mongo.BSON;
    await Any.collection.insertMany([{ _id: new Double(1) }, { _id: { n: new Int32(2) } }]);
    const names = [
      [new Double(1), new Int32(1), Long.fromNumber(1)],
      [{ n: new Double(2) }, { n: new Int32(2) }, { n: Long.fromNumber(2) }],
    ];
    for (const ids of names) {
      const docs = ids.map((_id) => Any.hydrate({ _id }));
      const holder = Any.hydrate({ _id: ids[0] });
      assert.ok(await holder.lock(LONG_MS));
      const waiting = docs.map(async (doc) => {
        assert.ok(await doc.lock(LONG_MS, { wait: SOON_MS }), `${doc._id}`);
        await doc.release();
      });
      await pause(MOMENT_MS);
      await holder.release();
      await Promise.all(waiting);
    }
  });

  it('goes with a lock at another path, nested too', async function () {
    for (const path of ['busy', 'state.busy']) {
      const Busy = stage.lockable({ state: { step: Number } }, { plugin: { path } });
      const busy = await Busy.create({ state: { step: 1 } });
      const holder = await load(busy);
      await holder.lock(LONG_MS);
      const waiting = busy.lock(LONG_MS, { wait: SOON_MS });
      assert.equal(await isSettled(waiting), false);
      await holder.release();
      assert.ok((await waiting).$lock.held, path);
    }
  });

  it('goes through a discriminator and its base alike', async function () {
    const Base = stage.lockable(
      new mongoose.Schema({ name: String }, { discriminatorKey: 'kind' }),
    );
    const Special = Base.discriminator(
      stage.freshName('Special'),
      new mongoose.Schema({ special: Number }),
    );
    const { _id } = await Special.create({ name: 'both', special: 1 });
    const [base, special] = [await Base.findById(_id), await Special.findById(_id)];
    for (const [holder, waiter] of [
      [base, special],
      [special, base],
    ]) {
      await holder.lock(LONG_MS);
      const waiting = waiter.lock(LONG_MS, { wait: SOON_MS });
      assert.equal(await isSettled(waiting), false);
      await holder.release();
      const locked = await waiting;
      assert.ok(locked instanceof Special);
      await waiter.release();
    }
  });

  it('begins when the connection is open, and can be aborted before', async function () {
    const own = new mongoose.Mongoose();
    own.set('strictQuery', true);
    const connection = own.createConnection();
    try {
      const Early = connection.model('Early', Order.schema, Order.collection.collectionName);
      const early = Early.hydrate({ _id: order._id });
      const controller = new AbortController();
      const aborted = early.lock(LONG_MS, { wait: Infinity, signal: controller.signal });
      const waiting = early.lock(LONG_MS, { wait: SOON_MS });
      assert.equal(await isSettled(aborted), false);
      controller.abort(new Error('not any more'));
      assert.equal((await failureOf(aborted)).message, 'not any more');
      await connection.openUri(stage.uri());
      assert.ok((await waiting).$lock.held);
      await early.release();
    } finally {
      await connection.close();
    }
  });

  describe('refuses', function () {
    const BAD = {
      wait: [
        ['NaN', NaN],
        ['-1', -1],
        ['-Infinity', -Infinity],
        ["'5'", '5'],
        ['null', null],
        ['true', true],
        ['5n', 5n],
        ['{}', {}],
      ],
      signal: [
        ['{}', {}],
        ['null', null],
        ["'abort'", 'abort'],
        ['AbortController', new AbortController()],
        ['class AbortSignal', AbortSignal],
      ],
    };

    for (const [name, values] of Object.entries(BAD)) {
      it(`a wrong ${name}, by name and value, and sends nothing`, async function () {
        const commands = await commandsDuring(Order, async () => {
          for (const [shown, value] of values) {
            const options = { wait: 10, [name]: value };
            const fail = (error) => {
              assert.ok(error instanceof TypeError, `${shown}: ${error}`);
              assert.equal(error.code, 'ERR_LOCK_ARGUMENT');
              assert.ok(error.message.includes(`options.${name} `), error.message);
              assert.ok(error.message.includes(shown), error.message);
            };
            fail(await failureOf(order.lock(LONG_MS, options)));
            fail(await failureOf(order.withLock(LONG_MS, options, () => {})));
            fail(await new Promise((resolve) => void order.lock(LONG_MS, options, resolve)));
          }
        });
        assert.deepEqual(commands, []);
      });
    }

    it('a wrong pollInterval of the plugin’s', function () {
      for (const [shown, pollInterval] of [
        ['1', 1],
        ['0', 0],
        ['NaN', NaN],
        ['Infinity', Infinity],
        ["'250'", '250'],
        ['null', null],
      ]) {
        assert.throws(
          () => stage.lockable({ name: String }, { plugin: { pollInterval } }),
          (error) => {
            assert.equal(error.code, 'ERR_LOCK_ARGUMENT');
            return error.message.includes('pollInterval') && error.message.includes(shown);
          },
        );
      }
    });
  });
});
