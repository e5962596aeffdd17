/*
 * TLS: what Mongoose's connection trusts and shows, the native connections trust and show as well, no more and no
 * less. The certificates are made on the spot; the relay shows the native side a server that Mongoose never saw.
 */
'use strict';

const assert = require('node:assert/strict');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { inspect } = require('node:util');
const mongoose = require('../support/mongoose');
const { Certificates } = require('../support/certificates');
const { startReplicaSet, startSingle } = require('../support/deployment');
const { lockAndRelease, lockableOn } = require('../support/lockable');
const { Relay } = require('../support/relay');
const { requireTool } = require('../support/tools');

const PASSPHRASE = 'pässphrase: with/spaces';

describe('connection: TLS', function () {
  this.timeout(180000);

  const stops = [];
  let certificates;
  let authority;
  let serverCertificate;
  let client;

  /** Starts a server that is stopped after the spec. */
  async function start(tls, options) {
    const server = await startSingle({ ...options, tls });
    stops.push(() => server.stop());
    return server;
  }

  async function connect(uri, options) {
    const connection = mongoose.createConnection(uri, { tls: true, ...options });
    // Closed first of all: an afterEach that ends the server first would wait for it.
    stops.unshift(() => connection.close());
    return connection.asPromise();
  }

  /** A server that lets in only who shows a certificate of ours. */
  async function startStrict() {
    return start({
      certificateKeyFile: serverCertificate.pem,
      caFile: authority.certificate,
      allowConnectionsWithoutCertificates: false,
    });
  }

  before(async function () {
    requireTool(this, 'openssl');
    certificates = new Certificates();
    authority = await certificates.authority();
    serverCertificate = await certificates.server(authority);
    client = await certificates.client(authority);
  });

  afterEach(async function () {
    for (const stop of stops.splice(0)) await stop();
  });

  after(function () {
    certificates?.remove();
  });

  it('trusts the authority of tlsCAFile, by IP address and by host name', async function () {
    const server = await start({ certificateKeyFile: serverCertificate.pem });
    await lockAndRelease(await connect(server.uriFor('app'), { tlsCAFile: authority.certificate }));
    await lockAndRelease(
      await connect(`mongodb://localhost:${server.servers[0].port}/app`, {
        tlsCAFile: authority.certificate,
      }),
    );
  });

  it('takes the TLS options from the URI', async function () {
    const server = await start({ certificateKeyFile: serverCertificate.pem });
    const connection = mongoose.createConnection(
      server.uriFor('app', { tls: 'true', tlsCAFile: authority.certificate }),
    );
    stops.unshift(() => connection.close());
    await lockAndRelease(await connection.asPromise());
  });

  it('trusts the authority of tlsCAFile on every member of a replica set', async function () {
    const set = await startReplicaSet({ tls: { certificateKeyFile: serverCertificate.pem } });
    stops.push(() => set.stop());
    await lockAndRelease(await connect(set.uriFor('app'), { tlsCAFile: authority.certificate }));
  });

  it('trusts any authority of a tlsCAFile that holds several', async function () {
    const other = await certificates.authority('another');
    const both = path.join(certificates.directory, 'both.crt');
    fs.writeFileSync(
      both,
      Buffer.concat([other, authority].map((ca) => fs.readFileSync(ca.certificate))),
    );
    const server = await start({ certificateKeyFile: serverCertificate.pem });
    await lockAndRelease(await connect(server.uriFor('app'), { tlsCAFile: both }));
  });

  it('shows the client certificate of tlsCertificateKeyFile', async function () {
    const server = await startStrict();
    await lockAndRelease(
      await connect(server.uriFor('app'), {
        tlsCAFile: authority.certificate,
        tlsCertificateKeyFile: client.pem,
      }),
    );
  });

  it('opens an encrypted tlsCertificateKeyFile with tlsCertificateKeyFilePassword', async function () {
    const encrypted = await certificates.encrypted(client, PASSPHRASE);
    const server = await startStrict();
    await lockAndRelease(
      await connect(server.uriFor('app'), {
        tlsCAFile: authority.certificate,
        tlsCertificateKeyFile: encrypted.pem,
        tlsCertificateKeyFilePassword: PASSPHRASE,
      }),
    );
  });

  it('logs in by its certificate (MONGODB-X509)', async function () {
    const server = await start(
      { certificateKeyFile: serverCertificate.pem, caFile: authority.certificate },
      { auth: { username: 'root', password: 'root of the spec' } },
    );
    const root = await connect(server.uriFor('app'), { tlsCAFile: authority.certificate });
    await root.useDb('$external').db.command({
      createUser: client.user,
      roles: [{ role: 'readWrite', db: 'app' }],
    });

    await lockAndRelease(
      await connect(`mongodb://${server.hosts}/app`, {
        authMechanism: 'MONGODB-X509',
        authSource: '$external',
        tlsCAFile: authority.certificate,
        tlsCertificateKeyFile: client.pem,
      }),
    );
  });

  describe('with certificates in memory', function () {
    let directory;
    let before;

    beforeEach(function () {
      // Both the driver of the addon and Node look here when a file has to be made for a moment.
      directory = fs.mkdtempSync(path.join(os.tmpdir(), 'mongoose-lock-release-tmp-'));
      before = process.env.TMPDIR;
    });

    afterEach(function () {
      if (before === undefined) delete process.env.TMPDIR;
      else process.env.TMPDIR = before;
      fs.rmSync(directory, { recursive: true, force: true });
    });

    /** A round over these options, after which no file of theirs is left. */
    async function leavesNoFile(server, options) {
      const connection = await connect(server.uriFor('app'), options);
      process.env.TMPDIR = directory;
      await lockAndRelease(connection);
      assert.deepEqual(fs.readdirSync(directory), []);
    }

    const read = (file) => fs.readFileSync(file);
    const text = (file) => fs.readFileSync(file, 'utf8');

    it('trusts the authority of ca, as text, as a buffer and in a list', async function () {
      const server = await start({ certificateKeyFile: serverCertificate.pem });
      const other = await certificates.authority('listed');
      for (const ca of [
        text(authority.certificate),
        read(authority.certificate),
        [text(other.certificate), read(authority.certificate)],
      ]) {
        await leavesNoFile(server, { ca });
      }
    });

    it('shows the client certificate of cert and key', async function () {
      await leavesNoFile(await startStrict(), {
        ca: text(authority.certificate),
        cert: text(client.certificate),
        key: text(client.key),
      });
    });

    it('takes cert and key as buffers', async function () {
      await leavesNoFile(await startStrict(), {
        ca: read(authority.certificate),
        cert: read(client.certificate),
        key: read(client.key),
      });
    });

    it('opens an encrypted key with passphrase', async function () {
      const encrypted = await certificates.encrypted(client, PASSPHRASE, 'inmemory');
      await leavesNoFile(await startStrict(), {
        ca: text(authority.certificate),
        cert: text(encrypted.certificate),
        key: text(encrypted.key),
        passphrase: PASSPHRASE,
      });
    });
  });

  describe('without a check of the certificate', function () {
    for (const option of ['tlsAllowInvalidCertificates', 'tlsInsecure']) {
      it(`takes any server with ${option}`, async function () {
        const server = await start({ certificateKeyFile: serverCertificate.pem });
        await lockAndRelease(await connect(server.uriFor('app'), { [option]: true }));
      });
    }
  });

  describe('with a server that Mongoose would not trust', function () {
    /**
     * Mongoose connects to a server that is right; then an impostor with `certificate` answers at the same address,
     * and the first lock is the first to meet it. Resolves to what the lock resolves to.
     */
    async function meetImpostor(certificate, options) {
      const right = await start({ certificateKeyFile: serverCertificate.pem });
      const impostor = await start({ certificateKeyFile: certificate.pem });
      const relay = await Relay.start(right.servers[0]);
      stops.unshift(() => relay.stop());
      const connection = await connect(`mongodb://${relay.host}:${relay.port}/app`, {
        tlsCAFile: authority.certificate,
        serverSelectionTimeoutMS: 3000,
        ...options,
      });
      const stored = await lockableOn(connection).create({ name: 'round' });
      relay.target = impostor.servers[0];
      return stored.lock(60000);
    }

    async function refuses(certificate) {
      await assert.rejects(meetImpostor(certificate), (error) => {
        assert.ok(error instanceof mongoose.mongo.MongoError, inspect(error));
        assert.match(error.message, /certificate/i);
        return true;
      });
    }

    it('would reach it without the check, and find no document there', async function () {
      const other = await certificates.authority('unchecked');
      const impostor = await certificates.server(other, 'unchecked-server');
      assert.equal(await meetImpostor(impostor, { tlsAllowInvalidCertificates: true }), null);
    });

    it('refuses one whose certificate another authority signed', async function () {
      const other = await certificates.authority('rogue');
      await refuses(await certificates.server(other, 'impostor'));
    });

    it('refuses one whose certificate is for another host', async function () {
      await refuses(await certificates.server(authority, 'misnamed', ['DNS:elsewhere.invalid']));
    });
  });

  describe('with a certificate that Node takes and the native TLS may not', function () {
    /** Either it works as with Mongoose, or the message names the reason. */
    async function worksOrSays(certificate, caFile, reason) {
      const server = await start({ certificateKeyFile: certificate.pem });
      const connection = await connect(`mongodb://localhost:${server.servers[0].port}/app`, {
        tlsCAFile: caFile,
        serverSelectionTimeoutMS: 3000,
      });
      const stored = await lockableOn(connection).create({ name: 'round' });
      const error = await stored.lock(60000).then(
        (locked) => assert.ok(locked),
        (failure) => failure,
      );
      if (error) assert.match(error.message, reason);
    }

    it('names a self-signed server certificate that is its own authority', async function () {
      const selfSigned = await certificates.selfSigned();
      await worksOrSays(selfSigned, selfSigned.certificate, /self-signed/i);
    });

    it('names a server certificate of X.509 version 1', async function () {
      const version1 = await certificates.version1(authority);
      await worksOrSays(version1, authority.certificate, /X\.?509 (v1|version 1)/i);
    });
  });
});
