'use strict';
/*
 * The table of results: what lock and release come to, on the object that was locked, on the one that lock returned,
 * and on strangers. What the returned document is made of is documents.js.
 */

const assert = require('node:assert/strict');
const stage = require('./stage');
const { LONG_MS, commandsDuring, failureOf, lapse, load, stored, write } = stage;
const { LockError } = stage.lockRelease;

describe('lock and release', function () {
  let Order;

  before(function () {
    Order = stage.lockable({ name: String, total: Number });
  });

  describe('lock', function () {
    it('locks a stored document and gives a fresh one, locked from the server’s now on', async function () {
      const order = await Order.create({ name: 'free' });
      const before = await stage.serverNow();
      const locked = await order.lock(LONG_MS);
      const after = await stage.serverNow();
      assert.ok(locked instanceof Order);
      assert.notEqual(locked, order);
      assert.equal(String(locked._id), String(order._id));
      assert.equal(locked.name, 'free');
      assert.ok(locked.locked.getTime() >= before.getTime() + LONG_MS);
      assert.ok(locked.locked.getTime() <= after.getTime() + LONG_MS);
      assert.deepEqual((await stored(order)).locked, locked.locked);
    });

    it('leaves the object that it was called on unmodified', async function () {
      const order = await Order.create({ name: 'free' });
      const before = order.toObject();
      await order.lock(LONG_MS);
      assert.deepEqual(order.toObject(), before);
      assert.equal(order.isModified(), false);
      assert.deepEqual(order.locked, new Date(0));
    });

    it('gives what is stored by now, not what the object was loaded with', async function () {
      const order = await Order.create({ name: 'old', total: 1 });
      await write(order, { $set: { name: 'new' } });
      order.total = 5;
      const locked = await order.lock(LONG_MS);
      assert.equal(locked.name, 'new');
      assert.equal(locked.total, 1);
      assert.equal(order.total, 5);
    });

    it('refuses a locked document: a stranger, this very object and the one that lock gave', async function () {
      const order = await Order.create({ name: 'taken' });
      const stranger = await load(order);
      const locked = await order.lock(LONG_MS);
      const before = await stored(order);
      assert.equal(await stranger.lock(LONG_MS), null);
      assert.equal(await order.lock(LONG_MS), null);
      assert.equal(await locked.lock(LONG_MS), null);
      assert.deepEqual(await stored(order), before);
    });

    it('gives null for a document that was deleted meanwhile', async function () {
      const order = await Order.create({ name: 'gone' });
      await Order.deleteOne({ _id: order._id });
      assert.equal(await order.lock(LONG_MS), null);
      assert.equal(await Order.countDocuments({ _id: order._id }), 0);
    });

    it('refuses a document that was never stored, by an error, and sends nothing', async function () {
      const order = new Order({ name: 'new' });
      const commands = await commandsDuring(Order, async () => {
        const error = await failureOf(order.lock(LONG_MS));
        assert.ok(error instanceof LockError);
        assert.equal(error.code, 'ERR_LOCK_NOT_STORED');
        assert.match(error.message, /only stored documents can be locked/);
      });
      assert.deepEqual(commands, []);
      assert.equal(order.isNew, true);
    });

    it('locks documents that are stored without `locked`, or with null', async function () {
      for (const fields of [{}, { locked: null }]) {
        const { insertedId } = await Order.collection.insertOne({ name: 'bare', ...fields });
        const order = await Order.findById(insertedId);
        const locked = await order.lock(LONG_MS);
        assert.equal(locked.name, 'bare');
        assert.ok(locked.locked > (await stage.serverNow()));
        assert.equal(await (await load(order)).lock(LONG_MS), null);
        assert.ok(await order.release());
      }
    });

    it('locks again once the duration has passed, by the server’s clock', async function () {
      const order = await Order.create({ name: 'short' });
      const first = await order.lock(1);
      let again;
      do again = await (await load(order)).lock(LONG_MS);
      while (!again);
      assert.ok(again.$lock.since >= first.locked);
      assert.equal(again.$lock.token, first.$lock.token + 1);
    });

    it('locks for no time at all with 0, and rounds fractions up', async function () {
      const order = await Order.create({ name: 'moment' });
      const length = ({ $lock }) => $lock.expires - $lock.since;
      assert.equal(length(await order.lock(0)), 0);
      // The next lock may come in the very millisecond of this one.
      assert.ok(await (await load(order)).lock(0));
      await lapse(order);
      assert.equal(length(await order.lock(Number.MIN_VALUE)), 1);
      await lapse(order);
      assert.equal(length(await order.lock(LONG_MS + 0.25)), LONG_MS + 1);
    });

    it('lets exactly one of 100 concurrent calls have a document', async function () {
      const order = await Order.create({ name: 'wanted' });
      const others = await Promise.all(Array.from({ length: 100 }, () => load(order)));
      const results = await Promise.all(others.map((other) => other.lock(LONG_MS)));
      const winners = others.filter((_, i) => results[i] !== null);
      assert.equal(winners.length, 1);
      assert.equal((await stored(order)).lockedBy.token, 1);
      assert.equal(winners[0].$lock.held, true);
    });

    it('lets exactly one of 100 concurrent calls on one object have it', async function () {
      const order = await Order.create({ name: 'wanted' });
      const results = await Promise.all(Array.from({ length: 100 }, () => order.lock(LONG_MS)));
      assert.equal(results.filter((result) => result !== null).length, 1);
      assert.equal(order.$lock.held, true);
      assert.ok(await order.release());
    });

    it('locks 100 documents at once, each for its own caller', async function () {
      const names = Array.from({ length: 100 }, (_, i) => `order ${i}`);
      const orders = await Order.create(names.map((name) => ({ name })));
      const results = await Promise.all(orders.map((order) => order.lock(LONG_MS)));
      assert.deepEqual(
        results.map((result) => result.name),
        names,
      );
      const released = await Promise.all(orders.map((order) => order.release()));
      assert.deepEqual(
        released.map((result) => result.name),
        names,
      );
    });
  });

  describe('release', function () {
    for (const [name, choose] of [
      ['the object that was locked', (order) => order],
      ['the object that lock gave', (order, locked) => locked],
    ]) {
      it(`frees the lock through ${name}, and gives the fresh document`, async function () {
        const order = await Order.create({ name: 'mine' });
        const locked = await order.lock(LONG_MS);
        await write(order, { $set: { name: 'handled' } });
        const before = await stage.serverNow();
        const released = await choose(order, locked).release();
        const after = await stage.serverNow();
        assert.ok(released instanceof Order);
        assert.equal(released.name, 'handled');
        assert.ok(released.locked >= before && released.locked <= after);
        assert.deepEqual((await stored(order)).locked, released.locked);
        assert.equal(order.$lock.held, false);
        assert.equal(locked.$lock.held, false);
        assert.ok(await (await load(order)).lock(LONG_MS), 'it can be locked again at once');
      });
    }

    it('gives null once the lock is lost, and leaves the other’s lock untouched', async function () {
      const order = await Order.create({ name: 'slow' });
      const locked = await order.lock(LONG_MS);
      await lapse(order);
      const other = await load(order);
      assert.ok(await other.lock(LONG_MS));
      const before = await stored(order);
      assert.equal(await order.release(), null);
      assert.equal(await locked.release(), null);
      assert.equal(await order.release(), null);
      assert.deepEqual(await stored(order), before);
      assert.ok(await other.release());
    });

    it('gives null when somebody who knows no holders has locked since', async function () {
      const order = await Order.create({ name: 'mixed' });
      await order.lock(LONG_MS);
      // As a process that runs the original writes it; not the very millisecond that the lock ends in.
      await write(order, { $set: { locked: new Date(Date.now() + 2 * LONG_MS) } });
      const before = await stored(order);
      assert.equal(await order.release(), null);
      assert.deepEqual(await stored(order), before);
    });

    it('gives the document when the lock has lapsed and nobody has taken it since', async function () {
      const order = await Order.create({ name: 'late' });
      await order.lock(LONG_MS);
      await lapse(order);
      assert.equal((await order.release()).name, 'late');
    });

    it('gives null after a refused lock, and sends nothing', async function () {
      const order = await Order.create({ name: 'taken' });
      const refused = await load(order);
      await order.lock(LONG_MS);
      assert.equal(await refused.lock(LONG_MS), null);
      const commands = await commandsDuring(Order, async () => {
        assert.equal(await refused.release(), null);
      });
      assert.deepEqual(commands, []);
      assert.equal(order.$lock.held, true);
      assert.ok(await order.release());
    });

    it('gives null after a lock that failed, and sends nothing', async function () {
      const order = await Order.create({ name: 'taken' });
      const failed = await load(order);
      await order.lock(LONG_MS);
      await failureOf(failed.lock('10'));
      const commands = await commandsDuring(Order, async () => {
        assert.equal(await failed.release(), null);
      });
      assert.deepEqual(commands, []);
      assert.ok(await order.release());
    });

    it('frees whoever’s lock on an object that never called lock, as the original did', async function () {
      const order = await Order.create({ name: 'taken' });
      const locked = await order.lock(LONG_MS);
      const before = await stage.serverNow();
      const released = await (await load(order)).release();
      assert.ok(released instanceof Order);
      assert.ok(released.locked >= before && released.locked <= (await stage.serverNow()));
      assert.deepEqual((await stored(order)).lockedBy.until, released.locked);
      assert.equal(await locked.extend(LONG_MS), null, 'the former holder holds it no more');
      assert.ok(await (await load(order)).lock(LONG_MS));
    });

    it('frees a document that is not locked, or has no `locked`, on an object that never called lock', async function () {
      const order = await Order.create({ name: 'free' });
      assert.ok((await order.release()).locked > new Date(0));
      const { insertedId } = await Order.collection.insertOne({ name: 'bare' });
      const bare = await Order.findById(insertedId);
      assert.ok((await bare.release()).locked instanceof Date);
      assert.equal('lockedBy' in (await stored(bare)), false);
    });

    it('gives null for a document that was deleted, or never stored', async function () {
      const [held, loaded] = await Order.create([{ name: 'held' }, { name: 'loaded' }]);
      await held.lock(LONG_MS);
      await Order.deleteMany({ _id: { $in: [held._id, loaded._id] } });
      assert.equal(await held.release(), null);
      assert.equal(await loaded.release(), null);
      assert.equal(await new Order({ name: 'new' }).release(), null);
      assert.equal(await Order.countDocuments({ _id: { $in: [held._id, loaded._id] } }), 0);
    });

    it('never frees another’s lock the second time', async function () {
      const order = await Order.create({ name: 'twice' });
      const locked = await order.lock(LONG_MS);
      await order.release();
      const other = await load(order);
      await other.lock(LONG_MS);
      const before = await stored(order);
      assert.equal(await order.release(), null);
      assert.equal(await locked.release(), null);
      assert.deepEqual(await stored(order), before);
    });

    it('frees the new lock of an object that has locked again', async function () {
      const order = await Order.create({ name: 'again' });
      const first = await order.lock(LONG_MS);
      await order.release();
      const second = await order.lock(LONG_MS);
      assert.notEqual(order.$lock, first.$lock);
      assert.equal(order.$lock, second.$lock);
      assert.equal(await first.release(), null, 'the first lock’s object has the first lock still');
      assert.equal(second.$lock.held, true);
      assert.ok(await order.release());
    });
  });

  it('takes two objects of one document for strangers', async function () {
    const order = await Order.create({ name: 'shared' });
    const other = await load(order);
    await order.lock(LONG_MS);
    assert.equal(other.$lock, undefined);
    assert.equal(await other.extend(LONG_MS), null);
    assert.equal(order.$lock.held, true);
  });

  describe('extend', function () {
    it('keeps a held lock until the server’s now and the duration, through both objects', async function () {
      const order = await Order.create({ name: 'long' });
      const locked = await order.lock(LONG_MS);
      for (const [holder, factor] of [
        [order, 2],
        [locked, 3],
      ]) {
        const before = await stage.serverNow();
        const extended = await holder.extend(factor * LONG_MS);
        const after = await stage.serverNow();
        assert.ok(extended instanceof Order);
        assert.ok(extended.locked.getTime() >= before.getTime() + factor * LONG_MS);
        assert.ok(extended.locked.getTime() <= after.getTime() + factor * LONG_MS);
        assert.deepEqual(holder.$lock.expires, extended.locked);
        assert.ok(holder.$lock.remaining > (factor - 0.5) * LONG_MS);
      }
      assert.equal((await stored(order)).lockedBy.token, 1);
      assert.ok(await order.release());
    });

    it('never shortens a lock', async function () {
      const order = await Order.create({ name: 'long' });
      const locked = await order.lock(LONG_MS);
      const extended = await order.extend(1);
      assert.deepEqual(extended.locked, locked.locked);
      assert.ok(order.$lock.remaining > LONG_MS / 2);
    });

    it('gives null when the lock is not held any more, and never revives it', async function () {
      const [lapsed, released, taken, never, refused] = await Order.create(
        ['lapsed', 'released', 'taken', 'never', 'refused'].map((name) => ({ name })),
      );
      await lapsed.lock(LONG_MS);
      await lapse(lapsed);
      await released.lock(LONG_MS);
      await released.release();
      await taken.lock(LONG_MS);
      await lapse(taken);
      await (await load(taken)).lock(LONG_MS);
      await (await load(refused)).lock(LONG_MS);
      await refused.lock(LONG_MS);
      for (const order of [lapsed, released, taken, never, refused]) {
        const before = await stored(order);
        assert.equal(await order.extend(LONG_MS), null, order.name);
        assert.deepEqual(await stored(order), before, order.name);
      }
    });
  });

  it('gives the clock’s say to the server: what a client’s clock shows decides nothing', async function () {
    const { now } = Date;
    // An hour ahead, for everything of this process that reads the time in JavaScript.
    Date.now = () => now() + 3600000;
    try {
      const order = await Order.create({ name: 'ahead' });
      const locked = await order.lock(LONG_MS);
      const left = locked.locked - (await stage.serverNow());
      assert.ok(left > 0 && left <= LONG_MS, `${left} ms left`);
      assert.equal(await order.lock(LONG_MS), null);
      assert.ok(await order.release());
    } finally {
      Date.now = now;
    }
  });
});
