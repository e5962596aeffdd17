/*
 * `withLock` and `await using`: work under a lock that is renewed and released whatever becomes of the work. What keeps the
 * lock meanwhile is the subject of held.spec.js.
 */
'use strict';

const assert = require('node:assert/strict');
const { setTimeout: pause } = require('node:timers/promises');
const lockRelease = require('..');
const { WireRelay } = require('./faults/wire-relay');
const { deployment } = require('./support/deployment');
const mongoose = require('./support/mongoose');

const { LockError } = lockRelease;
const LONG = 600_000;

describe('work under a lock', function () {
  this.timeout(120_000);

  let server;
  let connection;
  let Order;

  before(async function () {
    server = await deployment();
    connection = await mongoose.createConnection(server.uriFor('with_lock')).asPromise();
    const schema = new mongoose.Schema({ name: String, n: Number }, { collection: 'orders' });
    Order = connection.model('Order', schema.plugin(lockRelease));
    await Order.init();
  });

  after(async function () {
    await connection?.dropDatabase();
    await connection?.close();
    await server?.stop();
  });

  const create = () => Order.create({ name: 'order', n: 0 });
  const again = (doc) => Order.findById(doc._id);
  const isLocked = async (doc) => {
    const $expr = { $gt: ['$locked', '$$NOW'] };
    return (await Order.collection.countDocuments({ _id: doc._id, $expr })) === 1;
  };

  /** Opens a connection through a relay of its own for `use(Model, relay)`. */
  async function throughRelay(use) {
    const relay = await WireRelay.start(await server.primary());
    const query = { serverSelectionTimeoutMS: 1000 };
    const own = await mongoose.createConnection(relay.uriFor('with_lock', query)).asPromise();
    try {
      return await use(own.model('Order', Order.schema), relay);
    } finally {
      relay.blackhole = false;
      await own.close();
      await relay.stop();
    }
  }

  it('gets the fresh document and its lock, and gives back what the work returned', async function () {
    const doc = await create();
    await Order.updateOne({ _id: doc._id }, { name: 'changed' });
    const result = await doc.withLock(LONG, async (locked, lock) => {
      assert.ok(locked instanceof Order);
      assert.notEqual(locked, doc);
      assert.equal(locked.name, 'changed');
      assert.equal(lock, locked.$lock);
      assert.equal(lock, doc.$lock);
      assert.ok(lock.held && (await isLocked(doc)));
      locked.n = 1;
      await locked.save();
      return { some: 'result' };
    });
    assert.deepEqual(result, { some: 'result' });
    assert.ok(!(await isLocked(doc)));
    assert.equal((await again(doc)).n, 1);
  });

  it('takes work that is not asynchronous, with options or null before it', async function () {
    const doc = await create();
    assert.equal(await doc.withLock(LONG, () => 1), 1);
    assert.equal(await doc.withLock(LONG, {}, () => 2), 2);
    assert.equal(await doc.withLock(LONG, null, () => undefined), undefined);
    assert.equal(
      await doc.withLock(LONG, { maxHold: LONG, maxStall: LONG }, () => Promise.resolve(3)),
      3,
    );
    assert.ok(!(await isLocked(doc)));
  });

  it('renews by itself, and not when it is told not to', async function () {
    const [kept, plain] = [await create(), await create()];
    const work = async (_locked, lock) => {
      await pause(4000);
      return lock.held;
    };
    const results = [kept.withLock(1500, work), plain.withLock(1500, { renew: false }, work)];
    assert.deepEqual(await Promise.all(results), [true, false]);
  });

  it('takes a duration that is too short to be renewed only without renewing', async function () {
    const doc = await create();
    let runs = 0;
    const work = () => (runs += 1);
    await assert.rejects(doc.withLock(99, work), {
      name: 'RangeError',
      code: 'ERR_LOCK_ARGUMENT',
      message: /100 ms/,
    });
    await doc.withLock(99, { renew: false }, work);
    assert.equal(runs, 1);
  });

  it('refuses bad arguments by a rejection that names them, before anything is locked', async function () {
    const doc = await create();
    let runs = 0;
    const work = () => (runs += 1);
    const refusals = [
      [[LONG], TypeError, /fn must be a function, got undefined/],
      [[LONG, {}], TypeError, /fn must be a function/],
      [[LONG, {}, 'work'], TypeError, /fn must be a function, got 'work'/],
      [['10', work], TypeError, /duration.*'10'/],
      [[NaN, work], RangeError, /duration.*NaN/],
      [[LONG, { patience: 1 }, work], TypeError, /options\.patience/],
      [[LONG, { renew: 'yes' }, work], TypeError, /options\.renew.*'yes'/],
      [[LONG, { maxHold: 0 }, work], TypeError, /options\.maxHold.*0/],
      [[LONG, { maxHold: NaN }, work], TypeError, /options\.maxHold.*NaN/],
      [[LONG, { maxStall: -1 }, work], TypeError, /options\.maxStall.*-1/],
      [[LONG, { maxStall: '1' }, work], TypeError, /options\.maxStall.*'1'/],
      [[LONG, 7, work], TypeError, /options must be an object, got 7/],
      [[LONG, [], work], TypeError, /options must be an object/],
    ];
    for (const [args, Type, message] of refusals) {
      const promise = doc.withLock(...args);
      assert.ok(promise instanceof Promise);
      await assert.rejects(promise, (error) => {
        assert.ok(error instanceof Type, error.stack);
        assert.equal(error.code, 'ERR_LOCK_ARGUMENT');
        assert.match(error.message, message);
        return true;
      });
    }
    assert.equal(runs, 0);
    assert.ok(!(await isLocked(doc)));
  });

  it('is not begun when the lock cannot be had', async function () {
    const [locked, own, gone] = [await create(), await create(), await create()];
    assert.ok(await (await again(locked)).lock(LONG));
    assert.ok(await own.lock(LONG));
    await Order.deleteOne({ _id: gone._id });
    let runs = 0;
    for (const doc of [locked, own, gone]) {
      await assert.rejects(
        doc.withLock(LONG, () => (runs += 1)),
        (error) => {
          assert.ok(error instanceof LockError);
          assert.equal(error.code, 'ERR_LOCK_UNAVAILABLE');
          assert.ok(error.message.includes(String(doc._id)));
          return true;
        },
      );
    }
    await assert.rejects(
      new Order({ name: 'new' }).withLock(LONG, () => (runs += 1)),
      { code: 'ERR_LOCK_NOT_STORED' },
    );
    assert.equal(runs, 0);
    assert.ok((await isLocked(locked)) && (await isLocked(own)), 'both stay locked');
    assert.ok(own.$lock.held, 'what this process holds already, it keeps');
    assert.ok(await own.release());
  });

  it('keeps the lock until it has settled, and not a moment longer', async function () {
    const doc = await create();
    const order = [];
    const other = await again(doc);
    const work = doc.withLock(LONG, async () => {
      for (let time = 0; time < 20; time++) {
        assert.equal(await other.lock(LONG), null);
        await pause(5);
      }
      order.push('settled');
    });
    await pause(10);
    const next = (async () => {
      while (!(await other.lock(LONG))) await pause(1);
      order.push('next');
    })();
    await work;
    await next;
    assert.deepEqual(order, ['settled', 'next']);
  });

  it('throws what the work throws, and the lock is released', async function () {
    for (const thrown of [new Error('the work went wrong'), undefined, 'text', { code: 1 }]) {
      for (const work of [
        () => {
          throw thrown;
        },
        () => Promise.reject(thrown),
      ]) {
        const doc = await create();
        let caught = 'nothing';
        try {
          await doc.withLock(LONG, work);
        } catch (error) {
          caught = error;
        }
        assert.equal(caught, thrown);
        assert.equal(thrown?.cause, undefined);
        assert.ok(!(await isLocked(doc)));
      }
    }
  });

  it('says as the cause of its error that the release failed too, where there is room', async function () {
    await throughRelay(async (Model, relay) => {
      const fail = async (error) => {
        const doc = await Model.create({ name: 'order' });
        const work = doc.withLock(LONG, async () => {
          relay.blackhole = true;
          throw error;
        });
        await assert.rejects(work, (outcome) => {
          assert.equal(outcome, error);
          return true;
        });
        relay.blackhole = false;
        return error;
      };
      const { cause } = await fail(new Error('the work went wrong'));
      assert.ok(cause instanceof mongoose.mongo.MongoError, `${cause}`);
      const first = new Error('first cause');
      assert.equal((await fail(new Error('it', { cause: first }))).cause, first);
      const frozen = Object.freeze(new Error('frozen'));
      await fail(frozen);
    });
  });

  it('gives its result although the release fails: the work is done', async function () {
    await throughRelay(async (Model, relay) => {
      const doc = await Model.create({ name: 'order' });
      const result = await doc.withLock(LONG, async () => {
        relay.blackhole = true;
        return 'done';
      });
      assert.equal(result, 'done');
      assert.equal(doc.$lock.held, false);
    });
  });

  it('is told when the lock is lost, and does not free the lock of the one who has it then', async function () {
    const doc = await create();
    let other;
    const result = await doc.withLock(2000, async (locked, lock) => {
      await Order.collection.updateOne({ _id: doc._id }, { $set: { locked: new Date(0) } });
      other = await (await again(doc)).lock(LONG);
      await new Promise((resolve) => lock.signal.addEventListener('abort', resolve));
      assert.throws(() => lock.assertHeld(), { code: 'ERR_LOCK_LOST' });
      locked.n = 7;
      await assert.rejects(locked.save(), { code: 'ERR_LOCK_LOST' });
      return 'noticed';
    });
    assert.equal(result, 'noticed');
    assert.ok(other.$lock.held && (await isLocked(doc)));
    assert.ok(await other.release());
    assert.equal((await again(doc)).n, 0);
  });

  it('may release by itself', async function () {
    const doc = await create();
    let other;
    await doc.withLock(LONG, async (locked) => {
      assert.ok(await locked.release());
      other = await (await again(doc)).lock(LONG);
      assert.ok(other);
    });
    assert.ok(await isLocked(doc), 'the lock of the next holder stays');
    assert.ok(await other.release());
  });

  it('nests, and runs side by side, on different documents', async function () {
    const [outer, inner] = [await create(), await create()];
    const result = await outer.withLock(LONG, () =>
      inner.withLock(LONG, async () => [await isLocked(outer), await isLocked(inner)]),
    );
    assert.deepEqual(result, [true, true]);
    assert.ok(!(await isLocked(outer)) && !(await isLocked(inner)));

    const docs = await Order.create(Array.from({ length: 50 }, (_, n) => ({ name: 'side', n })));
    const numbers = await Promise.all(
      docs.map((doc) =>
        doc.withLock(1500, async (locked, lock) => {
          await pause(2500);
          lock.assertHeld();
          return locked.n;
        }),
      ),
    );
    assert.deepEqual(
      numbers,
      docs.map((_, n) => n),
    );
  });

  it('on one document lets one in at a time, and is refused within itself', async function () {
    const doc = await create();
    await doc.withLock(LONG, async (locked) => {
      for (const same of [doc, locked, await again(doc)]) {
        await assert.rejects(
          same.withLock(LONG, () => assert.fail('it was let in')),
          { code: 'ERR_LOCK_UNAVAILABLE' },
        );
      }
      assert.ok(locked.$lock.held && (await isLocked(doc)));
    });

    let inside = 0;
    let done = 0;
    const worker = async () => {
      while (done < 60) {
        const own = await again(doc);
        await own
          .withLock(10_000, async (locked) => {
            inside += 1;
            assert.equal(inside, 1);
            locked.n += 1;
            await locked.save();
            inside -= 1;
            done += 1;
          })
          .catch((error) => assert.equal(error.code, 'ERR_LOCK_UNAVAILABLE'));
      }
    };
    await Promise.all(Array.from({ length: 6 }, worker));
    assert.equal((await again(doc)).n, done);
  });

  it('names its caller in the stack of what it rejects with', async function () {
    const doc = await create();
    await doc.lock(LONG);
    async function callerOfWithLock() {
      await doc.withLock(LONG, () => {});
    }
    await assert.rejects(callerOfWithLock(), ({ stack }) => /callerOfWithLock/.test(stack));
  });

  describe('of a block', function () {
    /** What `await using` does at the end of the block; the syntax itself is newer than Node 20. */
    const dispose = (doc) => doc[Symbol.asyncDispose]();

    it('ends with the release of what `lock` returned', async function () {
      const doc = await create();
      const locked = await doc.lock(LONG, { renew: true });
      assert.equal(await dispose(locked), undefined);
      assert.ok(!(await isLocked(doc)));
      assert.equal(locked.$lock.held, false);
    });

    it('does nothing when it has been released, and frees nobody else', async function () {
      const doc = await create();
      const locked = await doc.lock(LONG, { renew: true });
      await locked.release();
      const other = await (await again(doc)).lock(LONG);
      await dispose(locked);
      await dispose(await again(doc));
      assert.ok(other.$lock.held && (await isLocked(doc)));
    });

    it('is no error when the lock was lost, and frees nobody else', async function () {
      const doc = await create();
      const locked = await doc.lock(20);
      let other;
      while (!(other = await (await again(doc)).lock(LONG))) await pause(5);
      await dispose(locked);
      assert.ok(other.$lock.held && (await isLocked(doc)));
    });
  });
});
