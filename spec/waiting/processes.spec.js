/*
 * Waiting among processes: everybody gets a share, a killed holder's lock is handed over when it lapses, and whoever ends
 * while he waits leaves nothing behind. On a replica set, where releases are told, and on a single server, where they are
 * looked for.
 */
'use strict';

const assert = require('node:assert/strict');
const { setTimeout: pause } = require('node:timers/promises');
const lockRelease = require('../..');
const { Scene } = require('../fixtures/held-scene');
const { startReplicaSet, startSingle } = require('../support/deployment');
const mongoose = require('../support/mongoose');

const LONG = 600_000;
const file = require.resolve('./process');

for (const [title, start] of [
  ['replica set', startReplicaSet],
  ['single server', startSingle],
]) {
  describe(`processes that wait, on a ${title}`, function () {
    this.timeout(120_000);

    let server;
    let uri;
    let connection;
    let Order;

    before(async function () {
      server = await start();
      uri = server.uriFor('waiting');
      connection = await mongoose.createConnection(uri).asPromise();
      const schema = new mongoose.Schema({ name: String, n: Number }, { collection: 'orders' });
      Order = connection.model('Order', schema.plugin(lockRelease));
      await Order.init();
    });

    afterEach(() => Scene.killAll());

    after(async function () {
      await connection?.close();
      await server?.stop();
    });

    const play = (scene, args) => Scene.play(scene, { uri, ...args }, { file });
    const create = () => Order.create({ name: 'order', n: 0 });
    const again = (doc) => Order.findById(doc._id);
    const isLocked = async (doc) => {
      const $expr = { $gt: ['$locked', '$$NOW'] };
      return (await Order.collection.countDocuments({ _id: doc._id, $expr })) === 1;
    };

    it('each gets its share, one at a time', async function () {
      const doc = await create();
      const scenes = Array.from({ length: 8 }, () =>
        play('share', { id: doc._id, ms: 4000, work: 2 }),
      );
      await Promise.all(scenes.map((scene) => scene.next()));
      for (const scene of scenes) scene.send('go');
      const shares = await Promise.all(scenes.map((scene) => scene.next()));
      const counts = shares.map(({ count }) => count).toSorted((a, b) => a - b);
      const sum = counts.reduce((total, count) => total + count, 0);
      const longest = Math.max(...shares.map((share) => share.longest));
      console.log(`      ${title}: shares ${counts}, longest wait ${longest.toFixed(0)} ms`);
      assert.equal(
        shares.reduce((total, { overlaps }) => total + overlaps, 0),
        0,
      );
      assert.equal((await again(doc)).n, sum);
      assert.ok(counts[0] >= sum / 8 / 10, `${counts}`);
    });

    it('get the lock of one that was killed when it lapses', async function () {
      const doc = await create();
      const scene = play('hold', { id: doc._id, duration: 1500, renew: true });
      await scene.next();
      const waiting = (await again(doc)).lock(LONG, { wait: Infinity });
      await pause(1000);
      await scene.kill();
      const { locked: until } = await again(doc);
      const { $lock } = await waiting;
      const late = $lock.since - until;
      assert.ok(late >= 0 && late < 1000, `${late} ms after it lapsed`);
    });

    if (start === startSingle) return;

    for (const [ending, outcome, end] of [
      ['disconnect', { name: 'MongoTopologyClosedError' }, { code: 0, signal: null }],
      ['exit', undefined, { code: 3, signal: null }],
      ['throw', undefined, { code: 1, signal: null }],
      ['return', { locked: true }, { code: 0, signal: null }],
    ]) {
      it(`may end by ${ending} meanwhile`, async function () {
        const playing = [false, true].map(async (renew) => {
          const doc = await create();
          await doc.lock(LONG);
          const scene = play('end', { id: doc._id, ending, options: { renew } });
          assert.equal(await scene.next(), 'waiting');
          if (ending === 'return') await doc.release();
          if (outcome) {
            const { message, ...said } = await scene.next();
            assert.deepEqual(said, outcome, message);
          }
          assert.deepEqual(await scene.ended, end, scene.stderr);
          // What is renewed is released when the connection is closed; the other keeps its time.
          if (ending === 'return') return assert.equal(await isLocked(doc), !renew);
          await doc.release();
          await pause(200);
          return assert.equal(await isLocked(doc), false, 'nobody who is gone gets it');
        });
        await Promise.all(playing);
      });
    }

    it('may be threads that are terminated meanwhile, which leaves no lock behind', async function () {
      const playing = [false, true].map(async (renew) => {
        const doc = await create();
        await doc.lock(LONG);
        const scene = play('workers', { id: doc._id, count: 4, renew });
        assert.equal(await scene.next(), 'release');
        await doc.release();
        assert.deepEqual(await scene.next(), { locked: true });
        assert.equal(await scene.next(), 'released');
        await pause(200);
        assert.equal(await isLocked(doc), false);
        assert.equal(scene.end, undefined, 'the process lives on');
      });
      await Promise.all(playing);
    });
  });
}
