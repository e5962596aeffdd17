'use strict';
/*
 * How calls answer: through a Node callback or a promise, exactly once, in the caller's own context. What they answer
 * is specified elsewhere.
 */

const assert = require('node:assert/strict');
const { AsyncLocalStorage } = require('node:async_hooks');
const { execFile } = require('node:child_process');
const path = require('node:path');
const { promisify } = require('node:util');
const stage = require('./stage');
const { LONG_MS, load } = stage;

const run = promisify(execFile);
const turn = () => new Promise((resolve) => setImmediate(resolve));

/** The calls of each verb, without their callback. */
const VERBS = {
  lock: (doc, ...callback) => doc.lock(LONG_MS, ...callback),
  extend: (doc, ...callback) => doc.extend(LONG_MS, ...callback),
  release: (doc, ...callback) => doc.release(...callback),
};

/** Calls a verb with a callback; resolves to what the callback got once there was time for a second call. */
async function called(verb, doc) {
  const calls = [];
  let returned = 'nothing yet';
  await new Promise((resolve) => {
    returned = VERBS[verb](doc, (...args) => {
      calls.push({ args, isSynchronous: returned === 'nothing yet' });
      resolve();
    });
  });
  await turn();
  await turn();
  assert.equal(returned, undefined, 'the call itself gives nothing');
  assert.equal(calls.length, 1, 'one call');
  assert.equal(calls[0].isSynchronous, false, 'never before the call has returned');
  return calls[0].args;
}

describe('callbacks and promises', function () {
  let Order;

  before(function () {
    Order = stage.lockable();
  });

  it('call back once, later, with the document, and return nothing', async function () {
    const order = await Order.create({ name: 'mine' });
    for (const verb of ['lock', 'extend', 'release']) {
      const [error, doc] = await called(verb, order);
      assert.equal(error, null, verb);
      assert.ok(doc instanceof Order, verb);
    }
  });

  it('call back once, later, with null for what is not to be had', async function () {
    const order = await Order.create({ name: 'taken' });
    await (await load(order)).lock(LONG_MS);
    for (const verb of ['lock', 'extend', 'release']) {
      assert.deepEqual(await called(verb, order), [null, null], verb);
    }
  });

  it('call back once, later, with an error, bad arguments and unsaved documents included', async function () {
    const unsaved = new Order({ name: 'new' });
    assert.equal((await called('lock', unsaved))[0].code, 'ERR_LOCK_NOT_STORED');
    const order = await Order.create({ name: 'stored' });
    for (const verb of ['lock', 'extend']) {
      let returned = 'nothing yet';
      const args = await new Promise((resolve) => {
        returned = order[verb]('10', (...got) => resolve([...got, returned]));
      });
      assert.equal(args[0].code, 'ERR_LOCK_ARGUMENT');
      assert.equal(args.at(-1), undefined, 'not before the call has returned');
    }
  });

  it('take the callback after options too, and after none', async function () {
    const order = await Order.create({ name: 'mine' });
    const lock = (options) =>
      new Promise((resolve, reject) => {
        order.lock(LONG_MS, options, (error, doc) => (error ? reject(error) : resolve(doc)));
      });
    assert.ok(await lock({}));
    assert.equal(await lock(undefined), null);
    assert.equal(await lock(null), null);
  });

  it('take null for no callback and for no options', async function () {
    const order = await Order.create({ name: 'mine' });
    assert.ok(await order.lock(LONG_MS, null, null));
    assert.equal(await order.lock(LONG_MS, null), null);
    assert.ok(await order.extend(LONG_MS, null));
    assert.ok(await order.release(null));
  });

  it('return a promise when there is no callback', async function () {
    const order = await Order.create({ name: 'mine' });
    for (const verb of ['lock', 'extend', 'release']) {
      const promise = VERBS[verb](order);
      assert.ok(promise instanceof Promise, verb);
      assert.ok((await promise) instanceof Order, verb);
    }
    const bad = order.lock(NaN);
    assert.ok(bad instanceof Promise, 'a bad argument rejects, it does not throw');
    await assert.rejects(bad, { code: 'ERR_LOCK_ARGUMENT' });
  });

  it('throw at once when the callback is no function, and send nothing', async function () {
    const order = await Order.create({ name: 'mine' });
    const commands = await stage.commandsDuring(Order, async () => {
      for (const callback of ['callback', 7, {}, true]) {
        const expected = { name: 'TypeError', code: 'ERR_LOCK_ARGUMENT', message: /callback/ };
        assert.throws(() => order.lock(LONG_MS, {}, callback), expected);
        assert.throws(() => order.extend(LONG_MS, callback), expected);
        assert.throws(() => order.release(callback), expected);
      }
    });
    assert.deepEqual(commands, []);
  });

  it('keep the caller’s AsyncLocalStorage', async function () {
    const storage = new AsyncLocalStorage();
    const orders = await Order.create([{ name: 'a' }, { name: 'b' }, { name: 'c' }]);
    for (const verb of ['lock', 'extend', 'release']) {
      const seen = await Promise.all(
        orders.map(({ name }, i) =>
          storage.run(name, async () => {
            const inCallback = await new Promise((resolve) => {
              if (i % 2) VERBS[verb](orders[i], () => resolve(storage.getStore()));
              else VERBS[verb](orders[i]).then(() => resolve(storage.getStore()));
            });
            return [inCallback, storage.getStore()];
          }),
        ),
      );
      assert.deepEqual(
        seen,
        orders.map(({ name }) => [name, name]),
      );
    }
  });

  it('name the caller in the stack of an error, the server’s own errors included', async function () {
    const order = await Order.create({ name: 'mine' });
    await stage.connection.db.command({
      collMod: Order.collection.collectionName,
      validator: { locked: { $lt: new Date(1) } },
    });
    const errors = [
      await stage.failureOf(order.lock(-1)),
      await stage.failureOf(new Order({}).lock(1)),
      await stage.failureOf(order.lock(LONG_MS)),
    ];
    await stage.connection.db.command({
      collMod: Order.collection.collectionName,
      validator: {},
    });
    for (const error of errors) assert.match(error.stack, /answering\.js/);
    assert.ok(errors[2] instanceof stage.mongoose.mongo.MongoServerError);
    assert.equal(errors[2].code, 121);
    assert.equal(errors[2].codeName, 'DocumentValidationFailure');
  });

  it('let what a callback throws surface as an uncaught exception, and answer all others', async function () {
    const script = path.join(__dirname, 'throwing.js');
    const { stdout } = await run(process.execPath, [script], {
      env: { ...process.env, URI: stage.uri(), LONG_MS: String(LONG_MS) },
    });
    const { uncaught, answered, rejections } = JSON.parse(stdout.trim().split('\n').pop());
    assert.deepEqual([...new Set(Object.values(answered))], [1], 'each call was answered once');
    assert.equal(Object.keys(answered).length, 60);
    assert.deepEqual(uncaught.toSorted(), ['extend 3', 'lock 1', 'lock 2', 'release 4']);
    assert.deepEqual(rejections, []);
  });
});
