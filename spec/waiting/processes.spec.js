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
/** So many turns each of the processes is to have. */
const SHARE = 5;
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
      const scenes = Array.from({ length: 8 }, () => play('share', { id: doc._id, work: 2 }));
      await Promise.all(scenes.map((scene) => scene.next()));
      const begin = performance.now();
      for (const scene of scenes) scene.send('go');
      // Nobody starves: the last of them, too, comes to this in time.
      await Promise.all(
        scenes.map(async (scene) => {
          while ((await scene.next()).count < SHARE);
        }),
      );
      const ms = performance.now() - begin;
      for (const scene of scenes) scene.send('enough');
      const shares = await Promise.all(
        scenes.map(async (scene) => {
          for (;;) {
            const said = await scene.next();
            if (said.isOver) return said;
          }
        }),
      );
      const counts = shares.map(({ count }) => count).toSorted((a, b) => a - b);
      const longest = Math.max(...shares.map((share) => share.longest));
      console.log(
        `      ${title}: in ${ms.toFixed(0)} ms shares of ${counts}, longest wait ${longest.toFixed(0)} ms`,
      );
      const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
      assert.equal(sum(shares.map(({ overlaps }) => overlaps)), 0);
      assert.equal((await again(doc)).n, sum(counts));
      assert.ok(ms < 30_000, `${ms}`);
    });

    if (start === startSingle) return;

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

    it('may end by themselves or be ended meanwhile', async function () {
      const endings = [
        ['disconnect', { name: 'MongoTopologyClosedError' }, { code: 0, signal: null }],
        ['exit', undefined, { code: 3, signal: null }],
        ['throw', undefined, { code: 1, signal: null }],
        ['return', { locked: true }, { code: 0, signal: null }],
      ];
      const playing = endings.map(async ([ending, outcome, end], number) => {
        const renew = number % 2 === 0 || ending === 'exit';
        const doc = await create();
        await doc.lock(LONG);
        const scene = play('end', { id: doc._id, ending, options: { renew } });
        assert.equal(await scene.next(), 'waiting');
        if (ending === 'return') await doc.release();
        if (outcome) {
          const { message, ...said } = await scene.next();
          assert.deepEqual(said, outcome, message);
        }
        assert.deepEqual(await scene.ended, end, `${ending}: ${scene.stderr}`);
        // A lock that is not renewed keeps its time.
        if (ending === 'return') return assert.equal(await isLocked(doc), true);
        await doc.release();
        await pause(200);
        return assert.equal(await isLocked(doc), false, `nobody who is gone gets it: ${ending}`);
      });
      await Promise.all(playing);
    });

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

    it('may be threads that get the lock and end before they know, which leaves no lock behind', async function () {
      const playing = [false, true].map(async (renew) => {
        const doc = await create();
        await doc.lock(LONG);
        const scene = play('deaf', { id: doc._id, renew });
        assert.equal(await scene.next(), 'deaf');
        await doc.release();
        while (!(await isLocked(doc))) await pause(10);
        scene.send('end');
        assert.equal(await scene.next(), 'terminated');
        await pause(500);
        assert.equal(await isLocked(doc), false);
        assert.equal(scene.end, undefined, 'the process lives on');
      });
      await Promise.all(playing);
    });
  });
}
