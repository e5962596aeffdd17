'use strict';
/*
 * Clients whose clocks are wrong: processes under faketime, five minutes ahead and behind. Locks are judged by the clock
 * of the server alone; the negative control shows what the original package makes of such a clock.
 */

const assert = require('node:assert/strict');
const { deployment } = require('./support/deployment');
const { requireTool } = require('./support/tools');
const mongoose = require('./support/mongoose');
const { Holder } = require('./ownership/holder');

const LONG = 60_000;
const OFF = 5 * 60_000;

describe('a client whose clock is wrong', function () {
  let server;
  let connection;
  let held;
  let right;
  const wrong = {};

  before(async function () {
    requireTool(this, 'faketime');
    server = await deployment();
    const uri = server.uriFor('clocks');
    connection = await mongoose.createConnection(uri).asPromise();
    held = connection.db.collection('held');
    [right, wrong['+5m'], wrong['-5m']] = await Promise.all([
      Holder.start({ uri }),
      Holder.start({ uri, clock: '+5m' }),
      Holder.start({ uri, clock: '-5m' }),
    ]);
  });

  after(async function () {
    await Holder.killAll();
    await connection?.dropDatabase();
    await connection?.close();
    await server?.stop();
  });

  const stored = (id) => held.findOne({ _id: new mongoose.Types.ObjectId(id) });

  for (const [clock, offset] of [
    ['+5m', OFF],
    ['-5m', -OFF],
  ]) {
    describe(`by ${clock}`, function () {
      let skewed;
      let other;

      before(async function () {
        skewed = wrong[clock];
        other = wrong[clock === '+5m' ? '-5m' : '+5m'];
        const difference = (await skewed.call('clock')) - Date.now();
        assert.ok(Math.abs(difference - offset) < OFF / 2, 'its clock really is wrong');
      });

      it('saves documents that all can lock at once', async function () {
        for (const locker of [right, other, skewed]) {
          const id = await skewed.call('create', { n: 0 });
          await locker.call('find', id);
          assert.equal((await locker.call('lock', LONG)).token, 1);
        }
      });

      it('saves a document again without touching its lock', async function () {
        const id = await right.call('create', { n: 0 });
        await skewed.call('find', id);
        await skewed.call('lock', LONG);
        const before = await stored(id);
        await skewed.call('save', { n: 1 });
        const after = await stored(id);
        assert.deepEqual([after.n, after.locked], [1, before.locked]);
      });

      it('holds for as long as it asked, and not longer', async function () {
        const id = await right.call('create', { n: 0 });
        await skewed.call('find', id);
        await right.call('find', id);
        await skewed.call('lock', 700);
        assert.equal((await skewed.call('standing')).held, true);
        const first = (await stored(id)).lockedBy;
        assert.equal(first.until - first.since, 700);
        assert.equal((await right.call('contend', LONG)).token, 2);
        const second = (await stored(id)).lockedBy;
        assert.ok(second.since >= first.until);
        assert.ok(second.since - first.until < OFF / 2);
        assert.equal((await skewed.call('standing')).held, false);
        assert.equal(await skewed.call('release'), null);
      });

      it('is refused what others hold, and they what it holds', async function () {
        const id = await right.call('create', { n: 0 });
        for (const holder of [right, other, skewed]) {
          for (const each of [right, other, skewed]) await each.call('find', id);
          assert.ok(await holder.call('lock', LONG));
          for (const refused of [right, other, skewed].filter((each) => each !== holder)) {
            assert.equal(await refused.call('lock', LONG), null);
          }
          assert.ok(await holder.call('release'));
        }
      });

      it('prolongs and releases by the clock of the server', async function () {
        const id = await skewed.call('create', { n: 0 });
        await skewed.call('lock', 1000);
        const extended = await skewed.call('extend', LONG);
        const now = (await connection.db.command({ hello: 1 })).localTime.getTime();
        assert.ok(extended.locked <= now + LONG && extended.locked > now + LONG / 2);
        const released = await skewed.call('release');
        assert.ok(Math.abs(released.locked - now) < OFF / 2);
        await right.call('find', id);
        assert.ok(await right.call('lock', LONG));
      });
    });
  }

  it('takes a held lock with the original package (negative control)', async function () {
    const uri = server.uriFor('clocks');
    const [ahead, inStep] = await Promise.all([
      Holder.start({ uri, original: true, clock: '+5m' }),
      Holder.start({ uri, original: true }),
    ]);
    const id = await inStep.call('create', { n: 0 });
    await ahead.call('find', id);
    assert.ok(await inStep.call('lock', LONG));
    assert.ok(await ahead.call('lock', LONG), 'two hold it now');

    const unlockable = await ahead.call('create', { n: 0 });
    await inStep.call('find', unlockable);
    assert.equal(await inStep.call('lock', LONG), null, 'locked from birth');
  });
});
