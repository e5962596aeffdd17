'use strict';
/*
 * Processes that still run the original package, on Mongoose 6, beside processes that run this plugin, on the same
 * documents: they exclude each other, and ours notices what the original does to its locks.
 */

const assert = require('node:assert/strict');
const { deployment } = require('./support/deployment');
const mongoose = require('./support/mongoose');
const { Holder } = require('./ownership/holder');

const LONG = 600_000;

describe('a mixed fleet', function () {
  let server;
  let connection;
  let held;
  let ours;
  let original;

  before(async function () {
    server = await deployment();
    const uri = server.uriFor('fleet');
    connection = await mongoose.createConnection(uri).asPromise();
    held = connection.db.collection('held');
    [ours, original] = await Promise.all([
      Holder.start({ uri }),
      Holder.start({ uri, original: true }),
    ]);
  });

  after(async function () {
    await Holder.killAll();
    await connection?.dropDatabase();
    await connection?.close();
    await server?.stop();
  });

  const stored = (id) => held.findOne({ _id: new mongoose.Types.ObjectId(id) });

  async function shared(creator = ours) {
    const id = await creator.call('create', { n: 0 });
    for (const each of [ours, original]) await each.call('find', id);
    return id;
  }

  it('locks documents that the other side has saved, at once', async function () {
    await shared(original);
    assert.equal((await ours.call('lock', LONG)).token, 1);
    await shared(ours);
    assert.ok(await original.call('lock', LONG));
  });

  it('is refused what the other side holds', async function () {
    await shared();
    assert.ok(await ours.call('lock', LONG));
    assert.equal(await original.call('lock', LONG), null);
    assert.ok(await ours.call('release'));
    assert.ok(await original.call('lock', LONG));
    assert.equal(await ours.call('lock', LONG), null);
    assert.ok(await original.call('release'));
    assert.ok(await ours.call('lock', LONG));
  });

  it('notices that the original took over what ran out', async function () {
    const id = await shared();
    await ours.call('lock', 200);
    while (!(await original.call('lock', LONG))) await pause(10);
    await original.call('save', { n: 100 });
    assert.equal((await ours.call('standing')).held, false);
    await assert.rejects(ours.call('save', { n: 1 }), { code: 'ERR_LOCK_LOST' });
    assert.equal(await ours.call('extend', LONG), null);
    assert.equal(await ours.call('release'), null);
    const { n, locked } = await stored(id);
    assert.equal(n, 100);
    assert.ok(locked.getTime() > Date.now() + LONG / 2);
    assert.ok(await original.call('release'));
  });

  it('notices that the original has freed what is held, as it does whoever holds', async function () {
    await shared();
    await ours.call('lock', LONG);
    assert.ok(await original.call('release'));
    assert.equal(await ours.call('extend', LONG), null);
    assert.equal((await ours.call('standing')).held, false);
    await assert.rejects(ours.call('save', { n: 1 }), { code: 'ERR_LOCK_LOST' });
    assert.ok(await original.call('lock', LONG));
    assert.equal(await ours.call('release'), null);
  });

  it('counts tokens on across the holds of the original', async function () {
    const id = await shared();
    const tokens = [];
    for (let round = 0; round < 3; round++) {
      tokens.push((await ours.call('lock', LONG)).token);
      await ours.call('release');
      assert.ok(await original.call('lock', LONG));
      assert.ok(await original.call('release'));
    }
    assert.deepEqual(tokens, [1, 2, 3]);
    assert.equal((await stored(id)).lockedBy.token, 3);
  });

  it('keeps a counter right that all of them write', async function () {
    const id = await shared();
    const uri = server.uriFor('fleet');
    const more = await Promise.all([Holder.start({ uri }), Holder.start({ uri, original: true })]);
    for (const each of more) await each.call('find', id);
    const refused = await Promise.all(
      [ours, original, ...more].map((each) => each.call('count', 25, LONG)),
    );
    assert.equal((await stored(id)).n, 100);
    assert.ok(Math.max(...refused) > 0, 'they were in each other’s way');
  });
});

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
