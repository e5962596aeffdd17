/*
 * Locks that are renewed: what keeps them, what ends them, and how their holder learns of it. Several processes are real
 * processes; the one with the specs in it is always the other one, that tries to get the lock.
 */
'use strict';

const assert = require('node:assert/strict');
const { setTimeout: pause } = require('node:timers/promises');
const lockRelease = require('..');
const { WireRelay } = require('./faults/wire-relay');
const { Scene } = require('./fixtures/held-scene');
const { deployment } = require('./support/deployment');
const mongoose = require('./support/mongoose');

const { LockError } = lockRelease;
const LONG = 600_000;
const RENEW = { renew: true };

describe('a lock that is renewed', function () {
  // Busy machines: nothing here is measured by it.
  this.timeout(120_000);

  let server;
  let uri;
  let connection;
  let Order;

  before(async function () {
    server = await deployment();
    uri = server.uriFor('lock_release_held');
    connection = await mongoose.createConnection(uri).asPromise();
    const schema = new mongoose.Schema(
      { name: String },
      { collection: 'orders', timestamps: true },
    );
    Order = connection.model('Order', schema.plugin(lockRelease));
    await Order.init();
  });

  afterEach(() => Scene.killAll());

  after(async function () {
    await connection?.dropDatabase();
    await connection?.close();
    await server?.stop();
  });

  const now = () => Number(process.hrtime.bigint() / 1000n) / 1000;
  const create = (Model = Order) => Model.create({ name: 'order' });
  const again = (doc) => doc.constructor.findById(doc._id);
  const stored = (doc) => doc.collection.findOne({ _id: doc._id });
  const isFree = async (doc) => (await (await again(doc)).lock(LONG)) !== null;
  const play = (scene, args, how) => Scene.play(scene, { uri, ...args }, how);

  /** Tries again and again until the lock is granted or the scene has spoken; tells when it was, if ever. */
  async function contend(doc, everyMs, isOver = () => false) {
    let tries = 0;
    while (!isOver()) {
      tries += 1;
      if (await isFree(doc)) return { at: now(), tries };
      await pause(everyMs);
    }
    return { tries };
  }

  /** Whether the documents are locked at this moment, by the server's own clock. */
  async function countLocked(docs) {
    const { collection } = docs[0];
    const ids = docs.map((doc) => ({ _id: { $eq: doc._id } }));
    return collection.countDocuments({ $or: ids, $expr: { $gt: ['$locked', '$$NOW'] } });
  }

  async function commands() {
    const { metrics } = await connection.db.admin().command({ serverStatus: 1 });
    const { update, findAndModify } = metrics.commands;
    return { update: Number(update.total), findAndModify: Number(findAndModify.total) };
  }

  /** Opens a connection through a relay of its own for `use(Model, relay)`. */
  async function throughRelay(use) {
    const relay = await WireRelay.start(await server.primary());
    const own = await mongoose
      .createConnection(relay.uriFor('lock_release_held', { serverSelectionTimeoutMS: 2000 }))
      .asPromise();
    try {
      return await use(own.model('Order', Order.schema), relay);
    } finally {
      relay.blackhole = false;
      relay.delay = 0;
      await own.close();
      await relay.stop();
    }
  }

  describe('is kept', function () {
    it('through a blocked event loop of ten times its duration, however often another tries', async function () {
      const doc = await create();
      const scene = play('block', { id: doc._id, duration: 1000, ms: 10_000 });
      await scene.next();
      let outcome;
      scene.next().then((said) => (outcome = said));
      const { at, tries } = await contend(doc, 50, () => outcome);
      assert.equal(at, undefined, 'the other never gets it');
      assert.ok(tries > 20, `${tries} tries`);
      assert.deepEqual({ lapses: outcome.lapses, held: outcome.held }, { lapses: 0, held: true });
      assert.deepEqual([outcome.later.held, outcome.later.aborted], [true, false]);
    });

    it('as no JavaScript timer can: one that renews by extend() loses the lock', async function () {
      const doc = await create();
      const scene = play('block', { id: doc._id, duration: 1000, ms: 4000, timer: true });
      await scene.next();
      let outcome;
      scene.next().then((said) => (outcome = said));
      const { at } = await contend(doc, 50, () => outcome);
      assert.ok(at, 'the other gets it');
      outcome ??= await waitFor(() => outcome);
      assert.ok(outcome.lapses > 0 && !outcome.held && outcome.later.aborted);
    });

    it('for as long as it is asked for, and without renew for its duration alone', async function () {
      const [kept, plain] = [await create(), await create()];
      const locked = await kept.lock(1500, RENEW);
      const other = await plain.lock(1500);
      await pause(4000);
      assert.deepEqual([locked.$lock.held, other.$lock.held], [true, false]);
      assert.ok(!(await isFree(kept)) && (await isFree(plain)));
      assert.ok(locked.$lock.remaining <= 1500 && locked.$lock.remaining > 0);
      assert.ok(await locked.release());
      assert.ok(await isFree(kept));
    });

    it('on Mongoose 6 to 9 alike: blocked, fenced, told of and released', async function () {
      await Promise.all(
        ['6', '7', '8', '9'].map(async (version) => {
          const doc = await create();
          const args = { id: doc._id, duration: 1500 };
          const scene = play('everything', args, { mongoose: version });
          const { result, lost, last } = await scene.next();
          assert.deepEqual(result, { held: true, name: 'handled', isFenced: true });
          assert.equal(lost.code, 'ERR_LOCK_LOST');
          assert.match(lost.reason, /maxHold/);
          assert.equal(last, true);
          assert.deepEqual(await scene.ended, { code: 3, signal: null });
          assert.ok(await isFree(doc), `released at the exit with Mongoose ${version}`);
        }),
      );
    });

    it('whatever its _id is made of, one that reads like an operator included', async function () {
      const schema = new mongoose.Schema({ _id: {}, name: String }, { collection: 'any_id' });
      const Any = connection.model('AnyId', schema.plugin(lockRelease));
      const { Binary, Decimal128, Long } = mongoose.mongo;
      const ids = [
        ...['text', '', 7, 7.5, -0.25, true, new Date(), new mongoose.Types.ObjectId()],
        ...[Long.fromString('9007199254740993'), Decimal128.fromString('1.10')],
        ...[new Binary(Buffer.from('bytes')), { a: 1, b: { c: 2 } }, { b: { c: 2 }, a: 1 }],
      ];
      // The server takes no such _id in an insert; where it does, the batch with it in it fails.
      await Any.collection.insertMany(ids.map((_id) => ({ _id, name: 'any' })));
      const docs = await Any.find();
      assert.equal(docs.length, ids.length);
      const locked = await Promise.all(docs.map((doc) => doc.lock(1500, RENEW)));
      await pause(3500);
      assert.deepEqual(
        locked.filter((doc) => !doc.$lock.held).map((doc) => doc._id),
        [],
      );
      assert.equal(await Any.countDocuments({ $expr: { $gt: ['$locked', '$$NOW'] } }), ids.length);
      assert.ok((await Promise.all(locked.map((doc) => doc.release()))).every(Boolean));
    });

    it('with a shard key, and through a discriminator', async function () {
      const sharded = new mongoose.Schema(
        { name: String, region: String },
        { collection: 'sharded', shardKey: { region: 1 } },
      );
      const Sharded = connection.model('Sharded', sharded.plugin(lockRelease));
      const Special = Order.discriminator('Special', new mongoose.Schema({ extra: Number }));
      const docs = [
        await Sharded.create({ name: 'order', region: 'north' }),
        await Special.create({ name: 'order', extra: 1 }),
      ];
      const locked = await Promise.all(docs.map((doc) => doc.lock(1500, RENEW)));
      await pause(3500);
      for (const doc of locked) {
        assert.ok(doc.$lock.held);
        assert.ok(await doc.release());
      }
    });

    it('a thousand at once in few commands', async function () {
      const count = 1000;
      const docs = await Order.insertMany(Array.from({ length: count }, () => ({ name: 'many' })));
      const locked = await Promise.all(docs.map((doc) => doc.lock(15_000, RENEW)));
      const before = await commands();
      await pause(17_000);
      const after = await commands();
      assert.equal(await countLocked(docs), count);
      assert.ok(locked.every((doc) => doc.$lock.held));
      assert.ok(after.update > before.update);
      // Each has been renewed twice at least; a machine that is overloaded divides some batch.
      const sent = after.update - before.update + after.findAndModify - before.findAndModify;
      assert.ok(sent <= 100, `${sent} commands`);
      await Promise.all(locked.map((doc) => doc.release()));
    });

    it('without a trace in what the schema keeps of changes: updatedAt stays', async function () {
      const doc = await create();
      const locked = await doc.lock(1500, RENEW);
      const { updatedAt, locked: until } = await stored(doc);
      await pause(2500);
      const later = await stored(doc);
      assert.ok(later.locked > until, 'it has been renewed');
      assert.equal(later.locked.getTime(), later.lockedBy.until.getTime());
      assert.equal(later.updatedAt.getTime(), updatedAt.getTime());
      await locked.release();
    });

    it('beside one that is written in a transaction: that one blocks itself alone', async function () {
      // A single server has no transactions.
      if (server.kind === 'single') return;
      const docs = await Order.create(Array.from({ length: 6 }, () => ({ name: 'order' })));
      const [written, ...others] = await Promise.all(docs.map((doc) => doc.lock(3000, RENEW)));
      const session = await connection.startSession();
      try {
        session.startTransaction();
        const { _id } = written;
        await Order.collection.updateOne({ _id }, { $set: { name: 'open' } }, { session });
        await pause(8000);
        assert.deepEqual(
          others.map((doc) => doc.$lock.held),
          others.map(() => true),
        );
        assert.equal(written.$lock.held, false);
        assert.throws(() => written.$lock.assertHeld(), /unreachable/);
      } finally {
        await session.abortTransaction();
        await session.endSession();
      }
      for (const doc of others) assert.ok(await doc.release());
    });
  });

  describe('lets go', function () {
    it('when its process hangs for good: after maxStall and one duration at most', async function () {
      const hang = async (duration, maxStall, slack) => {
        const doc = await create();
        const scene = play('hang', { id: doc._id, duration, options: { ...RENEW, maxStall } });
        await scene.next();
        const { at: hung } = await scene.next();
        const { at } = await contend(doc, 20);
        const held = at - hung;
        const limit = maxStall + duration;
        assert.ok(held <= limit + slack, `${held} ms with ${limit} ms allowed`);
        return held;
      };
      // A second for the machine, and less than a third of the duration where that is what would be wrong.
      const [long] = await Promise.all([hang(1000, 3000, 1000), hang(4500, 300, 1000)]);
      assert.ok(long > 2000, `${long} ms: it is kept through a stall that is shorter`);
    });

    it('when nobody can ask about it any more; a signal that is in use keeps it', async function () {
      const docs = [await create(), await create()];
      const ids = docs.map((doc) => doc._id);
      const args = { ids, duration: 1500 };
      const scene = play('forget', args, { execArgv: ['--expose-gc'] });
      const [forgotten, watched] = docs;
      await scene.next();
      assert.ok((await contend(forgotten, 20)).at, 'the other gets it while its holder lives');
      assert.equal(scene.end, undefined);
      assert.ok(!(await isFree(watched)));
      assert.deepEqual(await scene.next(), { aborted: false });
    });
  });

  describe('that is lost', function () {
    /** Waits for the abort; counts it. */
    function watch({ $lock }) {
      const told = { count: 0 };
      told.done = new Promise((resolve) => {
        $lock.signal.addEventListener('abort', () => {
          told.count += 1;
          told.wasHeld = $lock.held;
          resolve();
        });
      });
      return told;
    }

    async function assertLost(locked, told, why) {
      await told.done;
      const { signal } = locked.$lock;
      assert.equal(told.wasHeld, false);
      assert.ok(signal.reason instanceof LockError);
      assert.equal(signal.reason.code, 'ERR_LOCK_LOST');
      assert.match(signal.reason.message, why);
      assert.throws(() => locked.$lock.assertHeld(), { code: 'ERR_LOCK_LOST', message: why });
      await pause(600);
      assert.equal(told.count, 1, 'told once');
    }

    it('to another says so, and leaves the lock of the other alone', async function () {
      const doc = await create();
      const locked = await doc.lock(2000, RENEW);
      const told = watch(locked);
      await Order.collection.updateOne({ _id: doc._id }, { $set: { locked: new Date(0) } });
      const other = await again(doc);
      assert.ok(await other.lock(LONG));
      await assertLost(locked, told, /taken over/);
      assert.equal(await locked.release(), null);
      assert.ok(other.$lock.held && !(await isFree(doc)));
    });

    it('with its document says so', async function () {
      const doc = await create();
      const locked = await doc.lock(2000, RENEW);
      const told = watch(locked);
      await Order.deleteOne({ _id: doc._id });
      await assertLost(locked, told, /document deleted/);
    });

    it('by maxHold says so, after its last duration is over', async function () {
      const locked = await (await create()).lock(1200, { ...RENEW, maxHold: 1500 });
      const begun = performance.now();
      const told = watch(locked);
      await assertLost(locked, told, /maxHold/);
      assert.ok(performance.now() - begun > 1500, 'it was renewed until then');
    });

    it('by maxStall says so once the event loop turns again', async function () {
      const locked = await (await create()).lock(1200, { ...RENEW, maxStall: 1400 });
      const told = watch(locked);
      const end = performance.now() + 5000;
      while (performance.now() < end);
      assert.equal(locked.$lock.held, false);
      await assertLost(locked, told, /maxStall/);
    });

    it('by running out says so', async function () {
      const locked = await (await create()).lock(300);
      await assertLost(locked, watch(locked), /expired/);
    });

    it('to a network that swallows everything is known at the deadline, not before', async function () {
      await throughRelay(async (Model, relay) => {
        const locked = await (await create(Model)).lock(3000, RENEW);
        const told = watch(locked);
        await pause(800);
        relay.blackhole = true;
        const { remaining } = locked.$lock;
        const begun = performance.now();
        await told.done;
        const took = performance.now() - begun;
        assert.ok(took > remaining - 5 && took < 15_000, `${took} ms with ${remaining} ms left`);
        await assertLost(locked, told, /unreachable/);
      });
    });

    it('for a while to the network only, is kept: a failed renewal is tried again', async function () {
      await throughRelay(async (Model, relay) => {
        const doc = await create(Model);
        const locked = await doc.lock(3000, RENEW);
        let lapses = 0;
        const poll = setInterval(() => (lapses += locked.$lock.held ? 0 : 1), 5);
        for (let time = 0; time < 2; time++) {
          relay.hitNext('loseRequest');
          await pause(3000);
        }
        clearInterval(poll);
        assert.equal(relay.hits.loseRequest, 2);
        assert.equal(lapses, 0);
        assert.equal(locked.$lock.signal.aborted, false);
        assert.ok(await locked.release());
      });
    });

    it('while the event loop is blocked is known in it, and told as soon as it turns', async function () {
      const locked = await (await create()).lock(300);
      const told = watch(locked);
      while (locked.$lock.held);
      assert.equal(told.count, 0);
      await pause(5);
      assert.equal(told.count, 1);
    });

    it('tells so to who asks for the signal afterwards, too', async function () {
      const deleted = await (await create()).lock(3000, RENEW);
      const expired = await (await create()).lock(50);
      await Order.deleteOne({ _id: deleted._id });
      while (deleted.$lock.held || expired.$lock.held) await pause(5);
      assert.equal(expired.$lock.signal.aborted, true);
      assert.match(expired.$lock.signal.reason.message, /expired/);
      assert.equal(deleted.$lock.signal.aborted, true);
      assert.match(deleted.$lock.signal.reason.message, /document deleted/);
    });

    it('by a process that is frozen is not held in the first statement that runs again', async function () {
      const freeze = async (options) => {
        const doc = await create();
        const args = { id: doc._id, duration: 1000, options, gapMs: 900 };
        const scene = play('freeze', args);
        await scene.next();
        scene.signal('SIGSTOP');
        assert.ok((await contend(doc, 20)).at);
        await pause(1000);
        scene.signal('SIGCONT');
        const { first, later } = await scene.next();
        assert.equal(first.held, false);
        assert.deepEqual([later.held, later.aborted, later.code], [false, true, 'ERR_LOCK_LOST']);
      };
      await Promise.all([freeze(RENEW), freeze({})]);
    });

    it('with nobody listening ends no process and rejects nothing', async function () {
      const docs = await Order.create(Array.from({ length: 4 }, () => ({ name: 'order' })));
      const scene = play('loseUnheard', { ids: docs.map((doc) => doc._id), duration: 1500 });
      const said = await scene.next();
      const reasons = said.map(({ reason }) => /is lost: (.*)/.exec(reason)?.[1]);
      assert.deepEqual(reasons, ['taken over', 'document deleted', 'maxHold', 'expired']);
      assert.deepEqual(await scene.ended, { code: 0, signal: null });
      assert.equal(scene.stderr, '');
    });
  });

  describe('is released for good', function () {
    it('however release, extend and renewals meet: thousands of rounds under delays', async function () {
      await throughRelay(async (Model, relay) => {
        const docs = await Model.create(Array.from({ length: 40 }, () => ({ name: 'race' })));
        let rounds = 0;
        const jitter = setInterval(() => {
          relay.delay = Math.random() < 0.5 ? 0 : Math.random() * 12;
        }, 3);
        const lane = async (doc) => {
          while (rounds < 2000) {
            const locked = await doc.lock(100 + Math.random() * 60, RENEW);
            if (!locked) continue;
            // About where the first renewal is on its way.
            await pause(Math.random() * 90);
            const calls = [locked.release()];
            if (rounds % 3 === 0) calls.unshift(locked.extend(200).catch(() => {}));
            if (rounds % 5 === 0) calls.push(locked.release(), locked.extend(200));
            await Promise.all(calls);
            assert.equal(locked.$lock.held, false);
            rounds += 1;
          }
        };
        try {
          await Promise.all(docs.map(lane));
        } finally {
          clearInterval(jitter);
          relay.delay = 0;
        }
        // Longer than all delays, and shorter than what a renewal on its way would still give.
        await pause(30);
        assert.equal(await countLocked(docs), 0);
        await pause(500);
        assert.equal(await countLocked(docs), 0, 'nothing has been revived');
      });
    });

    it('and can be extended beyond its duration until then', async function () {
      const doc = await create();
      const locked = await doc.lock(1500, RENEW);
      assert.ok(await locked.extend(30_000));
      assert.ok(locked.$lock.remaining > 20_000);
      const calls = [locked.extend(100), locked.release(), locked.extend(60_000), locked.release()];
      const [first, released, second] = await Promise.all(calls);
      assert.ok(first === null || first.locked > released.locked);
      assert.ok(released);
      assert.equal(second, null);
      assert.ok(await isFree(doc));
    });
  });

  async function waitFor(get) {
    for (;;) {
      const value = get();
      if (value) return value;
      await pause(10);
    }
  }
});
