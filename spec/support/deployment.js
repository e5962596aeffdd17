/*
 * Starts real MongoDB deployments on free ports of 127.0.0.1 through mongodb-memory-server, for specs, demo and
 * benchmarks: one server, or a replica set, with authentication and TLS where asked. Their data lives in a temporary
 * directory that goes with them. This process reads their logs, so its event loop must not be blocked for long while
 * hundreds of connections are opened (a full pipe stops mongod): wait for child processes, do not run them
 * synchronously. An existing deployment (MONGODB_URI) is only ever connected to: it must never be
 * stopped, and no signal is sent to it.
 */
'use strict';

const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { MongoMemoryReplSet, MongoMemoryServer } = require('mongodb-memory-server-core');
const { mongodBinary, mongodVersion } = require('./binary');

const HOST = '127.0.0.1';
const REPLICA_SET = 'lockrelease';
/** A start on a busy machine, journal recovery included, may take long; it is no measure of anything. */
const LAUNCH_MS = 120000;
const POLL_MS = 50;
const REMOVAL = { recursive: true, force: true, maxRetries: 20, retryDelay: 50 };

/** Small, quiet servers: dozens of them share one machine. */
const ARGS = [
  '--setParameter',
  'enableTestCommands=1',
  '--setParameter',
  'diagnosticDataCollectionEnabled=false',
  '--wiredTigerCacheSizeGB',
  '0.25',
  '--quiet',
  // A loaded machine is slow at everything: without this each operation would be a line of the log.
  '--slowms',
  '1000000',
];

/** Everything that runs now, so that an exit in the middle of a spec leaves neither processes nor data behind. */
const running = new Set();

/**
 * The deployment that specs, demo and benchmarks use: the one at MONGODB_URI if that is set; with
 * MONGO_TOPOLOGY=single a single server; else (or with MONGO_TOPOLOGY=replicaSet) a replica set of one.
 */
async function deployment(options = {}) {
  if (process.env.MONGODB_URI) return new ExternalDeployment(process.env.MONGODB_URI);
  const topology = process.env.MONGO_TOPOLOGY || 'replicaSet';
  if (topology === 'single') return startSingle(options);
  if (topology === 'replicaSet') return startReplicaSet(options);
  throw new Error(`MONGO_TOPOLOGY is ${JSON.stringify(topology)}; it must be single or replicaSet`);
}

/**
 * Starts a standalone server.
 *
 * @param {object} [options]
 * @param {string[]} [options.args] further arguments of mongod
 * @param {{ username: string, password: string }} [options.auth] turns authentication on and makes this root user;
 *   `uri` and `uriFor` then carry it
 * @param {string} [options.unixSocketDirectory] where it also listens, as `mongodb-<port>.sock`; default nowhere
 * @param {object} [options.tls] `mode` (default preferTLS, and requireTLS without `auth`), `certificateKeyFile`, `caFile`, `crlFile`,
 *   `allowConnectionsWithoutCertificates` (default true), `allowInvalidCertificates`
 */
async function startSingle(options = {}) {
  return StartedDeployment.start('single', { ...options, members: 1 });
}

/**
 * Starts a replica set and waits for its primary. Options as for `startSingle` (`tls.mode` is preferTLS), and:
 *
 * @param {number} [options.members] how many members; default 1
 * @param {object} [options.settings] the replica set's settings, e.g. `electionTimeoutMillis`
 */
async function startReplicaSet(options = {}) {
  return StartedDeployment.start('replicaSet', options);
}

/** A deployment of ours: what `startSingle` and `startReplicaSet` resolve to. */
class StartedDeployment {
  static async start(kind, options) {
    const binary = await mongodBinary();
    const version = await mongodVersion(binary);
    const prefix = path.join(os.tmpdir(), 'mongoose-lock-release-');
    const started = new StartedDeployment(kind, options, fs.mkdtempSync(prefix), binary, version);
    running.add(started);
    removeAtExit();
    try {
      await started.#launch();
      return started;
    } catch (error) {
      await started.stop();
      throw error;
    }
  }

  #options;
  #directory;
  #starter;
  #binary;

  constructor(kind, options, directory, binary, version) {
    this.kind = kind;
    /** The server's version as `6.0.5`. */
    this.version = version;
    /** The members as `Server`, in the order in which they were configured. */
    this.servers = [];
    this.#options = options;
    this.#directory = directory;
    // The version is told so that the starter neither warns nor picks a storage engine by its own default.
    this.#binary = { systemBinary: binary, version };
  }

  /** All members as `host:port,host:port`, for URIs that a spec writes itself. */
  get hosts() {
    return this.servers.map((server) => `${server.host}:${server.port}`).join(',');
  }

  /** The URI without a database's name. */
  get uri() {
    return this.uriFor('');
  }

  /** The URI with this database's name, and with further query parameters, e.g. `{ appName: 'spec' }`. */
  uriFor(dbName, query = {}) {
    const { auth } = this.#options;
    const user = auth
      ? `${encodeURIComponent(auth.username)}:${encodeURIComponent(auth.password)}@`
      : '';
    const parameters = new URLSearchParams({
      ...(this.kind === 'replicaSet' ? { replicaSet: REPLICA_SET } : {}),
      ...(auth ? { authSource: 'admin' } : {}),
      ...query,
    });
    return `mongodb://${user}${this.hosts}/${dbName}${asQuery(parameters)}`;
  }

  /** The member that calls itself primary now (the only server of a single deployment); waits for an election. */
  async primary() {
    const deadline = Date.now() + LAUNCH_MS;
    for (;;) {
      for (const server of this.servers) {
        const hello = await server.command({ hello: 1 }).catch(() => undefined);
        if (hello?.isWritablePrimary) return server;
      }
      if (Date.now() > deadline) throw new Error(`no primary within ${LAUNCH_MS} ms`);
      await pause(POLL_MS);
    }
  }

  /** Kills what runs and removes the data. */
  async stop() {
    await Promise.all(this.servers.map((server) => server.kill('SIGKILL')));
    await this.#starter?.stop({ doCleanup: false });
    fs.rmSync(this.#directory, REMOVAL);
    running.delete(this);
  }

  /** The same without waiting for anything: all that an exiting process can still do. */
  stopNow() {
    for (const server of this.servers) server.killNow();
    try {
      fs.rmSync(this.#directory, REMOVAL);
    } catch {
      // A server that is being killed may write to the last; an exit is not held up, nor failed, by its leftovers.
    }
    running.delete(this);
  }

  async #launch() {
    const { args = [], auth, members = 1, settings } = this.#options;
    const single = this.kind === 'single';
    const shared = {
      ip: HOST,
      storageEngine: 'wiredTiger',
      args: [
        ...ARGS,
        ...socketArguments(this.#options),
        ...tlsArguments(this.#options, single),
        ...args,
      ],
    };
    const instances = Array.from({ length: members }, (_, index) => {
      const dbPath = path.join(this.#directory, `member${index}`);
      fs.mkdirSync(dbPath);
      return { dbPath, launchTimeout: LAUNCH_MS };
    });
    const root = auth && {
      auth: { enable: true, customRootName: auth.username, customRootPwd: auth.password },
    };

    if (single) {
      this.#starter = new MongoMemoryServer({
        binary: this.#binary,
        instance: { ...shared, ...instances[0] },
        ...root,
      });
      await this.#starter.start();
      this.servers = [new Server(this.#starter, this.#options)];
    } else {
      this.#starter = new MongoMemoryReplSet({
        binary: this.#binary,
        instanceOpts: instances,
        replSet: {
          ...shared,
          name: REPLICA_SET,
          count: members,
          ...root,
          configSettings: settings,
        },
      });
      await this.#starter.start();
      this.servers = this.#starter.servers.map((starter) => new Server(starter, this.#options));
      await this.primary();
    }
  }
}

/** One mongod of a deployment of ours. */
class Server {
  #starter;
  #options;

  constructor(starter, options) {
    this.#starter = starter;
    this.#options = options;
    this.host = HOST;
    this.port = starter.instanceInfo.port;
  }

  get #process() {
    return this.#starter.instanceInfo?.instance.mongodProcess;
  }

  /** The process id, or undefined while it does not run. */
  get pid() {
    return this.#process?.pid;
  }

  /**
   * Sends a signal. Resolves once the process is gone, for a signal that ends it; SIGSTOP and SIGCONT resolve at
   * once. Port and data stay for `start`.
   */
  async kill(signal = 'SIGKILL') {
    const child = this.#process;
    if (!child) return;
    if (signal === 'SIGSTOP' || signal === 'SIGCONT') {
      child.kill(signal);
      return;
    }
    // The starter's own view is settled by 'close', after which its `stop` has nothing left to end.
    const gone =
      child.exitCode === null && child.signalCode === null
        ? new Promise((resolve) => child.once('close', resolve))
        : undefined;
    child.kill(signal);
    await gone;
    await this.#starter.stop({ doCleanup: false });
  }

  /** Sends SIGKILL and waits for nothing. */
  killNow() {
    this.#process?.kill('SIGKILL');
  }

  /** Starts it again on the same port and data; resolves when it accepts connections (not: when it is elected). */
  async start() {
    await this.#starter.start(true);
  }

  /** Runs a command on this very server, on a connection of its own: fail points, step-downs, its statistics. */
  async command(command, dbName = 'admin') {
    const { auth, tls } = this.#options;
    const { MongoClient } = require('./mongoose').mongo;
    const client = new MongoClient(`mongodb://${this.host}:${this.port}/`, {
      directConnection: true,
      serverSelectionTimeoutMS: 5000,
      ...(auth ? { auth, authSource: 'admin' } : {}),
      // No spec is about this connection, so it takes whatever certificate the spec gave the server.
      ...(tls ? { tls: true, tlsInsecure: true } : {}),
    });
    try {
      await client.connect();
      return await client.db(dbName).command(command);
    } finally {
      await client.close();
    }
  }
}

/** The deployment at MONGODB_URI: not ours, so there is nothing to stop and nothing to kill. */
class ExternalDeployment {
  constructor(uri) {
    this.kind = 'external';
    this.uri = uri;
    this.servers = [];
  }

  uriFor(dbName, query = {}) {
    const [, base, oldName, oldQuery] =
      /^(mongodb(?:\+srv)?:\/\/[^/?]+)\/?([^?]*)\??(.*)$/.exec(this.uri) || [];
    if (!base) throw new Error('MONGODB_URI is no connection string');
    const parameters = new URLSearchParams(oldQuery);
    // The database's name was also where the user is looked up, unless the query says so.
    if (base.includes('@') && oldName && !parameters.has('authSource')) {
      parameters.set('authSource', oldName);
    }
    for (const [name, value] of Object.entries(query)) parameters.set(name, value);
    return `${base}/${dbName}${asQuery(parameters)}`;
  }

  async stop() {}
}

function asQuery(parameters) {
  // Not every reader of connection strings takes `+` for a space.
  return parameters.size ? `?${parameters}`.replaceAll('+', '%20') : '';
}

/** Without a directory of the spec's own the sockets would lie in /tmp, and stay there after a SIGKILL. */
function socketArguments({ unixSocketDirectory }) {
  if (unixSocketDirectory) return ['--unixSocketPrefix', unixSocketDirectory];
  return process.platform === 'win32' ? [] : ['--nounixsocket'];
}

function tlsArguments({ auth, tls }, single) {
  if (!tls) return [];
  // The starter initiates a replica set and makes the root user without TLS.
  const mode = tls.mode || (single && !auth ? 'requireTLS' : 'preferTLS');
  const args = ['--tlsMode', mode, '--tlsCertificateKeyFile', tls.certificateKeyFile];
  if (tls.caFile) args.push('--tlsCAFile', tls.caFile);
  if (tls.crlFile) args.push('--tlsCRLFile', tls.crlFile);
  if (tls.allowConnectionsWithoutCertificates !== false) {
    args.push('--tlsAllowConnectionsWithoutCertificates');
  }
  if (tls.allowInvalidCertificates) args.push('--tlsAllowInvalidCertificates');
  return args;
}

let hooked = false;

/** Ends what still runs when this process ends, by itself, by an exception or by a signal. */
function removeAtExit() {
  if (hooked) return;
  hooked = true;
  const stopAll = () => {
    for (const started of [...running]) started.stopNow();
  };
  process.on('exit', stopAll);
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
    process.once(signal, () => {
      stopAll();
      // Another listener (mocha's) decides by itself how to end.
      if (process.listenerCount(signal) === 0) process.kill(process.pid, signal);
    });
  }
}

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

module.exports = { deployment, mongodBinary, startReplicaSet, startSingle };
