'use strict';
/*
 * Who owns a lock: what is stored of the holder, the token, what release and extend do for holders, former holders and
 * strangers, and what `$lock` says. Faults of network and server are the subject of answers.spec.js, writes after a loss
 * of fence.spec.js.
 */

const assert = require('node:assert/strict');
const { hostname } = require('node:os');
const lockRelease = require('..');
const { deployment } = require('./support/deployment');
const mongoose = require('./support/mongoose');
const { Holder } = require('./ownership/holder');

const { LockError } = lockRelease;
/** Long enough never to run out while a spec runs, and short enough to be waited for. */
const LONG = 600_000;
const SHORT = 60;

describe('ownership', function () {
  let server;
  let connection;
  let Order;

  before(async function () {
    server = await deployment();
    connection = await mongoose.createConnection(server.uriFor('ownership')).asPromise();
    const schema = new mongoose.Schema({ name: String, n: Number });
    Order = connection.model('Order', schema.plugin(lockRelease));
    await Order.init();
  });

  after(async function () {
    await Holder.killAll();
    await connection?.dropDatabase();
    await connection?.close();
    await server?.stop();
  });

  const create = () => Order.create({ name: 'order', n: 0 });
  const again = (doc) => Order.findById(doc._id);
  const stored = (doc) => Order.collection.findOne({ _id: doc._id });
  const serverTime = async () => (await connection.db.command({ hello: 1 })).localTime;

  /** Waits until the server itself says that the lock has run out. */
  async function lapse(doc) {
    const { locked } = await stored(doc);
    while ((await serverTime()) <= locked) await pause(5);
  }

  /** A document whose lock ran out and was taken by another object. */
  async function overtaken() {
    const former = await create();
    await former.lock(SHORT);
    await lapse(former);
    const holder = await again(former);
    assert.ok(await holder.lock(LONG));
    return { former, holder };
  }

  describe('the record of the holder', function () {
    it('holds lease, token, label, since and until', async function () {
      const doc = await create();
      const before = await serverTime();
      const locked = await doc.lock(LONG);
      const after = await serverTime();
      const { lockedBy, locked: until } = await stored(doc);
      assert.deepEqual(Object.keys(lockedBy), ['lease', 'token', 'label', 'since', 'until']);
      assert.equal(lockedBy.lease._bsontype?.toLowerCase(), 'objectid');
      assert.equal(lockedBy.token, 1);
      assert.equal(lockedBy.label, `${hostname()}:${process.pid}`);
      assert.ok(lockedBy.since >= before && lockedBy.since <= after);
      assert.equal(lockedBy.until.getTime(), lockedBy.since.getTime() + LONG);
      assert.equal(until.getTime(), lockedBy.until.getTime());
      assert.equal(locked.locked.getTime(), until.getTime());
    });

    it('is seen in no document, lean object, JSON or inspection', async function () {
      const doc = await create();
      const locked = await doc.lock(LONG);
      const released = await doc.release();
      const found = await again(doc);
      const lean = await Order.findById(doc._id).lean();
      for (const seen of [doc, locked, released, found]) {
        assert.equal(seen.get('lockedBy'), undefined);
        assert.ok(!('lockedBy' in seen.toObject()));
        assert.ok(!('lockedBy' in seen.toJSON()));
        assert.ok(!('$lock' in seen.toJSON()));
      }
      assert.ok(!('lockedBy' in lean));
    });

    it('is shown to who asks for it', async function () {
      const doc = await create();
      await doc.lock(LONG);
      const asked = await Order.findById(doc._id).select('+lockedBy');
      assert.equal(asked.lockedBy.token, 1);
    });

    it('survives set() and save(), whatever a request carries', async function () {
      const doc = await create();
      const locked = await doc.lock(LONG);
      const before = (await stored(doc)).lockedBy;
      for (const seen of [
        locked,
        await again(doc),
        await Order.findById(doc._id).select('+lockedBy'),
      ]) {
        seen.set({ lockedBy: { token: 99 }, 'lockedBy.token': 99, name: 'changed' });
        seen.n += 1;
        await seen.save();
      }
      const after = await stored(doc);
      assert.deepEqual(after.lockedBy, before);
      assert.equal(after.name, 'changed');
    });

    it('stays after a release, with until at the moment of it', async function () {
      const doc = await create();
      await doc.lock(LONG);
      const held = (await stored(doc)).lockedBy;
      await doc.release();
      const { locked, lockedBy } = await stored(doc);
      assert.deepEqual({ ...lockedBy, until: held.until }, held);
      assert.equal(lockedBy.until.getTime(), locked.getTime());
      assert.ok(lockedBy.until < held.until);
    });

    it('names the process as the option label says', async function () {
      const schema = new mongoose.Schema({}, { collection: 'labelled' });
      const Labelled = connection.model(
        'Labelled',
        schema.plugin(lockRelease, { label: '$worker.7' }),
      );
      const locked = await (await Labelled.create({})).lock(LONG);
      assert.equal(locked.$lock.label, '$worker.7');
      const { lockedBy } = await Labelled.collection.findOne({ _id: locked._id });
      assert.equal(lockedBy.label, '$worker.7');
    });
  });

  describe('the token', function () {
    it('grows by one with each acquisition: after releases, expiries and takeovers', async function () {
      const doc = await create();
      const tokens = [];
      for (let round = 0; round < 3; round++) {
        tokens.push((await doc.lock(LONG)).$lock.token);
        await doc.release();
        tokens.push((await doc.lock(SHORT)).$lock.token);
        await lapse(doc);
        const other = await again(doc);
        tokens.push((await other.lock(SHORT)).$lock.token);
        await lapse(doc);
      }
      assert.deepEqual(tokens, [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    });

    it('stays as it is when a lock is refused, prolonged or released', async function () {
      const doc = await create();
      await doc.lock(LONG);
      assert.equal(await (await again(doc)).lock(LONG), null);
      assert.ok(await doc.extend(2 * LONG));
      assert.ok(await doc.release());
      assert.equal((await stored(doc)).lockedBy.token, 1);
    });

    it('is given once each to processes that compete', async function () {
      const doc = await create();
      const objects = await Promise.all(Array.from({ length: 12 }, () => again(doc)));
      const tokens = [];
      async function compete(object) {
        for (let won = 0; won < 5;) {
          const locked = await object.lock(LONG);
          if (!locked) continue;
          won += 1;
          tokens.push(locked.$lock.token);
          await object.release();
        }
      }
      await Promise.all(objects.map(compete));
      assert.deepEqual(
        tokens,
        Array.from({ length: 60 }, (_, index) => index + 1),
      );
    });

    it('begins at one in documents from before the plugin', async function () {
      const { insertedId } = await Order.collection.insertOne({ name: 'old' });
      const locked = await (await Order.findById(insertedId)).lock(LONG);
      assert.equal(locked.$lock.token, 1);
    });
  });

  describe('release', function () {
    for (const [name, releaser] of [
      ['the object that was locked', (doc) => doc],
      ['the document that lock returned', (_doc, locked) => locked],
    ]) {
      it(`by ${name} frees the lock and gives the fresh document`, async function () {
        const doc = await create();
        const locked = await doc.lock(LONG);
        await Order.updateOne({ _id: doc._id }, { name: 'written meanwhile' });
        const before = await serverTime();
        const released = await releaser(doc, locked).release();
        const after = await serverTime();
        assert.equal(released.name, 'written meanwhile');
        assert.ok(released.locked >= before && released.locked <= after);
        assert.ok(await (await again(doc)).lock(LONG));
      });
    }

    it('of a lock that ran out and was taken gives null and leaves the other alone', async function () {
      const { former, holder } = await overtaken();
      const before = await stored(former);
      assert.equal(await former.release(), null);
      assert.deepEqual(await stored(former), before);
      assert.equal(holder.$lock.held, true);
    });

    it('of a lock that ran out and that nobody took gives the document', async function () {
      const doc = await create();
      await doc.lock(SHORT);
      await lapse(doc);
      assert.ok(await doc.release());
    });

    it('gives null after the original or an operator took the lock', async function () {
      const doc = await create();
      await doc.lock(LONG);
      await Order.collection.updateOne(
        { _id: doc._id },
        { $set: { locked: new Date(Date.now() + 2 * LONG) } },
      );
      const before = await stored(doc);
      assert.equal(await doc.release(), null);
      assert.deepEqual(await stored(doc), before);
    });

    it('on an object whose lock was refused gives null and sends nothing', async function () {
      const holder = await create();
      await holder.lock(LONG);
      const refused = await again(holder);
      assert.equal(await refused.lock(LONG), null);
      const before = await stored(holder);
      assert.equal(await refused.release(), null);
      assert.deepEqual(await stored(holder), before);
    });

    it('on an object whose lock failed gives null', async function () {
      const holder = await create();
      await holder.lock(LONG);
      const failed = await again(holder);
      await assert.rejects(failed.lock(-1), { code: 'ERR_LOCK_ARGUMENT' });
      assert.equal(await failed.release(), null);
      assert.equal(await (await again(holder)).lock(LONG), null);
    });

    it('on an object that lock was never called on frees whoever holds it', async function () {
      const holder = await create();
      await holder.lock(LONG);
      const released = await (await again(holder)).release();
      assert.ok(released.locked <= (await serverTime()));
      assert.ok(await (await again(holder)).lock(LONG));
      assert.equal(await holder.release(), null);
    });

    it('called again on the same objects never frees the next holder', async function () {
      const doc = await create();
      const locked = await doc.lock(LONG);
      assert.ok(await doc.release());
      assert.ok(await doc.release());
      const holder = await again(doc);
      assert.ok(await holder.lock(LONG));
      const before = await stored(doc);
      assert.equal(await doc.release(), null);
      assert.equal(await locked.release(), null);
      assert.deepEqual(await stored(doc), before);
    });

    it('frees again once the object has locked again', async function () {
      const doc = await create();
      const first = await doc.lock(LONG);
      await doc.release();
      const second = await doc.lock(LONG);
      // The first returned document knows its own acquisition only.
      assert.equal(await first.release(), null);
      assert.equal(second.$lock.held, true);
      assert.ok(await doc.release());
    });

    it('gives null when the document is gone', async function () {
      const doc = await create();
      await doc.lock(LONG);
      await Order.deleteOne({ _id: doc._id });
      assert.equal(await doc.release(), null);
    });

    it('after a refused second lock frees what the object holds', async function () {
      const doc = await create();
      await doc.lock(LONG);
      const { $lock } = doc;
      assert.equal(await doc.lock(LONG), null);
      assert.equal(doc.$lock, $lock);
      assert.ok($lock.held);
      assert.ok(await doc.release());
    });
  });

  describe('extend', function () {
    it('prolongs to the duration from now and gives the fresh document', async function () {
      const doc = await create();
      const locked = await doc.lock(LONG);
      await Order.updateOne({ _id: doc._id }, { name: 'written meanwhile' });
      const before = await serverTime();
      const extended = await doc.extend(2 * LONG);
      const after = await serverTime();
      assert.equal(extended.name, 'written meanwhile');
      const until = extended.locked.getTime();
      assert.ok(until >= before.getTime() + 2 * LONG && until <= after.getTime() + 2 * LONG);
      assert.equal(locked.$lock.expires.getTime(), until);
      assert.ok(locked.$lock.remaining > LONG);
      assert.equal((await stored(doc)).lockedBy.until.getTime(), until);
    });

    it('never shortens a lock', async function () {
      const doc = await create();
      const locked = await doc.lock(LONG);
      const extended = await locked.extend(1);
      assert.equal(extended.locked.getTime(), locked.locked.getTime());
      assert.ok(doc.$lock.remaining > LONG / 2);
    });

    it('never revives a lock that ran out, even if nobody took it', async function () {
      const doc = await create();
      await doc.lock(SHORT);
      await lapse(doc);
      const before = await stored(doc);
      assert.equal(await doc.extend(LONG), null);
      assert.deepEqual(await stored(doc), before);
      assert.equal(doc.$lock.held, false);
    });

    it('gives null after a release, a takeover, a refusal and without a lock', async function () {
      const released = await create();
      await released.lock(LONG);
      await released.release();
      assert.equal(await released.extend(LONG), null);

      const { former, holder } = await overtaken();
      const before = await stored(former);
      assert.equal(await former.extend(LONG), null);
      assert.deepEqual(await stored(former), before);

      const refused = await again(holder);
      await refused.lock(LONG);
      assert.equal(await refused.extend(LONG), null);
      assert.equal(await (await again(holder)).extend(LONG), null);
      assert.deepEqual(await stored(former), before);
    });

    it('gives null once an operator has written the date, and the lock is lost', async function () {
      const doc = await create();
      await doc.lock(LONG);
      await Order.collection.updateOne({ _id: doc._id }, { $set: { locked: new Date(0) } });
      assert.equal(await doc.extend(LONG), null);
      assert.equal(doc.$lock.held, false);
      assert.throws(() => doc.$lock.assertHeld(), { code: 'ERR_LOCK_LOST' });
    });
  });

  describe('$lock', function () {
    it('is there on both objects once locked, and only then', async function () {
      const doc = await create();
      assert.equal(doc.$lock, undefined);
      const locked = await doc.lock(LONG);
      assert.equal(doc.$lock, locked.$lock);
      const refused = await again(doc);
      await refused.lock(LONG);
      assert.equal(refused.$lock, undefined);
    });

    it('tells what the server has stored', async function () {
      const doc = await create();
      const { $lock } = await doc.lock(LONG);
      const { locked, lockedBy } = await stored(doc);
      assert.equal($lock.held, true);
      assert.ok($lock.remaining > 0 && $lock.remaining <= LONG);
      assert.deepEqual($lock.expires, locked);
      assert.deepEqual($lock.since, lockedBy.since);
      assert.equal($lock.token, lockedBy.token);
      assert.equal($lock.label, lockedBy.label);
      assert.doesNotThrow(() => $lock.assertHeld());
    });

    it('has a filter for updates of the user, which matches as long as nobody took the lock', async function () {
      const doc = await create();
      const { filter } = (await doc.lock(SHORT)).$lock;
      const update = () => Order.updateOne(filter, { $inc: { n: 1 } });
      assert.equal((await update()).modifiedCount, 1);
      await lapse(doc);
      assert.equal((await update()).modifiedCount, 1);
      await (await again(doc)).lock(LONG);
      assert.equal((await update()).modifiedCount, 0);
      assert.equal((await stored(doc)).n, 2);
    });

    it('is not held from the moment that release is called', async function () {
      const doc = await create();
      const { $lock } = await doc.lock(LONG);
      const released = doc.release();
      await Promise.resolve();
      assert.equal($lock.held, false);
      assert.equal($lock.remaining, 0);
      assert.throws(
        () => $lock.assertHeld(),
        (error) => error instanceof LockError && error.code === 'ERR_LOCK_LOST',
      );
      await released;
      assert.equal($lock.held, false);
    });

    it('never believes in a lock for longer than the date on the server says', async function () {
      const doc = await create();
      for (let round = 0; round < 300; round++) {
        const { $lock } = await doc.lock(LONG);
        // The server runs on this machine, so both clocks are one; this one is cut to whole milliseconds. It is read
        // first: the process may be put aside between the two.
        const now = Date.now();
        assert.ok($lock.remaining <= $lock.expires.getTime() - now);
        await doc.release();
      }
    });

    it('turns in a blocked event loop, before another process is let in', async function () {
      const doc = await create();
      const other = await Holder.start({ uri: server.uriFor('held') });
      const blocked = await Holder.start({ uri: server.uriFor('held') });
      const id = await blocked.call('create', { n: doc.n });
      await other.call('find', id);
      await blocked.call('lock', 400);
      const [samples, taken] = await Promise.all([
        blocked.call('block', 1200),
        other.call('contend', LONG),
      ]);
      const held = samples.filter((sample) => sample.held);
      assert.ok(held.length > 10, 'it was held at first');
      assert.ok(samples.length - held.length > 10, 'and was not at the end');
      assert.ok(held.at(-1).at < taken.at, 'the belief ended before the other had it');
      assert.equal(taken.token, 2);
      assert.equal(await blocked.call('release'), null);
    });

    it('knows after a SIGSTOP that the lock ran out, without asking', async function () {
      const holder = await Holder.start({ uri: server.uriFor('held') });
      const other = await Holder.start({ uri: server.uriFor('held') });
      const id = await holder.call('create', { n: 0 });
      await other.call('find', id);
      await holder.call('lock', 300);
      holder.signal('SIGSTOP');
      const first = holder.call('block', 50);
      const taken = await other.call('contend', LONG);
      holder.signal('SIGCONT');
      for (const sample of await first) {
        if (sample.at > taken.at) assert.equal(sample.held, false);
      }
      assert.equal((await holder.call('standing')).held, false);
      assert.equal(await holder.call('extend', LONG), null);
      assert.equal(await holder.call('release'), null);
      assert.equal((await other.call('standing')).held, true);
    });
  });
});

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
