'use strict';
/*
 * The errors that users see, class by class: what the server or the network says comes as the class of the user's own
 * driver, with code, name and labels, with the caller's stack and without a secret; the library's own are LockErrors.
 * Servers refuse and fail by real fail points. What becomes of the locks meanwhile is the subject of outage.spec.js.
 */

const assert = require('node:assert/strict');
const { inspect } = require('node:util');
const mongoose = require('./support/mongoose');
const { LockError } = require('..');
const { startSingle } = require('./support/deployment');
const { lockAndRelease, lockableOn } = require('./support/lockable');

const {
  MongoError,
  MongoNetworkError,
  MongoNetworkTimeoutError,
  MongoServerError,
  MongoWriteConcernError,
} = mongoose.mongo;

/** Longer than any spec runs: a lock of this duration that is free again was given back. */
const LONG = 600000;
/** Fail points hit the clients of this name, and not those that specs look with. */
const APP_NAME = 'failing';
/** Every character of it survives in a URI only when it is encoded. */
const ROOT = { username: 'root', password: 'gehe/im:@p%+ é' };
const SECRETS = [ROOT.password, encodeURIComponent(ROOT.password), 'reader-secret', 'old-secret'];

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** The error that a call ends with; it must end with one. */
function failure(promise) {
  return promise.then(
    (value) => assert.fail(`it succeeded: ${inspect(value)}`),
    (error) => error,
  );
}

/** The same, of a call that takes a callback. */
function calledBack(start) {
  return failure(
    new Promise((resolve, reject) => {
      start((error, value) => (error ? reject(error) : resolve(value)));
    }),
  );
}

/** What every error of a call must be like, whatever its class: it names its caller, and tells no secret. */
function assertWellMade(error) {
  assert.ok(error instanceof Error);
  assert.ok(error.stack.startsWith(`${error.name}: ${error.message}\n    at `), error.stack);
  assert.ok(error.stack.includes(__filename), error.stack);
  // Of what was made from a native report, nothing else is of interest.
  if (error instanceof MongoError) {
    assert.ok(error.stack.split('\n    at ')[1].includes(__filename), error.stack);
  }
  const text = `${error.message}\n${error.stack}\n${inspect(error, { depth: 10, showHidden: true })}`;
  for (const secret of SECRETS) assert.ok(!text.includes(secret), text);
}

describe('errors', function () {
  this.timeout(120000);

  let server;
  let member;
  let connection;
  const opened = [];

  async function open(options) {
    const made = mongoose.createConnection(server.uriFor('app', { appName: APP_NAME }), options);
    opened.push(made);
    return made.asPromise();
  }

  /** Lets the commands of the clients under test fail, findAndModify unless told otherwise. */
  function fail(mode, data) {
    return member.command({
      configureFailPoint: 'failCommand',
      mode,
      data: { failCommands: ['findAndModify'], appName: APP_NAME, ...data },
    });
  }

  function store(count = 1) {
    const names = Array.from({ length: count }, (_, number) => ({ name: `${number}` }));
    return lockableOn(connection).create(names);
  }

  function raw(doc) {
    return doc.constructor.collection.findOne({ _id: doc._id });
  }

  /** Resolves once the document is free by the server's clock. */
  async function freed(doc) {
    const deadline = Date.now() + 60000;
    const query = { _id: doc._id, $expr: { $lte: ['$locked', '$$NOW'] } };
    while ((await doc.constructor.collection.countDocuments(query)) === 0) {
      assert.ok(Date.now() < deadline, 'the document is still locked');
      await pause(20);
    }
  }

  before(async function () {
    server = await startSingle({ auth: ROOT });
    [member] = server.servers;
  });

  beforeEach(async function () {
    // A server in a fail point's hands does not say by itself that it is fine: the monitor has to look soon.
    connection = await open({ serverSelectionTimeoutMS: 2000, heartbeatFrequencyMS: 500 });
    // The native client is connected before anything fails.
    await lockAndRelease(connection);
  });

  afterEach(async function () {
    await fail('off');
    await Promise.all(opened.splice(0).map((made) => made.close(true)));
  });

  after(() => server?.stop());

  describe('that pass by themselves', function () {
    // Each attempt waits for the monitor; however slow the machine is, there is time for all of them.
    beforeEach(async function () {
      connection = await open({ serverSelectionTimeoutMS: 60000, heartbeatFrequencyMS: 500 });
      await lockAndRelease(connection);
    });

    const passing = {
      'a closed connection': { closeConnection: true },
      'InterruptedAtShutdown (11600)': { errorCode: 11600 },
      'InterruptedDueToReplStateChange (11602)': { errorCode: 11602 },
      'NotWritablePrimary (10107)': { errorCode: 10107 },
      'PrimarySteppedDown (189)': { errorCode: 189 },
      'ShutdownInProgress (91)': { errorCode: 91 },
    };

    for (const [name, data] of Object.entries(passing)) {
      it(`are not seen: the lock is taken once, after ${name}`, async function () {
        const [doc] = await store();
        await fail({ times: 1 }, data);
        const locked = await doc.lock(LONG);
        assert.equal(locked.$lock.token, 1);
        assert.equal(locked.$lock.held, true);
      });

      it(`are not seen: extended and released once, after ${name}`, async function () {
        const [doc] = await store();
        const locked = await doc.lock(60000);
        await fail({ times: 1 }, data);
        assert.ok(await locked.extend(LONG));
        assert.ok(locked.$lock.remaining > 60000);
        await fail({ times: 1 }, data);
        assert.ok(await locked.release());
        await freed(doc);
      });
    }

    it('are not seen when there are several in a row', async function () {
      const [doc] = await store();
      await fail({ times: 3 }, { closeConnection: true });
      assert.equal((await doc.lock(LONG)).$lock.token, 1);
    });

    it('are not seen when the write is done and its acknowledgement failed', async function () {
      const [doc] = await store();
      const writeConcernError = { code: 91, errmsg: 'shutting down' };
      await fail({ times: 1 }, { writeConcernError });
      const locked = await doc.lock(LONG);
      // The retry found its own lease: one acquisition.
      assert.equal(locked.$lock.token, 1);
      assert.equal((await raw(doc)).lockedBy.token, 1);

      await fail({ times: 1 }, { writeConcernError });
      assert.ok(await locked.extend(LONG));
      await fail({ times: 1 }, { writeConcernError });
      assert.ok(await locked.release());
    });

    it('are not seen when a server is only slow', async function () {
      const [doc] = await store();
      await fail({ times: 1 }, { blockConnection: true, blockTimeMS: 300 });
      assert.equal((await doc.lock(LONG)).$lock.token, 1);
    });
  });

  describe('that do not pass', function () {
    for (const [code, codeName] of [
      [2, 'BadValue'],
      [13, 'Unauthorized'],
      [112, 'WriteConflict'],
      [26, 'NamespaceNotFound'],
    ]) {
      it(`come as MongoServerError, with code and name: ${codeName}`, async function () {
        const [doc] = await store();
        await fail('alwaysOn', { errorCode: code, errorLabels: ['One', 'Two'] });
        const errors = [
          await failure(doc.lock(LONG)),
          await calledBack((callback) => doc.lock(LONG, callback)),
          await failure((await lockableOn(connection).findById(doc._id)).release()),
        ];
        for (const error of errors) {
          assert.ok(error instanceof MongoServerError, inspect(error));
          assert.equal(error.name, 'MongoServerError');
          assert.equal(error.code, code);
          assert.equal(error.codeName, codeName);
          assert.deepEqual([...error.errorLabels].sort(), ['One', 'Two']);
          assert.ok(error.hasErrorLabel('Two'));
          assertWellMade(error);
        }
      });
    }

    it('are like those of the driver for the same command', async function () {
      const [doc] = await store();
      await fail('alwaysOn', { errorCode: 26, errorLabels: ['One'] });
      const own = await failure(lockableOn(connection).findOneAndUpdate({}, { name: 'x' }));
      const error = await failure(doc.lock(LONG));
      assert.equal(error.constructor, own.constructor);
      for (const key of ['name', 'message', 'code', 'codeName', 'errorLabels']) {
        assert.deepEqual(error[key], own[key], key);
      }
    });

    it('come from extend and from the release of a holder too, and the lock stays', async function () {
      const [doc] = await store();
      const locked = await doc.lock(LONG);
      await fail('alwaysOn', { errorCode: 2 });
      for (const error of [
        await failure(locked.extend(LONG)),
        await calledBack((callback) => locked.extend(LONG, callback)),
        await failure(locked.release()),
        await calledBack((callback) => locked.release(callback)),
      ]) {
        assert.ok(error instanceof MongoServerError, inspect(error));
        assert.equal(error.code, 2);
        assertWellMade(error);
      }
      await fail('off');
      assert.ok(await locked.release());
      await freed(doc);
    });

    it('come as MongoWriteConcernError, and the lock is given back in the background', async function () {
      const [doc] = await store();
      const writeConcernError = {
        code: 64,
        codeName: 'WriteConcernFailed',
        errmsg: 'waiting for replication timed out',
        errInfo: { wtimeout: true },
      };
      await fail({ times: 1 }, { writeConcernError, errorLabels: ['One'] });
      const error = await failure(doc.lock(LONG));
      assert.ok(error instanceof MongoWriteConcernError, inspect(error));
      assert.ok(error instanceof MongoServerError);
      assert.equal(error.name, 'MongoWriteConcernError');
      assert.equal(error.code, 64);
      assert.equal(error.message, 'waiting for replication timed out');
      assert.ok(error.hasErrorLabel('One'));
      assertWellMade(error);

      await freed(doc);
      // It had been written, and nobody else has locked it.
      assert.equal((await raw(doc)).lockedBy.token, 1);
      assert.equal(doc.$lock, undefined);
    });

    it('come in time when the server does not answer, and the lock is given back', async function () {
      const [doc] = await store();
      await fail({ times: 1 }, { blockConnection: true, blockTimeMS: 5000 });
      let isBlocked = true;
      const answered = pause(5000).then(() => {
        isBlocked = false;
      });
      const error = await failure(doc.lock(LONG));
      assert.ok(isBlocked, 'the answer came before the server went on');
      assert.ok(error instanceof MongoNetworkTimeoutError, inspect(error));
      assert.match(error.message, /within 2000 ms/);
      assertWellMade(error);
      await answered;
      await freed(doc);
    });

    it('come as MongoNetworkError when connections are closed again and again', async function () {
      const [doc] = await store();
      await fail('alwaysOn', { closeConnection: true });
      for (const error of [
        await failure(doc.lock(LONG)),
        await calledBack((callback) => doc.lock(LONG, callback)),
      ]) {
        assert.ok(error instanceof MongoNetworkError, inspect(error));
        assertWellMade(error);
      }
      await fail('off');
      // An attempt that was on its way may still win, and gives the lock back then.
      let locked = null;
      for (let tries = 0; locked === null && tries < 200; tries += 1) {
        locked = await doc.lock(LONG);
        if (locked === null) await pause(50);
      }
      assert.equal(locked?.$lock.held, true);
    });

    it('are objects of their own for each call', async function () {
      const docs = await store(20);
      await fail('alwaysOn', { errorCode: 2 });
      const errors = await Promise.all(docs.map((doc) => failure(doc.lock(LONG))));
      assert.equal(new Set(errors).size, docs.length);
    });
  });

  describe('of authentication', function () {
    /** A connection of a user of its own, whose password can be changed. */
    async function openAs(user, pwd, roles) {
      await member.command({ createUser: user, pwd, roles }, 'app');
      const uri = server.uriFor('app').replace(/\/\/.*@/, `//${user}:${pwd}@`);
      const made = mongoose.createConnection(uri, { authSource: 'app' });
      opened.push(made);
      return made.asPromise();
    }

    it('come as MongoServerError 13 when the user may only read', async function () {
      const [doc] = await store();
      const reading = await openAs('reader', 'reader-secret', ['read']);
      const seen = await lockableOn(reading).findById(doc._id);
      const another = await lockableOn(reading).findById(doc._id);
      for (const error of [await failure(seen.lock(LONG)), await failure(another.release())]) {
        assert.ok(error instanceof MongoServerError, inspect(error));
        assert.equal(error.code, 13);
        assert.equal(error.codeName, 'Unauthorized');
        assertWellMade(error);
      }
      assert.equal((await doc.lock(LONG)).$lock.held, true);
    });

    it('come as MongoServerError 18 when the password is not valid any more', async function () {
      const [doc] = await store();
      const writing = await openAs('writer', 'old-secret', ['readWrite']);
      const seen = await lockableOn(writing).findById(doc._id);
      await member.command({ updateUser: 'writer', pwd: 'new-secret' }, 'app');
      const error = await failure(seen.lock(LONG));
      assert.ok(error instanceof MongoServerError, inspect(error));
      assert.equal(error.code, 18);
      assert.equal(error.codeName, 'AuthenticationFailed');
      assertWellMade(error);
    });

    it('never carry the password of the URI, whatever goes wrong', async function () {
      const [doc] = await store();
      await fail({ times: 1 }, { errorCode: 2 });
      assertWellMade(await failure(doc.lock(LONG)));
      const away = await open({ serverSelectionTimeoutMS: 500, heartbeatFrequencyMS: 500 });
      const seen = await lockableOn(away).findById(doc._id);
      await lockAndRelease(away);
      await member.kill('SIGKILL');
      try {
        const error = await failure(seen.lock(LONG));
        assert.ok(error instanceof MongoError, inspect(error));
        assertWellMade(error);
      } finally {
        await member.start();
      }
    });
  });

  describe('of the library itself', function () {
    it('are LockErrors with a stable code', async function () {
      const error = await failure(new (lockableOn(connection))({ name: 'new' }).lock(LONG));
      assert.ok(error instanceof LockError, inspect(error));
      assert.equal(error.name, 'LockError');
      assert.equal(Object.prototype.toString.call(error), '[object Error]');
      assert.equal(error.code, 'ERR_LOCK_NOT_STORED');
      assert.ok(!(error instanceof MongoError));
      assertWellMade(error);
    });

    it('name the caller for every argument that is refused', async function () {
      const [doc] = await store();
      for (const [start, Type] of [
        [() => doc.lock('10'), TypeError],
        [() => doc.lock(NaN), RangeError],
        [() => doc.lock(10, { nonsense: true }), TypeError],
        [() => doc.extend(-1), RangeError],
      ]) {
        const error = await failure(start());
        assert.ok(error instanceof Type, inspect(error));
        assert.equal(error.code, 'ERR_LOCK_ARGUMENT');
        assert.ok(error.stack.includes(__filename), error.stack);
      }
    });

    it('give the error that led to them as their cause', async function () {
      const [doc] = await store();
      const locked = await doc.lock(1);
      await freed(doc);
      const other = await lockableOn(connection).findById(doc._id);
      assert.ok(await other.lock(LONG));
      locked.name = 'changed';
      const error = await failure(locked.save());
      assert.ok(error instanceof LockError, inspect(error));
      assert.equal(error.code, 'ERR_LOCK_LOST');
      assert.ok(error.cause instanceof mongoose.Error, inspect(error.cause));
      assertWellMade(error);
    });

    it('come from a connection that was closed, as from Mongoose itself', async function () {
      const [doc] = await store();
      await connection.close();
      const error = await failure(
        Promise.race([doc.lock(LONG), pause(20000).then(() => ({ answered: false }))]),
      );
      assert.ok(error instanceof mongoose.Error || error instanceof MongoError, inspect(error));
    });
  });
});
