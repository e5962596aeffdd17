/*
 * The other options of a connection: those that are carried are seen at work on the server, and each that cannot be
 * carried is refused by its name at the first lock. A silent difference is what must never be.
 */
'use strict';

const assert = require('node:assert/strict');
const dns = require('node:dns');
const fs = require('node:fs');
const tls = require('node:tls');
const { inspect } = require('node:util');
const mongoose = require('../support/mongoose');
const { LockError } = require('../..');
const { connectionOptions } = require('../../lib/options');
const { Certificates } = require('../support/certificates');
const { startSingle } = require('../support/deployment');
const { lockAndRelease, lockableOn } = require('../support/lockable');
const { Relay } = require('../support/relay');
const { requireTool } = require('../support/tools');

const token = async () => ({ accessToken: 'none' });
/** By Mongoose's version: the least that its driver takes for MONGODB-OIDC. */
const OIDC_PROPERTIES = {
  7: { REQUEST_TOKEN_CALLBACK: token },
  8: { OIDC_CALLBACK: token },
  9: { OIDC_CALLBACK: token },
};

/** Asserts that `call` is refused because of the option `name`, and that the message says so. */
async function refusedFor(name, call) {
  await assert.rejects(call, (error) => {
    assert.equal(error.code, 'ERR_LOCK_UNSUPPORTED_OPTION', inspect(error));
    assert.ok(error instanceof LockError);
    assert.ok(error.message.includes(name), `${JSON.stringify(error.message)} names ${name}`);
    return true;
  });
}

describe('connection: options', function () {
  this.timeout(120000);

  const stops = [];

  async function connect(uri, options) {
    const connection = mongoose.createConnection(uri, options);
    stops.unshift(() => connection.close());
    return connection.asPromise();
  }

  afterEach(async function () {
    for (const stop of stops.splice(0)) await stop();
  });

  describe('that are carried', function () {
    let server;

    before(async function () {
      server = await startSingle();
    });

    after(() => server?.stop());

    /** The lock commands that the server saw in `dbName` while `work` ran, by its own profiler. */
    async function commandsOf(dbName, work) {
      await server.servers[0].command({ profile: 2 }, dbName);
      try {
        await work();
      } finally {
        await server.servers[0].command({ profile: 0 }, dbName);
      }
      const reply = await server.servers[0].command(
        { find: 'system.profile', filter: { 'command.findAndModify': 'lockables' } },
        dbName,
      );
      return reply.cursor.firstBatch;
    }

    it('tells the server the appName', async function () {
      const connection = await connect(server.uriFor('named'), { appName: 'Ledger spec é' });
      const seen = await commandsOf('named', () => lockAndRelease(connection));
      assert.ok(seen.length > 0);
      for (const operation of seen) assert.equal(operation.appName, 'Ledger spec é');
    });

    it('speaks the serverApi, strictly if asked', async function () {
      const connection = await connect(server.uriFor('api'), {
        serverApi: { version: '1', strict: true, deprecationErrors: true },
      });
      const seen = await commandsOf('api', () => lockAndRelease(connection));
      assert.ok(seen.length > 0);
      for (const { command } of seen) {
        assert.equal(command.apiVersion, '1');
        assert.equal(command.apiStrict, true);
        assert.equal(command.apiDeprecationErrors, true);
      }
    });

    it('leaves the serverApi out where there is none', async function () {
      const connection = await connect(server.uriFor('noapi'));
      const seen = await commandsOf('noapi', () => lockAndRelease(connection));
      assert.ok(seen.length > 0);
      for (const { command } of seen) assert.equal(command.apiVersion, undefined);
    });

    it('compresses with a compressor of the list', async function () {
      const unpacked = async () => {
        const { network } = await server.servers[0].command({ serverStatus: 1 });
        return network.compression.zlib.decompressor.bytesIn;
      };
      const connection = await connect(server.uriFor('packed'), { compressors: ['zlib'] });
      const stored = await lockableOn(connection).create({ name: 'packed' });
      const before = await unpacked();
      assert.ok(await stored.lock(60000));
      assert.ok((await unpacked()) > before, 'what the lock sent was compressed');
    });

    it('does not compress unless asked', async function () {
      const connection = await connect(server.uriFor('plain'));
      const { network: before } = await server.servers[0].command({ serverStatus: 1 });
      await lockAndRelease(connection);
      const { network: after } = await server.servers[0].command({ serverStatus: 1 });
      for (const [name, { decompressor }] of Object.entries(after.compression)) {
        assert.equal(decompressor.bytesIn, before.compression[name].decompressor.bytesIn);
      }
    });

    it('opens no more connections for calls than maxPoolSize', async function () {
      const appName = 'pool of two';
      const connection = await connect(server.uriFor('pool'), { appName, maxPoolSize: 2 });
      const model = lockableOn(connection);
      const stored = await model.insertMany(Array.from({ length: 40 }, () => ({ name: 'pool' })));
      const locked = await Promise.all(stored.map((doc) => doc.lock(60000)));
      assert.ok(locked.every(Boolean));
      const admin = connection.getClient().db('admin');
      const operations = await admin
        .aggregate([
          { $currentOp: { allUsers: true, idleConnections: true } },
          { $match: { appName } },
        ])
        .toArray();
      // Two of Mongoose, two for calls, two for keeping, and each client's two that watch the server.
      assert.ok(operations.length <= 3 * 4, `${operations.length} connections`);
    });
  });

  describe('that cannot be carried, on an open connection', function () {
    let certificates;
    let authority;
    let server;
    let secured;

    before(async function () {
      requireTool(this, 'openssl');
      certificates = new Certificates();
      authority = await certificates.authority();
      const right = await certificates.server(authority);
      server = await startSingle();
      secured = await startSingle({
        tls: { certificateKeyFile: right.pem, caFile: authority.certificate },
      });
    });

    after(async function () {
      await Promise.all([server?.stop(), secured?.stop()]);
      certificates?.remove();
    });

    async function refusesOn(uri, name, options) {
      const connection = await connect(uri, options);
      const Lockable = lockableOn(connection);
      const stored = await Lockable.create({ name: 'round' });
      await refusedFor(name, () => stored.lock(60000));
      const stranger = await Lockable.findById(stored._id);
      await refusedFor(name, () => stranger.release());
      await refusedFor(name, () => stored.lock(60000));
    }

    it('refuses a lookup of the user’s own', async function () {
      await refusesOn(`mongodb://localhost:${server.servers[0].port}/app`, 'lookup', {
        lookup: (host, options, callback) => dns.lookup(host, options, callback),
      });
    });

    it('refuses a SOCKS proxy', async function () {
      const proxy = await Relay.start(undefined, { socks: true });
      stops.push(() => proxy.stop());
      await refusesOn(server.uriFor('app'), 'proxyHost', {
        proxyHost: proxy.host,
        proxyPort: proxy.port,
      });
      assert.ok(proxy.count > 0, 'Mongoose went through it');
    });

    const inSecured = (name, make) => {
      it(`refuses ${name}`, async function () {
        const options = await make();
        await refusesOn(secured.uriFor('app'), name, {
          tls: true,
          tlsCAFile: authority.certificate,
          ...options,
        });
      });
    };
    inSecured('checkServerIdentity', () => ({
      checkServerIdentity: (host, certificate) => tls.checkServerIdentity(host, certificate),
    }));
    inSecured('pfx', async () => ({
      pfx: fs.readFileSync(await certificates.bundle(await certificates.client(authority))),
      passphrase: '',
    }));
    inSecured('secureContext', () => ({
      secureContext: tls.createSecureContext({ ca: fs.readFileSync(authority.certificate) }),
    }));

    it('refuses tlsAllowInvalidHostnames', async function () {
      const misnamed = await certificates.server(authority, 'misnamed', ['DNS:elsewhere.invalid']);
      const wrong = await startSingle({ tls: { certificateKeyFile: misnamed.pem } });
      stops.push(() => wrong.stop());
      await refusesOn(wrong.uriFor('app'), 'tlsAllowInvalidHostnames', {
        tls: true,
        tlsCAFile: authority.certificate,
        tlsAllowInvalidHostnames: true,
      });
    });

    it('refuses on that connection alone', async function () {
      const refused = await connect(`mongodb://localhost:${server.servers[0].port}/app`, {
        lookup: (host, options, callback) => dns.lookup(host, options, callback),
      });
      const stored = await lockableOn(refused).create({ name: 'round' });
      await refusedFor('lookup', () => stored.lock(60000));
      await lockAndRelease(await connect(server.uriFor('app')));
    });

    it('calls back with the refusal', async function () {
      const connection = await connect(`mongodb://localhost:${server.servers[0].port}/app`, {
        lookup: (host, options, callback) => dns.lookup(host, options, callback),
      });
      const stored = await lockableOn(connection).create({ name: 'round' });
      await refusedFor(
        'lookup',
        () =>
          new Promise((resolve, reject) => {
            stored.lock(60000, (error, doc) => (error ? reject(error) : resolve(doc)));
          }),
      );
    });
  });

  describe('that cannot be carried, on a client that Mongoose was given', function () {
    /**
     * No server here speaks these, so the client's own attempt to connect fails; but its options are all that the
     * refusal is about, and Mongoose takes such a client.
     */
    async function given(rest, options) {
      const client = new mongoose.mongo.MongoClient(`mongodb://${rest}`, {
        serverSelectionTimeoutMS: 200,
        ...options,
      });
      await assert.rejects(client.connect());
      const connection = mongoose.createConnection();
      connection.setClient(client);
      stops.unshift(() => connection.close());
      return lockableOn(connection).hydrate({ _id: 'a'.repeat(24) });
    }

    for (const [mechanism, user] of [
      ['GSSAPI', 'user%40REALM@'],
      ['MONGODB-AWS', ''],
    ]) {
      it(`refuses the mechanism ${mechanism}`, async function () {
        const doc = await given(`${user}127.0.0.1:1/app?authMechanism=${mechanism}`);
        await refusedFor(mechanism, () => doc.lock(60000));
      });
    }

    for (const [name, value] of [
      ['ALPNProtocols', ['spec']],
      ['crl', 'a revocation list'],
      ['servername', 'elsewhere.invalid'],
    ]) {
      it(`refuses ${name}`, async function () {
        const doc = await given('127.0.0.1:1/app', { tls: true, [name]: value });
        await refusedFor(name, () => doc.lock(60000));
      });
    }

    it('refuses autoEncryption', async function () {
      // The driver takes it only with a package of its own installed, so this one is asked of the room itself.
      const client = new mongoose.mongo.MongoClient('mongodb://127.0.0.1:1/app');
      const options = { ...client.options, autoEncryption: { keyVaultNamespace: 'keys.vault' } };
      await refusedFor('autoEncryption', async () => connectionOptions(options));
    });

    it('refuses the mechanism MONGODB-OIDC', async function () {
      const { AuthMechanism } = mongoose.mongo;
      // The drivers of older Mongoose versions do not know it, and then nobody can ask for it.
      if (!AuthMechanism?.MONGODB_OIDC) {
        assert.throws(
          () => new mongoose.mongo.MongoClient('mongodb://h/?authMechanism=MONGODB-OIDC'),
        );
        return;
      }
      const doc = await given('127.0.0.1:1/app', {
        authMechanism: 'MONGODB-OIDC',
        authMechanismProperties: OIDC_PROPERTIES[mongoose.version.split('.')[0]],
      });
      await refusedFor('MONGODB-OIDC', () => doc.lock(60000));
    });
  });
});
