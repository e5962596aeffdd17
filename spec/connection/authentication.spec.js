/*
 * Credentials: whatever Mongoose logs in with, the native connections log in with too, and no message ever shows it.
 * Each spec runs on a mongod that really demands it.
 */
'use strict';

const assert = require('node:assert/strict');
const { inspect } = require('node:util');
const mongoose = require('../support/mongoose');
const { startSingle } = require('../support/deployment');
const { lockAndRelease, lockableOn } = require('../support/lockable');

const ROOT = { username: 'root', password: 'root of the spec' };
// No "=" in the name: Node's driver derives the SCRAM-SHA-1 password from the escaped name and is refused.
const AWKWARD = { username: 'us@er:/%+ é&?#', password: 'p@ss:/%+ é&=?#wörd' };

describe('connection: authentication', function () {
  this.timeout(120000);

  let server;
  let root;
  const opened = [];

  /** Opens a connection that is closed after the spec. */
  async function connect(uri, options) {
    const connection = mongoose.createConnection(uri, options);
    opened.push(connection);
    return connection.asPromise();
  }

  async function createUser(dbName, { username, password }, mechanisms) {
    const roles = [{ role: 'readWrite', db: 'app' }];
    await root.useDb(dbName).db.command({
      createUser: username,
      pwd: password,
      roles,
      ...(mechanisms ? { mechanisms } : {}),
    });
  }

  function uriWith({ username, password }, rest) {
    const user = `${encodeURIComponent(username)}:${encodeURIComponent(password)}`;
    return `mongodb://${user}@${server.hosts}/${rest}`;
  }

  before(async function () {
    server = await startSingle({ auth: ROOT });
    root = await mongoose.createConnection(server.uri).asPromise();
    await createUser('admin', AWKWARD);
  });

  afterEach(async function () {
    await Promise.all(opened.splice(0).map((connection) => connection.close()));
  });

  after(async function () {
    await root?.close();
    await server?.stop();
  });

  it('takes a user and a password full of special characters from the URI', async function () {
    await lockAndRelease(await connect(uriWith(AWKWARD, 'app?authSource=admin')));
  });

  it('takes them from the option auth', async function () {
    await lockAndRelease(
      await connect(`mongodb://${server.hosts}/app`, { auth: AWKWARD, authSource: 'admin' }),
    );
  });

  it('takes them from the options user and pass', async function () {
    const { username: user, password: pass } = AWKWARD;
    await lockAndRelease(
      await connect(`mongodb://${server.hosts}/app`, { user, pass, authSource: 'admin' }),
    );
  });

  for (const mechanism of ['SCRAM-SHA-1', 'SCRAM-SHA-256']) {
    it(`logs in with ${mechanism} where a user has no other mechanism`, async function () {
      const user = { ...AWKWARD, username: `${AWKWARD.username} ${mechanism}` };
      await createUser('admin', user, [mechanism]);
      await lockAndRelease(await connect(uriWith(user, 'app?authSource=admin')));
    });

    it(`takes ${mechanism} when it is asked for by authMechanism`, async function () {
      const user = { ...AWKWARD, username: `asked ${mechanism}` };
      await createUser('admin', user, ['SCRAM-SHA-1', 'SCRAM-SHA-256']);
      await lockAndRelease(
        await connect(uriWith(user, `app?authSource=admin&authMechanism=${mechanism}`)),
      );
    });
  }

  it('looks the user up in the database that authSource names', async function () {
    const user = { username: 'elsewhere', password: 'secret of elsewhere' };
    await createUser('credentials', user);
    await lockAndRelease(await connect(uriWith(user, 'app?authSource=credentials')));
  });

  it('looks the user up in the database of the URI when there is no authSource', async function () {
    const user = { username: 'local', password: 'secret of local' };
    await createUser('app', user);
    await lockAndRelease(await connect(uriWith(user, 'app')));
  });

  it('keeps two users of one server apart, each with its own rights', async function () {
    const reader = { username: 'reader', password: 'secret of reader' };
    await root.useDb('admin').db.command({
      createUser: reader.username,
      pwd: reader.password,
      roles: [{ role: 'read', db: 'app' }],
    });
    const writing = await connect(uriWith(AWKWARD, 'app?authSource=admin'));
    const reading = await connect(uriWith(reader, 'app?authSource=admin'));
    const stored = await lockableOn(writing).create({ name: 'shared' });
    const seen = await lockableOn(reading).findById(stored._id);

    await assert.rejects(seen.lock(60000), (error) => {
      assert.ok(error instanceof mongoose.mongo.MongoServerError, inspect(error));
      assert.equal(error.code, 13);
      assert.equal(error.codeName, 'Unauthorized');
      return true;
    });
    assert.ok(await stored.lock(60000), 'the writer can');
  });

  it('reports a wrong password as the server does, without showing it', async function () {
    const user = { username: 'renamed@:/%', password: 'old p@ss:/%wörd' };
    await createUser('admin', user);
    const connection = await connect(uriWith(user, 'app?authSource=admin'), {
      serverSelectionTimeoutMS: 5000,
    });
    const stored = await lockableOn(connection).create({ name: 'round' });
    // Mongoose stays logged in; whoever comes now is told that the password is wrong.
    await root.useDb('admin').db.command({ updateUser: user.username, pwd: 'a new password' });

    await assert.rejects(stored.lock(60000), (error) => {
      assert.ok(error instanceof mongoose.mongo.MongoServerError, inspect(error));
      assert.equal(error.code, 18);
      assert.equal(error.codeName, 'AuthenticationFailed');
      const shown = inspect(error, { depth: 10, showHidden: true });
      for (const secret of [user.password, encodeURIComponent(user.password), user.username]) {
        assert.ok(!shown.includes(secret), `${JSON.stringify(secret)} is shown in: ${shown}`);
      }
      return true;
    });
  });
});
