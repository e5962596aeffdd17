/*
 * Where a lock goes: to the server and the database that Mongoose's connection means, whatever way it was told, also
 * when that changes, or is not known yet at the call.
 */
'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { inspect } = require('node:util');
const mongoose = require('../support/mongoose');
const { startReplicaSet, startSingle } = require('../support/deployment');
const { lockAndRelease, lockableOn, lockableSchema } = require('../support/lockable');

/** The document as the server has it, read past every model. */
function raw(connection, dbName, _id) {
  return connection.getClient().db(dbName).collection('lockables').findOne({ _id });
}

describe('connection: topology', function () {
  this.timeout(180000);

  const opened = [];

  function open(uri, options) {
    const connection = mongoose.createConnection(uri, options);
    opened.push(connection);
    return connection.asPromise();
  }

  afterEach(async function () {
    await Promise.all(opened.splice(0).map((connection) => connection.close()));
  });

  describe('of a replica set of three', function () {
    let set;
    let primary;
    let secondaries;

    before(async function () {
      set = await startReplicaSet({ members: 3 });
      primary = await set.primary();
      secondaries = set.servers.filter((server) => server !== primary);
    });

    after(() => set?.stop());

    const hostOf = (server) => `${server.host}:${server.port}`;

    it('finds the primary from a seed list of one secondary', async function () {
      const uri = set.uriFor('app').replace(set.hosts, hostOf(secondaries[0]));
      await lockAndRelease(await open(uri));
    });

    it('finds it from a seed list in which one member is away', async function () {
      await secondaries[1].kill('SIGKILL');
      try {
        await lockAndRelease(await open(set.uriFor('app')));
      } finally {
        await secondaries[1].start();
      }
    });

    it('goes to the primary whatever the readPreference', async function () {
      for (const readPreference of ['secondary', 'nearest']) {
        await lockAndRelease(await open(set.uriFor('app', { readPreference })));
      }
    });

    it('stays with the one server of a directConnection', async function () {
      await lockAndRelease(
        await open(`mongodb://${hostOf(primary)}/app`, { directConnection: true }),
      );
    });

    it('gives the error of a secondary that directConnection leads to', async function () {
      const writing = await open(set.uriFor('app', { w: '3' }));
      const stored = await lockableOn(writing).create({ name: 'round' });
      const connection = await open(`mongodb://${hostOf(secondaries[0])}/app`, {
        directConnection: true,
        readPreference: 'secondaryPreferred',
        serverSelectionTimeoutMS: 2000,
      });
      const seen = await lockableOn(connection).findById(stored._id);
      assert.ok(seen);

      await assert.rejects(seen.lock(60000), (error) => {
        assert.ok(error instanceof mongoose.mongo.MongoError, inspect(error));
        assert.ok(!('code' in error) || error.code === 10107, inspect(error));
        return true;
      });
      assert.ok(await stored.lock(60000), 'the document is free');
    });
  });

  describe('of two servers', function () {
    let first;
    let second;

    before(async function () {
      [first, second] = await Promise.all([startSingle(), startSingle()]);
    });

    after(async function () {
      await Promise.all([first?.stop(), second?.stop()]);
    });

    it('locks in the database that the option dbName names, not in the URI’s', async function () {
      const connection = await open(first.uriFor('named'), { dbName: 'chosen' });
      const { _id } = await lockAndRelease(connection);
      assert.ok((await raw(connection, 'chosen', _id)).lockedBy);
      assert.equal(await raw(connection, 'named', _id), null);
    });

    it('locks in the database "test" when none is named', async function () {
      const connection = await open(first.uri);
      const { _id } = await lockAndRelease(connection);
      assert.ok((await raw(connection, 'test', _id)).lockedBy);
    });

    it('locks in the database of useDb', async function () {
      const connection = await open(first.uriFor('main'));
      const other = connection.useDb('tenant', { useCache: true });
      const stored = await lockableOn(other).create({ name: 'tenant' });
      await lockableOn(connection).create({ _id: stored._id, name: 'main' });

      assert.ok(await stored.lock(60000));

      assert.ok((await raw(connection, 'tenant', stored._id)).lockedBy);
      assert.equal((await raw(connection, 'main', stored._id)).lockedBy, undefined);
    });

    it('keeps two connections to two servers apart', async function () {
      const connections = await Promise.all([
        open(first.uriFor('app')),
        open(second.uriFor('app')),
      ]);
      const _id = new mongoose.Types.ObjectId();
      const [here, there] = await Promise.all(
        connections.map((connection) => lockableOn(connection).create({ _id, name: 'twin' })),
      );

      assert.ok(await here.lock(60000));
      assert.ok(await there.lock(60000), 'the other server’s document is free');
      assert.equal(await here.lock(60000), null);
      assert.equal(await there.lock(60000), null);
    });

    it('reaches a server by its Unix domain socket', async function () {
      const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'mongoose-lock-release-socket-'));
      const server = await startSingle({ unixSocketDirectory: directory });
      try {
        const socket = path.join(directory, `mongodb-${server.servers[0].port}.sock`);
        await lockAndRelease(await open(`mongodb://${encodeURIComponent(socket)}/app`));
      } finally {
        await Promise.all(opened.splice(0).map((connection) => connection.close()));
        await server.stop();
        fs.rmSync(directory, { recursive: true, force: true });
      }
    });

    it('locks with a model that was compiled before the connection was asked for', async function () {
      const own = new mongoose.Mongoose();
      const Lockable = own.model('Lockable', lockableSchema());
      await own.connect(first.uriFor('early'));
      try {
        const stored = await Lockable.create({ name: 'early' });
        assert.ok(await stored.lock(60000));
      } finally {
        await own.disconnect();
      }
    });

    it('waits with a lock that comes before the connection is open', async function () {
      const writing = await open(first.uriFor('app'));
      const { _id } = await lockableOn(writing).create({ name: 'buffered' });
      const connection = mongoose.createConnection();
      opened.push(connection);
      const early = lockableOn(connection).hydrate({ _id, name: 'buffered' });

      const pending = early.lock(60000);
      const called = new Promise((resolve, reject) => {
        lockableOn(connection)
          .hydrate({ _id: new mongoose.Types.ObjectId() })
          .lock(60000, (error, doc) => (error ? reject(error) : resolve(doc)));
      });
      await connection.openUri(first.uriFor('app'));

      assert.ok((await pending).locked > new Date());
      assert.equal(await called, null, 'nothing is stored under that _id');
    });

    it('waits with one that comes while the connection is being opened', async function () {
      const writing = await open(first.uriFor('app'));
      const { _id } = await lockableOn(writing).create({ name: 'buffered' });
      const connection = mongoose.createConnection(first.uriFor('app'));
      opened.push(connection);

      assert.ok(await lockableOn(connection).hydrate({ _id }).lock(60000));
    });

    it('fails as Mongoose does when bufferCommands is off', async function () {
      const connection = mongoose.createConnection();
      const Lockable = lockableOn(connection, { bufferCommands: false });
      const expected = await Lockable.findOne().then(assert.fail, (error) => error);

      await assert.rejects(Lockable.hydrate({ _id: 'a'.repeat(24) }).lock(60000), (error) => {
        assert.ok(error instanceof mongoose.Error, inspect(error));
        assert.equal(error.name, expected.name);
        assert.match(expected.message, /bufferCommands = false/);
        assert.match(error.message, /bufferCommands = false/);
        return true;
      });
    });

    it('fails as Mongoose does after bufferTimeoutMS', async function () {
      const connection = mongoose.createConnection();
      const Lockable = lockableOn(connection, { bufferTimeoutMS: 60 });
      const expected = await Lockable.findOne().then(assert.fail, (error) => error);

      await assert.rejects(Lockable.hydrate({ _id: 'a'.repeat(24) }).lock(60000), (error) => {
        assert.ok(error instanceof mongoose.Error, inspect(error));
        assert.equal(error.name, expected.name);
        assert.match(expected.message, /buffering timed out after 60ms/);
        assert.match(error.message, /buffering timed out after 60ms/);
        return true;
      });
    });

    it('follows a disconnect and a connect elsewhere, with the same model', async function () {
      const own = new mongoose.Mongoose();
      const Lockable = own.model('Lockable', lockableSchema());
      const _id = new mongoose.Types.ObjectId();
      try {
        await own.connect(first.uriFor('app'));
        const here = await Lockable.create({ _id, name: 'here' });
        assert.ok(await here.lock(60000));
        await own.disconnect();

        await own.connect(second.uriFor('app'));
        const there = await Lockable.create({ _id, name: 'there' });
        const locked = await there.lock(60000);
        assert.equal(locked?.name, 'there');
        assert.equal(await here.lock(60000), null, 'the old document is the new server’s now');
      } finally {
        await own.disconnect();
      }
    });

    it('follows a client that was closed and connected again', async function () {
      const connection = await open(first.uriFor('app'));
      await lockAndRelease(connection);
      const client = connection.getClient();
      await client.close();
      await client.connect();
      await lockAndRelease(connection);
    });

    it('fails, and does not hang, when the connection is closed before the call', async function () {
      const connection = await open(first.uriFor('app'));
      const Lockable = lockableOn(connection, { bufferTimeoutMS: 500 });
      const stored = await Lockable.create({ name: 'closed' });
      await stored.lock(10);
      await connection.close();

      await assert.rejects(stored.lock(60000), (error) => error instanceof Error);
    });
  });
});
