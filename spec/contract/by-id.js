'use strict';
/*
 * The cheap form of a first attempt: the server gets nothing but an `_id`, and what a refusal brings back is not
 * mistaken for a success. It must not cost anything where it is refused.
 */

const assert = require('node:assert/strict');
const stage = require('./stage');

const { LONG_MS, lapse, load, profileDuring, stored, write } = stage;
const LARGE = 'x'.repeat(20_000);

describe('a first attempt', function () {
  it('locks and releases by _id alone, for which no query is planned', async function () {
    const Order = stage.lockable({ name: String }, { schema: { timestamps: true } });
    const order = await Order.create({ name: 'one' });
    const entries = await profileDuring(Order, async () => {
      assert.ok(await order.lock(LONG_MS));
      assert.ok(await order.release());
      await order.withLock(LONG_MS, () => {});
    });
    assert.equal(entries.length, 4);
    for (const { command, planSummary, nModified } of entries) {
      assert.deepEqual(command.query, { _id: order._id });
      assert.match(planSummary, /IDHACK|EXPRESS/);
      assert.equal(nModified, 1);
    }
  });

  it('that is refused writes nothing, and gives nothing', async function () {
    const Order = stage.lockable({ name: String }, { schema: { timestamps: true } });
    const order = await Order.create({ name: 'one' });
    const late = await Order.findById(order._id);
    assert.ok(await late.lock(LONG_MS));
    await lapse(order);
    const holder = await order.lock(LONG_MS);
    assert.ok(holder);
    const before = await stored(order);
    const entries = await profileDuring(Order, async () => {
      assert.equal(await (await load(order)).lock(LONG_MS), null);
      assert.equal(await late.release(), null, 'it is another’s by now');
    });
    const writes = entries.filter(({ command }) => command.findAndModify);
    assert.equal(writes.length, 2);
    for (const { nModified, keysInserted } of writes) {
      assert.ok(!nModified, `${nModified}`);
      assert.ok(!keysInserted);
    }
    assert.deepEqual(await stored(order), before);
    assert.ok(await holder.release());
  });

  it('to release is refused where somebody else has moved the date', async function () {
    const order = await stage.lockable().create({ name: 'one' });
    assert.ok(await order.lock(LONG_MS));
    await write(order, { $set: { locked: new Date(Date.now() + 2 * LONG_MS) } });
    assert.equal(await order.release(), null, 'not as the lease has left it');
    assert.equal(order.$lock.held, false);
  });

  it('that strays, and comes in a second time, does nothing once its lock was released', async function () {
    const Order = stage.lockable();
    const order = await Order.create({ name: 'one' });
    const [{ command }] = await profileDuring(Order, () => order.lock(LONG_MS));
    const { findAndModify, query, update } = command;
    await order.release();
    const before = await stored(order);
    const again = { findAndModify, query, update, new: true };
    const { value } = await stage.connection.db.command(again);
    assert.deepEqual(value, before);
    assert.deepEqual(await stored(order), before);
  });

  it('of a large document is refused in vain once, and goes by a filter from then on', async function () {
    const Order = stage.lockable({ text: String });
    const order = await Order.create({ text: LARGE });
    const other = await Order.create({ text: LARGE });
    const strangers = [await load(order), await load(order), await load(other)];
    assert.ok(await order.lock(LONG_MS));
    const entries = await profileDuring(Order, async () => {
      assert.equal(await strangers[0].lock(LONG_MS), null);
      assert.equal(await strangers[1].lock(LONG_MS), null);
      assert.equal((await strangers[2].lock(LONG_MS)).text, LARGE);
      assert.equal((await strangers[2].release()).text, LARGE);
    });
    const lengths = entries.map(({ responseLength }) => responseLength > LARGE.length);
    assert.deepEqual(lengths, [true, false, true, true]);
    const filtered = entries.map(({ command }) => Object.keys(command.query).length > 1);
    assert.deepEqual(filtered, [false, true, true, true]);
  });

  it('brings nothing back of a document that nobody wants back', async function () {
    const Order = stage.lockable({ text: String });
    const order = await Order.create({ text: LARGE });
    const entries = await profileDuring(Order, () => order.withLock(LONG_MS, () => {}));
    const [locked, released] = entries.map(({ responseLength }) => responseLength);
    assert.ok(locked > LARGE.length);
    assert.ok(released < 1000, `${released} bytes`);
    assert.deepEqual(entries[1].command.query, { _id: order._id });
  });

  it('gives nothing of the holder’s record', async function () {
    const order = await stage.lockable().create({ name: 'one' });
    for (const given of [await order.lock(LONG_MS), await order.release()]) {
      assert.equal(given.get('lockedBy'), undefined);
      assert.equal('lockedBy' in given.toObject(), false);
    }
  });

  it('goes by a filter where the path of the lock is a nested one', async function () {
    const Order = stage.lockable({ name: String }, { plugin: { path: 'state.busy' } });
    const order = await Order.create({ name: 'one' });
    const entries = await profileDuring(Order, async () => {
      assert.ok(await order.lock(LONG_MS));
      assert.equal(await (await load(order)).lock(LONG_MS), null);
      assert.ok(await order.release());
    });
    for (const { command } of entries.filter((entry) => entry.command.findAndModify)) {
      assert.ok(Object.keys(command.query).length > 1);
    }
  });
});
