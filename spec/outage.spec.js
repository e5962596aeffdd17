'use strict';
/*
 * What calls come to when the server is away, dies, freezes or steps down: each is answered, once and in time; what the
 * server granted before stays granted, and what it grants to a call that has been answered already is given back.
 */

const assert = require('node:assert/strict');
const { once } = require('node:events');
const fs = require('node:fs');
const net = require('node:net');
const { inspect } = require('node:util');
const mongoose = require('./support/mongoose');
const { startReplicaSet, startSingle } = require('./support/deployment');
const { lockAndRelease, lockableOn } = require('./support/lockable');
const { Relay } = require('./support/relay');

const { MongoError, MongoServerSelectionError } = mongoose.mongo;

/** Longer than any spec runs: a lock of this duration that is free again was given back. */
const LONG = 600000;
const HOST = '127.0.0.1';

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Resolves once `condition` resolves to something true; the time is no measure of anything. */
async function until(what, condition, withinMs = 60000) {
  const deadline = Date.now() + withinMs;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`${what}: not within ${withinMs} ms`);
    await pause(20);
  }
}

/** A port of this host where nobody listens. */
async function deadPort() {
  const server = net.createServer().listen(0, HOST);
  await once(server, 'listening');
  const { port } = server.address();
  server.close();
  await once(server, 'close');
  return port;
}

/** Stops a process, and waits until none of its threads runs any more: they stop one by one. */
async function freeze(pid) {
  process.kill(pid, 'SIGSTOP');
  const tasks = `/proc/${pid}/task`;
  if (!fs.existsSync(tasks)) return pause(500);
  const isStopped = (task) => {
    try {
      return /^State:\s+T/m.test(fs.readFileSync(`${tasks}/${task}/status`, 'utf8'));
    } catch {
      // It ended between the two calls: look again.
      return false;
    }
  };
  return until('the server is frozen', () => fs.readdirSync(tasks).every(isStopped));
}

/** How a call ends, with no rejection left over: `{ doc }` or `{ error }`. */
function outcome(promise) {
  return promise.then(
    (doc) => ({ doc }),
    (error) => ({ error }),
  );
}

/** Stores documents, named by their numbers. */
function stored(connection, count) {
  const names = Array.from({ length: count }, (_, number) => ({ name: `${number}` }));
  // Journaled, or a server that is killed right afterwards may lose them.
  return lockableOn(connection).insertMany(names, { writeConcern: { w: 'majority', j: true } });
}

/** The document as the server has it, the lock's own fields included. */
function raw(doc) {
  return doc.constructor.collection.findOne({ _id: doc._id });
}

/** Whether the document is free by the server's clock. */
async function isFree(doc) {
  const query = { _id: doc._id, $expr: { $lte: ['$locked', '$$NOW'] } };
  return (await doc.constructor.collection.countDocuments(query)) === 1;
}

function assertDriversError(error) {
  assert.ok(error instanceof MongoError, inspect(error));
  assert.ok(error.stack.includes(__filename), error.stack);
}

describe('outage', function () {
  this.timeout(120000);

  const opened = [];

  function open(uri, options) {
    const connection = mongoose.createConnection(uri, options);
    opened.push(connection);
    return connection.asPromise();
  }

  afterEach(async function () {
    await Promise.all(opened.splice(0).map((connection) => connection.close(true)));
  });

  describe('of a single server', function () {
    let server;
    let member;

    before(async function () {
      server = await startSingle();
      [member] = server.servers;
    });

    // Whatever a spec did to it, the next one finds it running.
    afterEach(async function () {
      if (member.pid === undefined) await member.start();
      else process.kill(member.pid, 'SIGCONT');
    });

    after(() => server?.stop());

    /** Ends the server, and waits until Mongoose knows. */
    async function away(connection) {
      const gone = once(connection, 'disconnected');
      await member.kill('SIGKILL');
      await gone;
    }

    it('gives the error of the driver when the server is away at the first lock', async function () {
      const connection = await open(server.uriFor('app'), {
        serverSelectionTimeoutMS: 500,
        heartbeatFrequencyMS: 500,
      });
      const [doc] = await stored(connection, 1);
      await away(connection);

      // What the lock is measured by: a command of Mongoose's own at the same moment.
      const own = await outcome(lockableOn(connection).findOne());
      const { error } = await outcome(doc.lock(LONG));
      // Mongoose 6 and 7 give the errors of their own queries a class of their own, after the driver's.
      assert.match(own.error.name, /^(Mongo|Mongoose)ServerSelectionError$/);
      assert.ok(error instanceof MongoServerSelectionError, inspect(error));
      assert.equal(error.name, 'MongoServerSelectionError');
      assertDriversError(error);
    });

    it('works again after the first lock has failed, when the server is back', async function () {
      const connection = await open(server.uriFor('app'), {
        serverSelectionTimeoutMS: 500,
        heartbeatFrequencyMS: 500,
      });
      const [doc] = await stored(connection, 1);
      await away(connection);
      assert.ok((await outcome(doc.lock(LONG))).error);

      await member.start();
      await until('Mongoose sees the server', () => connection.readyState === 1);
      assert.equal((await doc.lock(LONG)).$lock.held, true);
    });

    it('gives the error of the driver when only the native client cannot connect', async function () {
      const relay = await Relay.start({ host: HOST, port: member.port });
      try {
        const connection = await open(`mongodb://${HOST}:${relay.port}/app`, {
          directConnection: true,
          serverSelectionTimeoutMS: 1000,
          maxPoolSize: 1,
        });
        const [doc] = await stored(connection, 1);
        // What is connected stays so; whoever comes now finds nobody.
        relay.target = { host: HOST, port: await deadPort() };

        const { error } = await outcome(doc.lock(LONG));
        assert.ok(error instanceof MongoServerSelectionError, inspect(error));
        assertDriversError(error);

        relay.target = { host: HOST, port: member.port };
        assert.equal((await doc.lock(LONG)).$lock.held, true);
        // The driver's own close can hang on a connection that has just been cut.
        await connection.close(true);
      } finally {
        await relay.stop();
      }
    });

    it('times out as Mongoose buffers, on a connection that never opened', async function () {
      const connection = mongoose.createConnection(`mongodb://${HOST}:${await deadPort()}/app`, {
        serverSelectionTimeoutMS: 500,
      });
      opened.push(connection);
      const refused = outcome(connection.asPromise());
      const Lockable = lockableOn(connection, { bufferTimeoutMS: 500 });
      const doc = Lockable.hydrate({ _id: new mongoose.Types.ObjectId() });

      const { error } = await outcome(doc.lock(LONG));
      assert.ok(error instanceof mongoose.Error, inspect(error));
      assert.match(error.message, /buffering timed out after 500ms/);
      assert.ok((await refused).error instanceof mongoose.Error);
    });

    it('answers every call once when the server is killed, and works when it is back', async function () {
      const connection = await open(server.uriFor('app'), {
        serverSelectionTimeoutMS: 2000,
        heartbeatFrequencyMS: 500,
      });
      const docs = await stored(connection, 600);
      await lockAndRelease(connection);

      const answers = docs.map(() => []);
      let count = 0;
      const note = (number, error, doc) => {
        answers[number].push({ error, doc });
        count += 1;
      };
      docs.forEach((doc, number) => {
        if (number % 2) doc.lock(LONG, (error, locked) => note(number, error, locked));
        else
          doc.lock(LONG).then(
            (locked) => note(number, null, locked),
            (e) => note(number, e),
          );
      });
      await until('the first answers', () => count >= 50);
      await member.kill('SIGKILL');
      const early = count;
      await until('all answers', () => count >= docs.length);
      // Time for answers that should not come.
      await pause(500);

      assert.ok(early < docs.length, 'the server died in the middle');
      assert.ok(answers.every(({ length }) => length === 1));
      const errors = answers.flat().flatMap(({ error }) => error ?? []);
      for (const error of errors) assertDriversError(error);
      assert.ok(errors.length > 0);

      await member.start();
      const granted = docs.filter((_, number) => answers[number][0].doc);
      for (const doc of granted) {
        const { lockedBy } = await raw(doc);
        assert.equal(`${lockedBy.lease}`, `${doc.$lock.filter['lockedBy.lease']}`);
      }
      assert.ok(granted.length >= 50);
      assert.equal(await granted[0].lock(LONG), null);
      assert.ok(await granted[0].release());
      assert.equal((await granted[0].lock(LONG)).$lock.held, true);
    });

    it('carries a call over a restart that is shorter than its time', async function () {
      const connection = await open(server.uriFor('app'), { serverSelectionTimeoutMS: 60000 });
      const [doc] = await stored(connection, 1);
      await lockAndRelease(connection);

      await member.kill('SIGKILL');
      const call = outcome(doc.lock(LONG));
      await pause(300);
      await member.start();
      const { doc: locked, error } = await call;
      assert.ok(locked, inspect(error));
      assert.equal(locked.$lock.token, 1);
    });

    for (const connectTimeoutMS of [500, 30000]) {
      it(`answers while the server is frozen and gives back what it won late (connectTimeoutMS ${connectTimeoutMS})`, async function () {
        const connection = await open(server.uriFor('app'), {
          serverSelectionTimeoutMS: 1000,
          heartbeatFrequencyMS: 500,
          connectTimeoutMS,
        });
        const docs = await stored(connection, 20);
        // Connections for all of them: a command has to reach the frozen server's sockets.
        const warm = await Promise.all(docs.map((doc) => doc.lock(LONG)));
        await Promise.all(warm.map((doc) => doc.release()));

        await freeze(member.pid);
        const outcomes = await Promise.all(docs.map((doc) => outcome(doc.lock(LONG))));
        // Still frozen: whatever is known now was not the server's answer.
        for (const { error } of outcomes) assertDriversError(error);
        assert.ok(docs.every((doc) => doc.$lock === warm[docs.indexOf(doc)].$lock));
        process.kill(member.pid, 'SIGCONT');

        // It takes its time to see that the sockets are closed, or to answer them.
        const applied = async () => {
          const states = await Promise.all(docs.map(raw));
          return states.some(({ lockedBy }) => lockedBy.token === 2);
        };
        await until('the frozen server works off what it had received', applied);
        await until('every document is free', async () =>
          (await Promise.all(docs.map(isFree))).every(Boolean),
        );
        assert.equal((await docs[0].lock(LONG)).$lock.held, true);
      });
    }

    it('answers the calls of a closed connection while the server is frozen', async function () {
      const connection = await open(server.uriFor('app'), { serverSelectionTimeoutMS: 60000 });
      const docs = await stored(connection, 5);
      await lockAndRelease(connection);

      await freeze(member.pid);
      const calls = Promise.all(docs.map((doc) => outcome(doc.lock(LONG))));
      // Let them reach the sockets.
      await pause(200);
      await connection.close(true);
      for (const { error } of await calls) assertDriversError(error);
    });

    it('gives up a release that the server does not answer, and the fence stays', async function () {
      const connection = await open(server.uriFor('app'), {
        serverSelectionTimeoutMS: 1000,
        heartbeatFrequencyMS: 500,
      });
      const [doc] = await stored(connection, 1);
      const locked = await doc.lock(LONG);

      await freeze(member.pid);
      const { error } = await outcome(locked.release());
      assertDriversError(error);
      assert.equal(locked.$lock.held, false);
      process.kill(member.pid, 'SIGCONT');

      await until('the release that was on its way is applied', () => isFree(doc));
      const other = await lockableOn(connection).findById(doc._id);
      assert.ok(await other.lock(LONG));
      locked.name = 'changed';
      await assert.rejects(locked.save(), { code: 'ERR_LOCK_LOST' });
    });
  });

  describe('of the primary of three', function () {
    let set;

    before(async function () {
      set = await startReplicaSet({ members: 3, settings: { electionTimeoutMillis: 2000 } });
    });

    after(() => set?.stop());

    it('loses no lock, lets nobody in twice, and goes on after the election', async function () {
      const options = { serverSelectionTimeoutMS: 60000, heartbeatFrequencyMS: 500 };
      const [one, other] = await Promise.all([
        open(set.uriFor('app'), options),
        open(set.uriFor('app'), options),
      ]);
      const docs = await stored(one, 8);
      const [Ours, Theirs] = [lockableOn(one), lockableOn(other)];
      const kept = await Promise.all((await stored(one, 20)).map((doc) => doc.lock(LONG)));

      const holders = new Map(docs.map((doc) => [`${doc._id}`, 0]));
      const counts = { rounds: 0, crowded: 0, failed: [] };
      let going = true;
      async function load(Model, { _id }) {
        while (going) {
          const doc = await Model.findById(_id).catch(() => undefined);
          const { doc: locked, error } = doc ? await outcome(doc.lock(LONG)) : {};
          if (error) counts.failed.push(error);
          if (!locked) continue;
          holders.set(`${_id}`, holders.get(`${_id}`) + 1);
          if (holders.get(`${_id}`) > 1) counts.crowded += 1;
          await pause(1);
          holders.set(`${_id}`, holders.get(`${_id}`) - 1);
          // A release may fail; the lock is then still ours, and to be released again.
          while ((await outcome(locked.release())).error) await pause(50);
          counts.rounds += 1;
        }
      }
      const loads = docs.flatMap((doc) => [load(Ours, doc), load(Theirs, doc)]);
      await until('the load runs', () => counts.rounds > 50);

      const old = await set.primary();
      await old.kill('SIGKILL');
      const before = counts.rounds;
      await until('the load goes on', () => counts.rounds > before + 50, 120000);
      going = false;
      await Promise.all(loads);

      assert.equal(counts.crowded, 0);
      for (const error of counts.failed) assertDriversError(error);
      for (const locked of kept) {
        const seen = await Theirs.findById(locked._id);
        assert.equal(await seen.lock(LONG), null);
        assert.equal(locked.$lock.held, true);
        assert.equal((await locked.extend(LONG))?.id, locked.id);
        assert.equal((await locked.release())?.id, locked.id);
      }
      await old.start();
    });
  });
});
