/*
 * What is behind the waiting: the change stream and its failures, the poll, what a crowd costs the server, and what
 * becomes of an attempt that nobody waits for any more. The contract is in contract/waiting.js, processes are in waiting/.
 */
'use strict';

const assert = require('node:assert/strict');
const { setTimeout: pause } = require('node:timers/promises');
const lockRelease = require('..');
const { WireRelay } = require('./faults/wire-relay');
const { startReplicaSet, startSingle } = require('./support/deployment');
const mongoose = require('./support/mongoose');

const LONG = 600_000;
const FOREVER = { wait: Infinity };
/** The poll that is the safety net under a stream comes after 2.5 s at the earliest: what is sooner was news. */
const NEWS_MS = 2000;
/** Much longer than a hand-over takes on a busy machine, and shorter than the polls of those who have waited for long. */
const SOON_MS = 400;

/** The same specs on both kinds of servers, and those for one of them. */
function onBoth(specs) {
  for (const [title, start] of [
    ['replica set', startReplicaSet],
    ['single server', startSingle],
  ]) {
    describe(`waiting on a ${title}`, function () {
      this.timeout(120_000);
      const stage = new Stage();
      before(() => stage.begin(start));
      afterEach(() => {
        stage.abort();
        stage.renewSignal();
      });
      after(() => stage.end());
      specs(stage, title === 'replica set');
    });
  }
}

class Stage {
  async begin(start) {
    this.server = await start();
    this.connection = await mongoose.createConnection(this.server.uriFor('waiting')).asPromise();
    this.admin = this.connection.db.admin();
    this.count = 0;
    this.renewSignal();
  }

  /** What a spec's waits are to end with, also when it fails: they would be counted in the next. */
  renewSignal() {
    const controller = new AbortController();
    this.signal = controller.signal;
    this.abort = () => controller.abort();
  }

  async end() {
    await this.connection?.close();
    await this.server?.stop();
  }

  /** A model on a collection of its own, on this connection or another. */
  model({ plugin, connection = this.connection, like } = {}) {
    this.count += 1;
    const schema = new mongoose.Schema(
      { name: String },
      { collection: like?.collection.collectionName ?? `orders${this.count}` },
    );
    return connection.model(`Order${this.count}`, schema.plugin(lockRelease, plugin));
  }

  /** A document, locked by one who is not the one that waits. */
  async locked(Model, duration = LONG) {
    const doc = await Model.create({ name: 'awaited' });
    const holder = await Model.findById(doc._id);
    assert.ok(await holder.lock(duration));
    return { doc, holder };
  }

  /** The cursors of change streams that are open on the model's collection, idle or not, by their ids. */
  async streams(Model) {
    const pipeline = [{ $currentOp: { allUsers: true, idleCursors: true } }];
    const operations = await this.connection.getClient().db('admin').aggregate(pipeline).toArray();
    const ids = operations
      .filter(({ ns, cursor }) => {
        const stages = cursor?.originatingCommand?.pipeline ?? [];
        return ns === `waiting.${Model.collection.collectionName}` && stages[0]?.$changeStream;
      })
      // A small one is read as a number.
      .map(({ cursor }) => mongoose.mongo.Long.fromString(String(cursor.cursorId)));
    return [...new Map(ids.map((id) => [String(id), id])).values()];
  }

  /** Resolves with the streams once there are so many. */
  async untilStreams(Model, count) {
    for (const end = performance.now() + 20_000; ;) {
      const streams = await this.streams(Model);
      if (streams.length === count) return streams;
      assert.ok(performance.now() < end, `${streams.length} streams instead of ${count}`);
      await pause(20);
    }
  }

  async commands() {
    const { metrics } = await this.admin.command({ serverStatus: 1 });
    const total = (name) => Number(metrics.commands[name].total);
    const { find, findAndModify, getMore, aggregate } = Object.fromEntries(
      ['find', 'findAndModify', 'getMore', 'aggregate'].map((name) => [name, total(name)]),
    );
    return { find, findAndModify, getMore, aggregate };
  }

  /** How many commands of each kind reach the server while `work` is done, and what it came to. */
  async commandsDuring(work) {
    const before = await this.commands();
    const result = await work();
    const after = await this.commands();
    for (const name of Object.keys(after)) after[name] -= before[name];
    return { ...after, result };
  }

  /** Resolves once there have been so many looks since `before`, and all wait: nobody looks but the poll. */
  async untilQuiet(looks, before) {
    for (const end = performance.now() + 30_000; ;) {
      const { find, findAndModify } = await this.commandsDuring(() => pause(400));
      const total = (await this.commands()).find - before.find;
      if (total >= looks && find + findAndModify <= 8) return;
      assert.ok(performance.now() < end, `${find} looks, ${findAndModify} attempts in 400 ms`);
    }
  }

  /** A connection of its own, for `use(connection)`. */
  async beside(use, uri = this.server.uriFor('waiting')) {
    const own = await mongoose.createConnection(uri).asPromise();
    try {
      return await use(own);
    } finally {
      await own.close();
    }
  }

  /** A model on a connection through a relay, for `use(Model, relay)`. */
  async throughRelay({ like, plugin }, use) {
    const relay = await WireRelay.start(await this.server.primary());
    try {
      const uri = relay.uriFor('waiting', { serverSelectionTimeoutMS: 5000 });
      const begin = (connection) => use(this.model({ connection, like, plugin }), relay);
      return await this.beside(begin, uri);
    } finally {
      relay.delay = 0;
      await relay.stop();
    }
  }
}

const isLocked = async (doc) => {
  const $expr = { $gt: ['$locked', '$$NOW'] };
  return (await doc.collection.countDocuments({ _id: doc._id, $expr })) === 1;
};

/** Releases after a while; how many milliseconds later the waiter has the lock. */
async function handOver(holder, waiting) {
  await pause(20 + 60 * Math.random());
  const released = holder.release().then(() => performance.now());
  const doc = await waiting;
  const now = performance.now();
  assert.ok(doc?.$lock.held);
  return Math.max(0, now - (await released));
}

/** So many documents that are waited for through `Model`, released one after the other when the polls have become rare. */
async function handOvers(Model, Holder, count) {
  const pairs = await Promise.all(
    Array.from({ length: count }, async () => {
      const holder = await Holder.create({ name: 'awaited' });
      assert.ok(await holder.lock(LONG));
      return { holder, waiting: Model.hydrate({ _id: holder._id }).lock(LONG, FOREVER) };
    }),
  );
  await pause(1500);
  const latencies = [];
  for (const { holder, waiting } of pairs) latencies.push(await handOver(holder, waiting));
  return latencies;
}

const median = (numbers) => numbers.toSorted((a, b) => a - b)[numbers.length >> 1];

onBoth((stage, isReplicaSet) => {
  const title = isReplicaSet ? 'replica set' : 'single server';

  it('hears of every release of another client’s, in good time', async function () {
    // Where there is a stream, no poll could be it.
    const plugin = { pollInterval: isReplicaSet ? 60_000 : 250 };
    const Order = stage.model({ plugin });
    await stage.beside(async (connection) => {
      const Other = stage.model({ connection, like: Order });
      const latencies = await handOvers(Order, Other, 30);
      const [middle, most] = [median(latencies), Math.max(...latencies)];
      console.log(
        `      ${title}: handed over after ${middle.toFixed(1)} ms, at most ${most.toFixed(0)}`,
      );
      assert.ok(most < NEWS_MS, `${latencies}`);
      assert.ok(middle < SOON_MS, `${latencies}`);
    });
  });

  it('hands over within the process without the server’s help', async function () {
    const Order = stage.model({ plugin: { pollInterval: 60_000 } });
    const latencies = await handOvers(Order, Order, 10);
    assert.ok(median(latencies) < SOON_MS, `${latencies}`);
  });

  it('costs one look per poll, however many wait on however many documents', async function () {
    const Order = stage.model();
    const count = 1000;
    const rows = Array.from({ length: count }, () => ({ name: 'crowd', locked: new Date(8e15) }));
    const docs = await Order.insertMany(rows);
    const options = { ...FOREVER, signal: stage.signal };
    let aborted = 0;
    let waiting;
    const before = await stage.commands();
    const begin = await stage.commandsDuring(async () => {
      waiting = docs.map((doc) => doc.lock(LONG, options).catch(() => (aborted += 1)));
      await stage.untilQuiet(count, before);
    });
    assert.equal(begin.findAndModify, count, 'each has tried once');
    assert.ok(begin.find >= count && begin.find < count + 200, `${begin.find} looks`);
    const { heapUsed, rss } = process.memoryUsage();
    const seconds = 2;
    const during = await stage.commandsDuring(() => pause(1000 * seconds));
    const { find, findAndModify, getMore } = during;
    console.log(
      `      ${title}: 1,000 on 1,000 documents cost ${(find / seconds).toFixed(1)} find/s, ${(getMore / seconds).toFixed(1)} getMore/s`,
    );
    assert.equal(findAndModify, 0);
    assert.ok(find <= (isReplicaSet ? 3 : 12 * seconds), `${find} looks`);
    assert.ok(isReplicaSet || find >= 1, 'somebody looks');
    if (isReplicaSet) assert.equal((await stage.streams(Order)).length, 1);
    const grown = process.memoryUsage();
    assert.ok(grown.rss - rss < 30e6 && grown.heapUsed - heapUsed < 30e6, 'flat memory');
    stage.abort();
    await Promise.all(waiting);
    assert.equal(aborted, count);
  });

  it('costs one attempt and one look, however many wait for one document', async function () {
    const Order = stage.model();
    const { doc, holder } = await stage.locked(Order);
    const count = 1000;
    const served = [];
    let waiting;
    const begin = await stage.commandsDuring(async () => {
      waiting = Array.from({ length: count }, async (_, number) => {
        const own = Order.hydrate({ _id: doc._id });
        assert.ok(await own.lock(LONG, { ...FOREVER, signal: stage.signal }));
        served.push(number);
        // The others go when it has been seen that each gets it in his turn.
        if (number < 100) await own.release();
        else if (number === 100) await Order.collection.deleteOne({ _id: doc._id });
      });
      await pause(1000);
    });
    assert.equal(begin.findAndModify, 1);
    assert.ok(begin.find <= (isReplicaSet ? 5 : 40), `${begin.find} looks`);
    const first = waiting.slice(0, 101);
    const rest = Promise.allSettled(waiting.slice(101));
    const turns = await stage.commandsDuring(async () => {
      await holder.release();
      await Promise.all(first);
    });
    console.log(
      `      ${title}: 1,000 on one document cost ${turns.findAndModify} findAndModify for 101 turns`,
    );
    assert.deepEqual(
      served,
      served.map((_, number) => number),
    );
    // A lock and a release each; now and then the server's news, or a poll, comes between the two.
    assert.ok(turns.findAndModify <= 202 + 40, `${turns.findAndModify}`);
    const ends = await rest;
    assert.ok(ends.every(({ status, reason }) => status === 'rejected' && /null/.test(reason)));
  });

  it('looks at a lock that is renewed no more than one and a half times per duration', async function () {
    // So that the polls of all documents do not count.
    const Order = stage.model({ plugin: { pollInterval: 60_000 } });
    const { doc, holder } = await stage.locked(Order, 50);
    await pause(60);
    const duration = 600;
    const durations = 4;
    assert.ok(await holder.lock(duration, { renew: true }));
    // The polls that follow the beginning are over by then.
    const waiting = doc.lock(LONG, { ...FOREVER, signal: stage.signal });
    await pause(duration);
    const { find, findAndModify } = await stage.commandsDuring(() => pause(durations * duration));
    // One for each end of the measurement, and what the safety net adds.
    const polls = isReplicaSet ? 3 : 4;
    assert.ok(find <= 1.5 * durations + 2 + polls, `${find} looks`);
    assert.ok(find >= durations / 2, `${find} looks`);
    assert.ok(findAndModify <= 3 * durations + 1, 'the renewals alone: nobody tries in vain');
    await holder.release();
    assert.ok(await waiting);
  });

  it('finishes an attempt that nobody waits for any more, and releases what it won', async function () {
    const Order = stage.model();
    const slowly = { like: Order, plugin: { pollInterval: 50 } };
    const abandon = (wait, abortMs) =>
      stage.throughRelay(slowly, async (Slow, relay) => {
        const { doc, holder } = await stage.locked(Order);
        const slow = Slow.hydrate({ _id: doc._id });
        const looked = new Promise((resolve) => {
          relay.judge = ({ find, projection }) => void (find && projection?.left && resolve());
        });
        const controller = new AbortController();
        const waiting = slow.lock(LONG, { wait, signal: controller.signal });
        await looked;
        // Its first attempt is over; the one that follows the release takes its time.
        relay.judge = ({ findAndModify }) => {
          if (findAndModify) relay.delay = 2000;
        };
        await holder.release();
        if (abortMs) setTimeout(() => controller.abort(new Error('enough')), abortMs);
        const outcome = await waiting.catch(({ message }) => message);
        assert.equal(relay.delay, 2000, 'it was on its way');
        relay.judge = undefined;
        relay.delay = 0;
        for (const end = performance.now() + 20_000; ;) {
          const { lockedBy } = await doc.collection.findOne({ _id: doc._id });
          if (lockedBy.token > holder.$lock.token && !(await isLocked(doc))) break;
          assert.ok(performance.now() < end, 'it has won, and released');
          await pause(20);
        }
        assert.equal(slow.$lock, undefined);
        return outcome;
      });
    const outcomes = await Promise.all([abandon(1200), abandon(Infinity, 1000)]);
    assert.deepEqual(outcomes, [null, 'enough']);
  });

  it('takes one signal for any number of waits, without a warning or a leak', async function () {
    const Order = stage.model();
    const { doc, holder } = await stage.locked(Order);
    const controller = new AbortController();
    const { signal } = controller;
    const warnings = [];
    const onWarning = (warning) => warnings.push(warning);
    process.on('warning', onWarning);
    let listeners = 0;
    const { addEventListener, removeEventListener } = signal;
    signal.addEventListener = (...args) => {
      listeners += 1;
      addEventListener.apply(signal, args);
    };
    signal.removeEventListener = (...args) => {
      listeners -= 1;
      removeEventListener.apply(signal, args);
    };
    for (let round = 0; round < 5; round++) {
      const docs = Array.from({ length: 100 }, () => Order.hydrate({ _id: doc._id }));
      const ends = await Promise.all(docs.map((own) => own.lock(LONG, { wait: 30, signal })));
      assert.ok(ends.every((end) => end === null));
      assert.equal(listeners, 0);
    }
    const waiting = Array.from({ length: 50 }, () =>
      Order.hydrate({ _id: doc._id }).lock(LONG, { ...FOREVER, signal }),
    );
    await pause(50);
    assert.equal(listeners, 1);
    controller.abort(new Error('all of you'));
    const ends = await Promise.allSettled(waiting);
    assert.ok(ends.every(({ reason }) => reason === signal.reason));
    await pause(10);
    process.off('warning', onWarning);
    assert.deepEqual(warnings, []);
    await holder.release();
    assert.ok(await doc.lock(LONG), 'none of them has it');
  });

  if (isReplicaSet) withStreams(stage);
  else withoutStreams(stage);
});

function withStreams(stage) {
  const wake = async (Order, rounds) => {
    for (let round = 0; round < rounds; round++) {
      const { doc, holder } = await stage.locked(Order);
      assert.ok((await handOver(holder, doc.lock(LONG, FOREVER))) < NEWS_MS);
    }
  };

  it('has one stream per collection, opened for the first and closed after the last', async function () {
    const Order = stage.model();
    const Special = Order.discriminator(
      `Special${stage.count}`,
      new mongoose.Schema({ special: Number }),
    );
    const free = await Order.create({ name: 'free' });
    assert.ok(await free.lock(LONG, FOREVER));
    assert.deepEqual(await stage.streams(Order), [], 'who need not wait needs none');

    const { doc, holder } = await stage.locked(Order);
    const waiting = doc.lock(LONG, FOREVER);
    const [id] = await stage.untilStreams(Order, 1);
    for (let round = 0; round < 8; round++) {
      const other = await stage.locked(round % 2 ? Order : Special);
      const waits = [other.doc.lock(LONG, FOREVER), other.doc.lock(LONG, { wait: 1 })];
      await handOver(other.holder, waits[0]);
      assert.equal(await waits[1], null);
      const streams = await stage.streams(Order);
      assert.deepEqual(streams.map(String), [String(id)], 'the same as before');
    }
    await holder.release();
    assert.ok(await waiting);
    // The next may come at once.
    await pause(300);
    const next = await stage.locked(Order);
    await handOver(next.holder, next.doc.lock(LONG, FOREVER));
    assert.deepEqual((await stage.streams(Order)).map(String), [String(id)]);
    await stage.untilStreams(Order, 0);
  });

  it('ends all who wait for a document as soon as it is deleted', async function () {
    const Order = stage.model();
    const { doc } = await stage.locked(Order);
    const waiting = Array.from({ length: 20 }, () =>
      Order.hydrate({ _id: doc._id }).lock(LONG, FOREVER),
    );
    await stage.untilStreams(Order, 1);
    await pause(100);
    const start = performance.now();
    await Order.collection.deleteOne({ _id: doc._id });
    assert.deepEqual(
      await Promise.all(waiting),
      waiting.map(() => null),
    );
    assert.ok(performance.now() - start < NEWS_MS);
    const other = await stage.locked(Order);
    const dropped = other.doc.lock(LONG, FOREVER);
    await pause(100);
    await Order.collection.drop();
    assert.equal(await dropped, null);
  });

  it('goes on when its cursor is killed', async function () {
    const Order = stage.model();
    const { doc, holder } = await stage.locked(Order);
    const waiting = doc.lock(LONG, FOREVER);
    let killed = 0;
    for (let round = 0; round < 6; round++) {
      const cursors = await stage.untilStreams(Order, 1);
      const killCursors = Order.collection.collectionName;
      const reply = await stage.connection.db.command({ killCursors, cursors });
      killed += reply.cursorsKilled.length;
      await wake(Order, 1);
    }
    assert.ok(killed >= 3, `${killed} were killed`);
    await handOver(holder, waiting);
  });

  it('goes on when the primary steps down', async function () {
    const Order = stage.model();
    const { doc, holder } = await stage.locked(Order);
    const waiting = doc.lock(LONG, FOREVER);
    await stage.untilStreams(Order, 1);
    const primary = await stage.server.primary();
    await primary.command({ replSetStepDown: 1, secondaryCatchUpPeriodSecs: 0, force: true });
    await pause(200);
    await stage.server.primary();
    await handOver(holder, waiting);
    await wake(Order, 3);
  });
}

function withoutStreams(stage) {
  it('sleeps until the lock lapses, and looks in between at longer and longer intervals', async function () {
    const Order = stage.model({ plugin: { pollInterval: 1000 } });
    const { doc } = await stage.locked(Order, 2500);
    const { locked: until } = await Order.findById(doc._id);
    const { find, findAndModify, result } = await stage.commandsDuring(() =>
      doc.lock(LONG, FOREVER),
    );
    const late = result.$lock.since - until;
    assert.ok(late >= 0 && late < 700, `${late} ms after it lapsed`);
    assert.ok(find >= 4 && find <= 25, `${find} looks`);
    assert.equal(findAndModify, 2, 'the first attempt, and the one when it has lapsed');
  });

  it('looks as often as pollInterval says', async function () {
    const looks = async (pollInterval) => {
      const Order = stage.model({ plugin: { pollInterval } });
      const { doc } = await stage.locked(Order);
      const waiting = doc.lock(LONG, { ...FOREVER, signal: stage.signal });
      await pause(1500);
      const { find } = await stage.commandsDuring(() => pause(1200));
      stage.abort();
      stage.renewSignal();
      await assert.rejects(waiting, { name: 'AbortError' });
      return find;
    };
    const [often, seldom] = [await looks(20), await looks(500)];
    assert.ok(often >= 3 * seldom, `${often} and ${seldom}`);
    assert.ok(seldom >= 1);
  });
}

describe('waiting without the permission to watch', function () {
  this.timeout(120_000);
  const stage = new Stage();
  const password = 'secret';

  before(async function () {
    await stage.begin(() => startReplicaSet({ auth: { username: 'root', password } }));
    const { db } = stage.connection;
    const privileges = [
      { resource: { db: 'waiting', collection: '' }, actions: ['find', 'insert', 'update'] },
    ];
    await db.command({ createRole: 'locker', privileges, roles: [] });
    await db.command({ createUser: 'locker', pwd: password, roles: ['locker'] });
  });

  after(() => stage.end());

  it('is waiting all the same, by looking', async function () {
    const Order = stage.model();
    await Order.init();
    const uri = stage.server
      .uriFor('waiting')
      .replace('root:', 'locker:')
      .replace('authSource=admin', 'authSource=waiting');
    await stage.beside(async (connection) => {
      const Mine = stage.model({ connection, like: Order });
      const latencies = [];
      for (let round = 0; round < 10; round++) {
        const { doc, holder } = await stage.locked(Order);
        const waiting = Mine.hydrate({ _id: doc._id }).lock(LONG, FOREVER);
        latencies.push(await handOver(holder, waiting));
      }
      assert.ok(Math.max(...latencies) < NEWS_MS, `${latencies}`);
      assert.deepEqual(await stage.streams(Mine), []);
    }, uri);
  });
});
