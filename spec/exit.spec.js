/*
 * What becomes of held locks when their holder ends: renewed ones are released however a process or a worker thread ends
 * short of SIGKILL, plain ones keep their duration. All with processes of their own, observed from this one.
 */
'use strict';

const assert = require('node:assert/strict');
const { once } = require('node:events');
const { setTimeout: pause } = require('node:timers/promises');
const { Worker } = require('node:worker_threads');
const lockRelease = require('..');
const { WireRelay } = require('./faults/wire-relay');
const { Scene } = require('./fixtures/held-scene');
const { deployment } = require('./support/deployment');
const mongoose = require('./support/mongoose');

/** Long enough never to run out while a spec runs: who gets such a lock got it by a release. */
const LONG = 600_000;

describe('the end of a holder', function () {
  this.timeout(120_000);

  let server;
  let uri;
  let connection;
  let Order;

  before(async function () {
    server = await deployment();
    uri = server.uriFor('lock_release_exit');
    connection = await mongoose.createConnection(uri).asPromise();
    const schema = new mongoose.Schema({ name: String }, { collection: 'orders' });
    Order = connection.model('Order', schema.plugin(lockRelease));
    await Order.init();
  });

  afterEach(() => Scene.killAll());

  after(async function () {
    await connection?.dropDatabase();
    await connection?.close();
    await server?.stop();
  });

  const create = async () => String((await Order.create({ name: 'order' }))._id);
  const isFree = async (id) => (await (await Order.findById(id)).lock(LONG)) !== null;

  /** Released in the background: the mocha time-out is what says that it never happens. */
  async function becomesFree(id) {
    while (!(await isFree(id))) await pause(5);
  }

  /** A process that holds a renewed lock and a plain one and then ends so. */
  async function holder(ending, { renewed = 1, plain = 1, duration = LONG, ...args } = {}) {
    const ids = await Promise.all([renewed, plain].map((count) => many(count)));
    const scene = Scene.play('end', { uri, ids, duration, ending, ...args });
    assert.deepEqual(await scene.next(), { held: true });
    return { scene, renewed: ids[0], plain: ids[1] };
  }

  async function many(count) {
    const docs = await Order.create(Array.from({ length: count }, () => ({ name: 'order' })));
    return docs.map((doc) => String(doc._id));
  }

  async function assertReleased({ renewed, plain }) {
    // At the very first attempt: a process is gone only after its locks are.
    for (const id of renewed) assert.ok(await isFree(id), 'a renewed lock is released');
    for (const id of plain) assert.ok(!(await isFree(id)), 'a plain lock keeps its duration');
  }

  describe('of a process', function () {
    const endings = [
      ['by process.exit()', 'exit', { code: 3 }],
      ['by process.exit() after a blocked event loop', 'exitInBlockedLoop', { code: 3 }],
      ['by an uncaught exception', 'throw', { code: 1 }, /the work went wrong/],
      ['by an unhandled rejection', 'reject', { code: 1 }, /the work went wrong/],
      ['by returning, with the lock held', 'return', { code: 0 }],
      ['by returning with an exit code', 'exitCode', { code: 4 }],
    ];
    for (const [title, ending, { code }, message] of endings) {
      it(`${title}: its renewed locks are released, plain ones stay, the code is kept`, async function () {
        const held = await holder(ending);
        assert.deepEqual(await held.scene.ended, { code, signal: null });
        await assertReleased(held);
        if (message) assert.match(held.scene.stderr, message);
        else assert.equal(held.scene.stderr, '');
      });
    }

    for (const name of ['SIGTERM', 'SIGINT']) {
      it(`by ${name} with a handler that exits: its renewed locks are released`, async function () {
        const held = await holder('signal');
        await held.scene.next();
        held.scene.signal(name);
        assert.deepEqual(await held.scene.ended, { code: 5, signal: null });
        await assertReleased(held);
      });
    }

    it('lets a process that waits for the lock have it long before the duration is over', async function () {
      const held = await holder('signal');
      await held.scene.next();
      const [id] = held.renewed;
      for (let tries = 0; tries < 20; tries++) assert.ok(!(await isFree(id)));
      const begun = performance.now();
      held.scene.signal('SIGTERM');
      while (!(await isFree(id))) await pause(5);
      const waited = performance.now() - begun;
      assert.ok(waited < LONG / 300, `${waited} ms of ${LONG} ms`);
    });

    it('by SIGKILL: renewed locks lapse, and not before their duration is over', async function () {
      const duration = 2000;
      const held = await holder('wait', { duration, plain: 0 });
      await held.scene.next();
      held.scene.signal('SIGKILL');
      await held.scene.ended;
      const [id] = held.renewed;
      const { locked } = await Order.collection.findOne({ _id: new mongoose.Types.ObjectId(id) });
      while (!(await isFree(id))) await pause(10);
      const taken = await Order.collection.findOne({ _id: new mongoose.Types.ObjectId(id) });
      assert.ok(taken.lockedBy.since >= locked, 'not before the end of the lock');
      assert.ok(taken.lockedBy.since - locked < duration);
    });

    it('does not free what it lost to another before', async function () {
      const held = await holder('signal', { plain: 0 });
      await held.scene.next();
      const [id] = held.renewed;
      const _id = new mongoose.Types.ObjectId(id);
      await Order.collection.updateOne({ _id }, { $set: { locked: new Date(0) } });
      const mine = await (await Order.findById(id)).lock(LONG);
      assert.ok(mine);
      held.scene.signal('SIGTERM');
      await held.scene.ended;
      assert.ok(!(await isFree(id)), 'the lock of another stays');
      assert.ok(await mine.release());
    });

    it('releases more than a thousand locks in a handful of commands', async function () {
      const count = 1200;
      const held = await holder('signal', { renewed: count, plain: 3 });
      await held.scene.next();
      const before = await updates();
      held.scene.signal('SIGTERM');
      assert.deepEqual(await held.scene.ended, { code: 5, signal: null });
      const commands = (await updates()) - before;
      assert.ok(commands <= 10, `${commands} commands for ${count} locks`);
      const free = { $expr: { $lte: ['$locked', '$$NOW'] } };
      const ids = held.renewed.map((id) => new mongoose.Types.ObjectId(id));
      assert.equal(await Order.collection.countDocuments({ _id: { $in: ids }, ...free }), count);
      for (const id of held.plain) assert.ok(!(await isFree(id)));
    });

    it('waits for the releases no longer than exitTimeout when nothing answers', async function () {
      if (server.kind === 'external') return;
      const took = async (exitTimeout) => {
        const relay = await WireRelay.start(await server.primary());
        try {
          const args = { uri: relay.uriFor('lock_release_exit'), plugin: { exitTimeout } };
          const { scene } = await holder('signal', args);
          await scene.next();
          relay.blackhole = true;
          const begun = performance.now();
          scene.signal('SIGTERM');
          assert.deepEqual(await scene.ended, { code: 5, signal: null });
          return performance.now() - begun;
        } finally {
          await relay.stop();
        }
      };
      const [none, short, long] = await Promise.all([took(0), took(1000), took(3000)]);
      assert.ok(long >= 2900 && short >= 900, `${none}, ${short}, ${long} ms`);
      assert.ok(none < short && short < long, `${none}, ${short}, ${long} ms`);
    });

    async function updates() {
      const status = await connection.db.admin().command({ serverStatus: 1 });
      return Number(status.opcounters.update);
    }
  });

  describe('of a connection', function () {
    it('by disconnect(): renewed locks are released first, plain ones stay', async function () {
      const held = await holder('disconnect');
      await held.scene.next();
      for (const id of held.renewed) await becomesFree(id);
      await assertReleased({ ...held, renewed: [] });
      assert.equal(held.scene.end, undefined, 'the process goes on');
    });

    for (const [title, ending] of [
      ['returns', 'disconnectAndReturn'],
      ['calls process.exit()', 'disconnectAndExit'],
    ]) {
      it(`by disconnect() in a process that ${title} right after it: they are released as well`, async function () {
        const held = await holder(ending, { renewed: 3 });
        assert.deepEqual(await held.scene.ended, { code: 0, signal: null });
        await assertReleased(held);
      });

      it(`by disconnect() over a slow network in a process that ${title} right after it, too`, async function () {
        const relay = await WireRelay.start(await server.primary());
        try {
          const held = await holder(ending, { renewed: 3, uri: relay.uriFor('lock_release_exit') });
          // The process itself waits a while before it disconnects.
          relay.delay = 100;
          assert.deepEqual(await held.scene.ended, { code: 0, signal: null });
          await assertReleased(held);
        } finally {
          await relay.stop();
        }
      });
    }

    it('of several connections releases its own locks alone', async function () {
      const models = [];
      for (let i = 0; i < 2; i++) {
        const own = await mongoose.createConnection(uri).asPromise();
        models.push(own.model('Order', Order.schema));
      }
      const ids = await many(2);
      const locked = [];
      for (const [i, Model] of models.entries()) {
        locked.push(await (await Model.findById(ids[i])).lock(LONG, { renew: true }));
      }
      await models[0].db.close();
      await becomesFree(ids[0]);
      assert.equal(locked[0].$lock.held, false);
      assert.ok(!(await isFree(ids[1])));
      assert.equal(locked[1].$lock.held, true);
      await models[1].db.close();
      await becomesFree(ids[1]);
    });

    it('leaves nothing that is told as lost: the signal of what was released is not aborted', async function () {
      const own = await mongoose.createConnection(uri).asPromise();
      const locked = await (
        await own.model('Order', Order.schema).findById(await create())
      ).lock(300, { renew: true });
      const { signal } = locked.$lock;
      await own.close();
      await pause(600);
      assert.equal(signal.aborted, false);
      assert.equal(locked.$lock.held, false);
    });
  });

  describe('of a worker thread', function () {
    for (const verb of ['lock', 'wait', 'claim']) {
      it(`leaves nothing renewed that comes when it is gone: ${verb}`, async function () {
        const id = await create();
        const relay = await WireRelay.start(await server.primary());
        const workerData = { uri: relay.uriFor('lock_release_exit'), id, duration: LONG, verb };
        const worker = new Worker(require.resolve('./fixtures/asking-worker'), { workerData });
        try {
          await once(worker, 'message');
          // Whatever it asks for is granted, and answered when nobody is there any more.
          relay.delay = 300;
          while ((await Order.findById(id)).locked <= new Date()) await pause(5);
          await worker.terminate();
          await becomesFree(id);
        } finally {
          relay.delay = 0;
          await worker.terminate();
          await relay.stop();
        }
      });
    }

    for (const [title, ending] of [
      ['that is terminated', 'terminate'],
      ['that calls process.exit()', 'exit'],
      ['that throws', 'throw'],
      ['that closes its connection and returns', 'return'],
    ]) {
      it(`${title} releases its renewed locks, and the process goes on`, async function () {
        const id = await create();
        const scene = Scene.play('workers', { uri, id, duration: LONG, ending, times: 1 });
        assert.deepEqual(await scene.next(), { held: [true] });
        assert.ok(await isFree(id));
        assert.equal(scene.end, undefined);
        assert.equal(scene.stderr, '');
      });
    }

    it('fifty times in turn neither crashes nor leaves a lock', async function () {
      const id = await create();
      const scene = Scene.play('workers', {
        uri,
        id,
        duration: LONG,
        ending: 'terminate',
        times: 50,
      });
      // Each of them gets the lock only because the one before it has let go.
      assert.deepEqual(await scene.next(), { held: Array.from({ length: 50 }, () => true) });
      assert.ok(await isFree(id));
    });
  });

  it('is listened for once, however often the library is loaded', async function () {
    const before = process.listenerCount('exit');
    const ids = await many(5);
    for (const id of ids) {
      for (const file of Object.keys(require.cache)) {
        if (/[\\/](lib[\\/]\w+|index|binding)\.js$/.test(file) && !file.includes('node_modules')) {
          delete require.cache[file];
        }
      }
      const schema = new mongoose.Schema({ name: String }, { collection: 'orders' });
      const own = connection.useDb(connection.name).model('Copy', schema.plugin(require('..')));
      await (await own.findById(id)).lock(LONG, { renew: true });
      own.db.deleteModel('Copy');
    }
    assert.ok(process.listenerCount('exit') - before <= 1);
  });
});
