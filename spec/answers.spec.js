'use strict';
/*
 * Answers that never came: commands whose outcome the client cannot know, made so by a relay that loses just this
 * request or just that answer, by fail points of the server, and by a server that is gone for good. Each outcome must
 * be the one that the document tells.
 */

const assert = require('node:assert/strict');
const lockRelease = require('..');
const { startReplicaSet } = require('./support/deployment');
const mongoose = require('./support/mongoose');
const { WireRelay } = require('./faults/wire-relay');

const LONG = 600_000;
const isWrite = (command) => command.findAndModify !== undefined;

describe('a lost answer', function () {
  let server;
  let relay;
  /** Through the relay, and past it. */
  let relayed;
  let direct;
  let Order;
  let DirectOrder;

  before(async function () {
    server = await startReplicaSet();
    relay = await WireRelay.start(server.servers[0]);
    relayed = await mongoose
      .createConnection(relay.uriFor('answers'), {
        serverSelectionTimeoutMS: 4000,
        // A server that only pretends to shut down tells its clients so, and is looked at again after this time.
        heartbeatFrequencyMS: 500,
      })
      .asPromise();
    direct = await mongoose.createConnection(server.uriFor('answers')).asPromise();
    [Order, DirectOrder] = [relayed, direct].map((connection) =>
      connection.model(
        'Order',
        new mongoose.Schema({ name: String, n: Number }).plugin(lockRelease),
      ),
    );
    await DirectOrder.init();
  });

  afterEach(function () {
    relay.judge = () => undefined;
    relay.blackhole = false;
  });

  after(async function () {
    await relayed?.close();
    await direct?.close();
    await relay?.stop();
    await server?.stop();
  });

  const create = () => Order.create({ name: 'order', n: 0 });
  const stored = (doc) => DirectOrder.collection.findOne({ _id: doc._id });
  const stranger = (doc) => DirectOrder.findById(doc._id);

  async function failPoint(data, mode = { times: 1 }) {
    await server.servers[0].command({
      configureFailPoint: 'failCommand',
      mode,
      data: { failCommands: ['findAndModify'], ...data },
    });
  }

  describe('of a lock', function () {
    it('is made up for by a retry that recognises its own lease', async function () {
      const doc = await create();
      relay.hitNext('loseAnswer', isWrite);
      const locked = await doc.lock(LONG);
      assert.equal(relay.hits.loseAnswer, 1);
      assert.equal(locked.$lock.token, 1);
      const { lockedBy } = await stored(doc);
      assert.equal(lockedBy.token, 1);
      assert.ok(lockedBy.until - lockedBy.since >= LONG, 'the retry does not shorten it');
      assert.equal(await (await stranger(doc)).lock(LONG), null);
      assert.ok(await doc.release());
    });

    it('is made up for also when several answers in a row are lost', async function () {
      const doc = await create();
      relay.hitNext('loseAnswer', isWrite, 4);
      assert.equal((await doc.lock(LONG)).$lock.token, 1);
    });

    it('does not hide that the lock ran out and that another has it', async function () {
      const doc = await create();
      const other = await stranger(doc);
      relay.hitNext(
        {
          async loseAnswerAfter() {
            while (!(await other.lock(LONG)));
          },
        },
        isWrite,
      );
      assert.equal(await doc.lock(50), null);
      const { lockedBy } = await stored(doc);
      assert.equal(lockedBy.token, 2);
      assert.equal(other.$lock.token, 2);
    });

    it('leads to a new acquisition when the lock ran out and is free', async function () {
      const doc = await create();
      relay.hitNext({ loseAnswerAfter: () => pause(120) }, isWrite);
      const locked = await doc.lock(100);
      assert.equal(locked.$lock.token, 2);
      assert.equal((await stored(doc)).lockedBy.token, 2);
    });

    it('of the request alone changes nothing', async function () {
      const doc = await create();
      relay.hitNext('loseRequest', isWrite, 2);
      assert.equal((await doc.lock(LONG)).$lock.token, 1);
    });

    it('and of a document that another holds is a refusal', async function () {
      const doc = await create();
      await (await stranger(doc)).lock(LONG);
      relay.hitNext('loseAnswer', isWrite);
      assert.equal(await doc.lock(LONG), null);
    });
  });

  describe('of a release', function () {
    it('still gives the document', async function () {
      const doc = await create();
      await doc.lock(LONG);
      relay.hitNext('loseAnswer', isWrite);
      const released = await doc.release();
      assert.ok(released);
      assert.deepEqual(released.locked, (await stored(doc)).locked);
    });

    it('still gives the document when another has taken the lock meanwhile', async function () {
      const doc = await create();
      await doc.lock(LONG);
      const other = await stranger(doc);
      relay.hitNext(
        {
          async loseAnswerAfter() {
            assert.ok(await other.lock(LONG));
          },
        },
        isWrite,
      );
      const released = await doc.release();
      assert.ok(released, 'it was we who released it');
      assert.equal(other.$lock.token, 2);
      assert.equal((await stored(doc)).lockedBy.token, 2);
      assert.ok(await other.release(), 'the other was not disturbed');
    });

    it('gives null when the lock had run out before it was known', async function () {
      const doc = await create();
      await doc.lock(150);
      const other = await stranger(doc);
      relay.hitNext(
        {
          async loseAnswerAfter() {
            assert.ok(await other.lock(LONG));
            await pause(200);
          },
        },
        isWrite,
      );
      // Released in time or lost by time: nobody can tell, so it is not promised.
      assert.equal(await doc.release(), null);
      assert.equal((await stored(doc)).lockedBy.token, 2);
    });

    it('by a stranger never frees who came after', async function () {
      const holder = await create();
      await holder.lock(LONG);
      const other = await stranger(holder);
      const third = await Order.findById(holder._id);
      relay.hitNext(
        {
          async loseAnswerAfter() {
            assert.ok(await other.lock(LONG));
          },
        },
        isWrite,
      );
      assert.ok(await third.release());
      assert.equal((await stored(holder)).lockedBy.token, 2);
      assert.ok(await other.release());
    });
  });

  describe('of an extension', function () {
    it('is made up for by a retry', async function () {
      const doc = await create();
      await doc.lock(LONG);
      relay.hitNext('loseAnswer', isWrite);
      const extended = await doc.extend(2 * LONG);
      assert.ok(extended);
      assert.deepEqual(extended.locked, (await stored(doc)).locked);
      assert.ok(doc.$lock.remaining > LONG);
      assert.ok(doc.$lock.remaining <= doc.$lock.expires - Date.now());
    });
  });

  describe('that comes from a server in trouble', function () {
    for (const [name, data] of [
      ['an error before the write', { errorCode: 11600 }],
      ['a connection closed before it', { closeConnection: true }],
      ['a primary that is none any more', { errorCode: 10107 }],
      [
        'a write concern that failed on the way to a new primary',
        {
          writeConcernError: { code: 91, codeName: 'ShutdownInProgress', errmsg: 'shutting down' },
        },
      ],
    ]) {
      it(`is repaired after ${name}`, async function () {
        const doc = await create();
        await failPoint(data);
        const locked = await doc.lock(LONG);
        assert.equal(locked.$lock.token, 1);
        await failPoint(data);
        assert.ok(await doc.release());
        assert.equal((await stored(doc)).lockedBy.token, 1);
      });
    }

    it('is an error of the class of the driver when the write concern failed', async function () {
      const doc = await create();
      await failPoint({
        writeConcernError: { code: 64, codeName: 'WriteConcernFailed', errmsg: 'waited too long' },
      });
      await assert.rejects(doc.lock(LONG), mongoose.mongo.MongoWriteConcernError);
      // It was applied, and nobody was told that it holds: it is released behind the scenes.
      await untilFree(doc);
      assert.equal(doc.$lock, undefined);
    });
  });

  describe('of a lock that fails for good', function () {
    it('leaves no lock behind once the server can be reached again', async function () {
      const doc = await create();
      relay.hitNext('loseAnswer', isWrite, Infinity);
      await assert.rejects(doc.lock(LONG), mongoose.mongo.MongoNetworkError);
      assert.ok((await stored(doc)).locked > new Date(), 'it was applied');
      assert.equal(doc.$lock, undefined);
      relay.judge = () => undefined;
      await untilFree(doc);
      assert.equal((await stored(doc)).lockedBy.token, 1);
      assert.equal((await (await stranger(doc)).lock(LONG)).$lock.token, 2);
    });

    it('does not touch the lock that another has taken since', async function () {
      const doc = await create();
      relay.hitNext('loseAnswer', isWrite, Infinity);
      await assert.rejects(doc.lock(300));
      const other = await stranger(doc);
      while (!(await other.lock(LONG))) await pause(10);
      relay.judge = () => undefined;
      await pause(1500);
      const { lockedBy } = await stored(doc);
      assert.equal(lockedBy.token, other.$lock.token);
      assert.ok(other.$lock.held);
      assert.ok(await other.release());
    });

    it('answers in time when nothing gets through any more', async function () {
      const doc = await create();
      relay.blackhole = true;
      await assert.rejects(doc.lock(LONG), (error) => error instanceof mongoose.mongo.MongoError);
      // What was held back arrives after all, and is released like every lock that nobody waits for.
      relay.blackhole = false;
      relay.reset();
      // It may arrive later than the document is looked at, so the lock is waited for: less long than a lost one would last.
      assert.ok(await doc.lock(LONG, { wait: 30_000 }));
    });
  });

  /** Waits until the document is not locked any more, which must be long before its lock runs out. */
  async function untilFree(doc) {
    const end = Date.now() + 30_000;
    while ((await stored(doc)).locked > new Date()) {
      assert.ok(Date.now() < end, 'the lock was left behind');
      await pause(20);
    }
  }
});

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
