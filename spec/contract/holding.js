'use strict';
/*
 * What a holder has in hand: `$lock`, and the fence on save(). What becomes of both under faults, stopped processes and
 * skewed clocks is specified elsewhere.
 */

const assert = require('node:assert/strict');
const { hostname } = require('node:os');
const { inspect } = require('node:util');
const stage = require('./stage');
const { LONG_MS, failureOf, lapse, load, mongoose, stored, write } = stage;
const { LockError } = stage.lockRelease;

/** Lets the lock lapse and another object take it. */
async function takeOver(order) {
  await lapse(order);
  const other = await load(order);
  assert.ok(await other.lock(LONG_MS));
  return other;
}

describe('$lock', function () {
  let Order;

  before(function () {
    Order = stage.lockable({ name: String }, { plugin: { label: 'worker 7' } });
  });

  it('is the same on the object that was locked and on the one that lock gave', async function () {
    const order = await Order.create({ name: 'mine' });
    assert.equal(order.$lock, undefined);
    const locked = await order.lock(LONG_MS);
    assert.ok(order.$lock);
    assert.equal(order.$lock, locked.$lock);
    assert.equal((await load(order)).$lock, undefined);
  });

  it('shows the acquisition as it is stored', async function () {
    const order = await Order.create({ name: 'mine' });
    const before = await stage.serverNow();
    const locked = await order.lock(LONG_MS);
    const { $lock } = order;
    const { lockedBy } = await stored(order);
    assert.deepEqual(Object.keys(lockedBy).toSorted(), [
      'label',
      'lease',
      'since',
      'token',
      'until',
    ]);
    assert.equal(lockedBy.lease._bsontype.toLowerCase(), 'objectid');
    assert.deepEqual($lock.expires, locked.locked);
    assert.deepEqual($lock.expires, lockedBy.until);
    assert.deepEqual($lock.since, lockedBy.since);
    assert.ok($lock.since >= before);
    assert.equal($lock.expires - $lock.since, LONG_MS);
    assert.equal($lock.label, 'worker 7');
    assert.equal(lockedBy.label, 'worker 7');
    assert.equal($lock.token, 1);
    assert.equal($lock.held, true);
    assert.ok($lock.remaining > 0 && $lock.remaining <= LONG_MS, `${$lock.remaining}`);
    $lock.assertHeld();
  });

  it('is labelled with host and process by default', async function () {
    const order = await stage.lockable().create({ name: 'mine' });
    await order.lock(LONG_MS);
    assert.equal(order.$lock.label, `${hostname()}:${process.pid}`);
  });

  it('has a token that grows with every acquisition, over releases and takeovers', async function () {
    const order = await Order.create({ name: 'mine' });
    const tokens = [];
    for (let i = 0; i < 3; i++) {
      await order.lock(LONG_MS);
      tokens.push(order.$lock.token);
      await order.release();
      await (await load(order)).lock(LONG_MS);
      await lapse(order);
    }
    assert.deepEqual(tokens, [1, 3, 5]);
  });

  it('keeps the last holder’s record after release', async function () {
    const order = await Order.create({ name: 'mine' });
    await order.lock(LONG_MS);
    const before = await stored(order);
    const released = await order.release();
    const { lockedBy } = await stored(order);
    assert.deepEqual(lockedBy, { ...before.lockedBy, until: released.locked });
  });

  it('is not held any more once released, lost or lapsed', async function () {
    const [released, lost, lapsed] = await Order.create(
      ['released', 'lost', 'lapsed'].map((name) => ({ name })),
    );
    await released.lock(LONG_MS);
    await released.release();
    await lost.lock(LONG_MS);
    await takeOver(lost);
    await lost.release();
    const { locked } = await lapsed.lock(20);
    while ((await stage.serverNow()) < locked);
    for (const { name, $lock } of [released, lost, lapsed]) {
      assert.equal($lock.held, false, name);
      assert.equal($lock.remaining, 0, name);
      assert.throws(
        () => $lock.assertHeld(),
        (error) => error instanceof LockError && error.code === 'ERR_LOCK_LOST',
        name,
      );
    }
  });

  it('lapses while the event loop is blocked', async function () {
    const order = await Order.create({ name: 'busy' });
    await order.lock(1000);
    const seen = [];
    const end = Date.now() + 1500;
    while (Date.now() < end) seen.push(order.$lock.held);
    assert.equal(seen[0], true);
    assert.equal(seen.at(-1), false);
    assert.equal(seen.lastIndexOf(true) + 1, seen.indexOf(false), 'it turns once');
  });

  it('stays as it was when a further lock is refused', async function () {
    const order = await Order.create({ name: 'mine' });
    await order.lock(LONG_MS);
    const { $lock } = order;
    assert.equal(await order.lock(LONG_MS), null);
    await failureOf(order.lock(-1));
    assert.equal(order.$lock, $lock);
    assert.equal($lock.held, true);
    assert.ok(await order.release());
  });

  it('has a filter for the holder’s own updates', async function () {
    const order = await Order.create({ name: 'old' });
    await order.lock(LONG_MS);
    const { filter } = order.$lock;
    const update = (name) => Order.updateOne(filter, { $set: { name } });
    assert.equal((await update('new')).matchedCount, 1);
    await takeOver(order);
    assert.equal((await update('too late')).matchedCount, 0);
    assert.equal((await stored(order)).name, 'new');
  });

  it('does not show up in what the document is turned into', async function () {
    const order = await Order.create({ name: 'mine' });
    const locked = await order.lock(LONG_MS);
    for (const doc of [order, locked]) {
      const fields = ['__v', '_id', 'locked', 'name'];
      assert.deepEqual(Object.keys(doc.toObject()).toSorted(), fields);
      assert.deepEqual(Object.keys(JSON.parse(JSON.stringify(doc))).toSorted(), fields);
      assert.equal(inspect(doc).includes('$lock'), false);
      assert.equal(Object.keys(doc).includes('$lock'), false);
    }
  });
});

describe('save() of a holder', function () {
  let Order;

  const definition = { name: String, tags: [String] };

  before(function () {
    Order = stage.lockable(definition);
  });

  it('writes while nobody else has taken the lock, on both objects, also when it has lapsed', async function () {
    const order = await Order.create({ name: 'one' });
    const locked = await order.lock(LONG_MS);
    locked.name = 'two';
    await locked.save();
    assert.equal((await stored(order)).name, 'two');
    await lapse(order);
    order.name = 'three';
    await order.save();
    assert.equal((await stored(order)).name, 'three');
  });

  it('never writes `locked` or `lockedBy`', async function () {
    const order = await Order.create({ name: 'one' });
    const locked = await order.lock(LONG_MS);
    const before = await stored(order);
    order.name = 'two';
    await order.save();
    locked.tags.push('three');
    await locked.save();
    const after = await stored(order);
    assert.deepEqual(after.locked, before.locked);
    assert.deepEqual(after.lockedBy, before.lockedBy);
  });

  for (const [title, options] of [
    ['', {}],
    [', with optimisticConcurrency', { optimisticConcurrency: true }],
    [', without a version key', { versionKey: false }],
  ]) {
    it(`rejects once another has taken the lock, and writes nothing${title}`, async function () {
      const order = await stage.lockable(definition, { schema: options }).create({ tags: ['a'] });
      const locked = await order.lock(LONG_MS);
      await takeOver(order);
      const before = await stored(order);
      order.name = 'overwritten';
      locked.tags.push('b');
      for (const doc of [order, locked]) {
        const error = await failureOf(doc.save());
        assert.ok(error instanceof LockError, inspect(error));
        assert.equal(error.code, 'ERR_LOCK_LOST');
        assert.match(error.stack, /holding\.js/);
      }
      assert.deepEqual(await stored(order), before);
    });
  }

  it('rejects too when somebody who knows no holders has locked since', async function () {
    const order = await Order.create({ name: 'one' });
    await order.lock(LONG_MS);
    await write(order, { $set: { locked: new Date(Date.now() + 2 * LONG_MS) } });
    order.name = 'two';
    assert.equal((await failureOf(order.save())).code, 'ERR_LOCK_LOST');
  });

  it('keeps errors that are about something else what they are, also of a holder that has lost the lock', async function () {
    const order = await stage
      .lockable({ name: { type: String, required: true } })
      .create({ name: 'one' });
    await order.lock(LONG_MS);
    await takeOver(order);
    order.name = undefined;
    assert.ok((await failureOf(order.save())) instanceof mongoose.Error.ValidationError);
  });

  it('keeps a true version conflict and a deleted document what they are to Mongoose', async function () {
    const Versioned = stage.lockable(definition, { schema: { optimisticConcurrency: true } });
    const order = await Versioned.create({ name: 'one' });
    await order.lock(LONG_MS);
    await write(order, { $inc: { __v: 1 } });
    order.name = 'two';
    assert.equal((await failureOf(order.save())).name, 'VersionError');
    const gone = await Order.create({ name: 'one' });
    await gone.lock(LONG_MS);
    await Order.deleteOne({ _id: gone._id });
    gone.name = 'two';
    assert.ok((await failureOf(gone.save())) instanceof mongoose.Error.DocumentNotFoundError);
  });

  it('stays fenced after a release that gave null, and is free after one that gave the document', async function () {
    const order = await Order.create({ name: 'one' });
    await order.lock(LONG_MS);
    const other = await takeOver(order);
    assert.equal(await order.release(), null);
    order.name = 'two';
    assert.equal((await failureOf(order.save())).code, 'ERR_LOCK_LOST');
    assert.ok(await other.release());
    await (await load(order)).lock(LONG_MS);
    other.name = 'three';
    await other.save();
    assert.equal((await stored(order)).name, 'three');
  });

  it('keeps the user’s own $where, and deleteOne and updateOne as they are', async function () {
    const order = await Order.create({ name: 'one' });
    await order.lock(LONG_MS);
    order.$where = { name: 'another' };
    order.name = 'two';
    assert.ok((await failureOf(order.save())) instanceof mongoose.Error.DocumentNotFoundError);
    order.$where = undefined;
    await takeOver(order);
    await order.updateOne({ name: 'three' });
    assert.equal((await stored(order)).name, 'three');
    await order.deleteOne();
    assert.equal(await stored(order), null);
  });

  it('passes with `fence: false`, whoever has the lock', async function () {
    const order = await stage.lockable(definition, { plugin: { fence: false } }).create({});
    await order.lock(LONG_MS);
    await takeOver(order);
    order.name = 'two';
    await order.save();
    assert.equal((await stored(order)).name, 'two');
  });
});
