/*
 * Owns the native clients: one per MongoClient of Mongoose's, made at the first lock after the connection is open and
 * closed with it; and the calls in flight, each of which is answered exactly once. It knows nothing of documents.
 */
'use strict';

// Taken now: tests that fake the timers must not keep answers back.
const { setImmediate } = require('node:timers');
const { fromReport, withStack } = require('./errors');
const { NativeBridge, NativeClient } = require('./native');
const { connectionOptions } = require('./options');

const CONNECTED = 1;

/** What an answer is; the same numbers as in src/bridge.rs. */
const LOCKED = 2;
const FAILURE = 3;
const LOSS = 4;
const CLAIMED = 5;

/** What is before each answer's bytes: its call, its kind and its length, four bytes each. */
const HEAD = 12;

/** So many answers are given in one turn of the event loop: whatever else waits for its turn is not kept waiting. */
const ANSWERS_PER_TURN = 16;

/** Calls in flight, by number. */
const calls = new Map();
let lastCall = 0;
let bridge;

/** Locks whose loss is to be told at once, by number; weak, since watching must not keep a lock alive. */
const watched = new Map();
let lastWatched = 0;

/** Batches of answers that have come in and are not given yet, the first of them perhaps in part. */
const batches = [];

function onAnswers(bytes, leases) {
  // Only a sign of life was asked for.
  if (bytes.length === 0) return;
  batches.push({ bytes, leases, start: 0, lease: 0 });
  if (batches.length === 1) giveAnswers();
}

function giveAnswers() {
  for (let left = ANSWERS_PER_TURN; left > 0; left--) {
    giveNext(batches[0]);
    if (batches[0].start < batches[0].bytes.length) continue;
    batches.shift();
    if (batches.length === 0) return;
  }
  setImmediate(giveAnswers);
}

function giveNext(batch) {
  const { bytes, leases } = batch;
  const number = bytes.readUInt32LE(batch.start);
  const kind = bytes.readUInt32LE(batch.start + 4);
  const start = batch.start + HEAD;
  batch.start = start + bytes.readUInt32LE(batch.start + 8);
  if (kind === LOSS) {
    tellLoss(number);
    return;
  }
  const answer = bytes.subarray(start, batch.start);
  let won;
  if (kind === LOCKED) won = leases[batch.lease++];
  else if (kind === CLAIMED) {
    won = Array.from(documents(answer), (document) => [document, leases[batch.lease++]]);
  }
  const call = calls.get(number);
  if (call === undefined) return;
  calls.delete(number);
  if (kind === LOCKED) won.take();
  settle(call, kind, answer, won);
}

/** BSON documents end to end: each begins with its length. */
function* documents(bytes) {
  for (let start = 0; start < bytes.length;) {
    const end = start + bytes.readInt32LE(start);
    yield bytes.subarray(start, end);
    start = end;
  }
}

function tellLoss(number) {
  const acquisition = watched.get(number)?.deref();
  watched.delete(number);
  acquisition?.onLoss();
}

/** Has `acquisition.onLoss()` called as soon as the server says that its lock is lost. */
function watch(acquisition) {
  lastWatched = (lastWatched + 1) >>> 0;
  const number = lastWatched;
  watched.set(number, new WeakRef(acquisition));
  collected.register(acquisition, number);
  acquisition.lease.watch(bridge, number);
}

const collected = new FinalizationRegistry((number) => watched.delete(number));

/** Releases what this environment keeps alive, waiting at most so long: for the end of the process. */
function releaseKept(limitMs) {
  bridge?.releaseKept(limitMs);
}

function settle({ resolve, reject, trace, mongo, read }, kind, bytes, won) {
  try {
    if (kind === FAILURE) {
      reject(withStack(fromReport(mongo.BSON.deserialize(bytes), mongo), trace));
    } else if (kind === CLAIMED) {
      resolve(won.map(([document, lease]) => read(document, lease)));
    } else {
      resolve(bytes.length === 0 ? null : read(bytes, won));
    }
  } catch (error) {
    // A document's own init hook or getter may throw; the other calls of the batch must not suffer from it.
    reject(error);
  }
}

/**
 * Starts a native call.
 * @param {{ trace: { stack: string }, mongo: object, read: Function }} call the caller's stack, the user's driver, and
 *   what makes a result of a document's bytes and a lease
 * @param {(number: number) => void} start begins the work under this number
 */
function begin(call, start) {
  return new Promise((resolve, reject) => {
    lastCall = (lastCall + 1) >>> 0;
    const number = lastCall;
    call.resolve = resolve;
    call.reject = reject;
    calls.set(number, call);
    try {
      start(number);
    } catch (error) {
      calls.delete(number);
      reject(error);
    }
  });
}

/** A native client and the collections that were opened on it. */
class Client {
  constructor(mongoClient, mongo) {
    const options = connectionOptions(mongoClient.options);
    bridge ??= new NativeBridge(onAnswers);
    this.native = new NativeClient(
      bridge,
      mongo.BSON.serialize(options, { ignoreUndefined: true }),
    );
    this.isOpen = true;
    mongoClient.once('topologyClosed', () => {
      // The same MongoClient may connect again: it gets a new native one then.
      this.isOpen = false;
      if (clients.get(mongoClient) === this) clients.delete(mongoClient);
      this.native.close();
    });
  }

  collection(database, target, mongo) {
    return this.native.collection(
      database,
      mongo.BSON.serialize(target, { ignoreUndefined: true }),
    );
  }
}

/** MongoClient -> Client */
const clients = new WeakMap();

/** The client of a model's connection, which is open, or has been and lost its server; undefined if there is none yet. */
function clientOf({ db: connection, collection, base }) {
  const mongoClient = connection.getClient();
  if (!mongoClient) return undefined;
  let client = clients.get(mongoClient);
  // A server that went away is no reason to wait: Mongoose's own commands go to the driver then, which says so.
  const hasOpened = !collection.buffer && !connection._closeCalled;
  if (!client && (connection.readyState === CONNECTED || hasOpened)) {
    client = new Client(mongoClient, base.mongo);
    clients.set(mongoClient, client);
  }
  return client;
}

/** Connection -> functions to call when it is open */
const waiting = new WeakMap();

function whenConnected(connection, then) {
  let waiters = waiting.get(connection);
  if (!waiters) {
    waiters = new Set();
    waiting.set(connection, waiters);
    connection.on('connected', () => {
      for (const waiter of [...waiters]) waiter();
    });
  }
  waiters.add(then);
  return () => waiters.delete(then);
}

/** Resolves with the client once the connection is open, as Mongoose buffers its own operations. */
function openClient(Model, operation) {
  const { db: connection, base, collection } = Model;
  const client = clientOf(Model);
  if (client) return Promise.resolve(client);
  const name = `${collection.name}.${operation}()`;
  if (connection.$wasForceClosed) {
    return Promise.reject(new base.Error('Connection was force closed'));
  }
  if (connection._closeCalled && !collection.buffer) {
    const message = 'Client must be connected before running operations';
    return Promise.reject(new base.mongo.MongoNotConnectedError(message));
  }
  if (!collection._shouldBufferCommands()) {
    return Promise.reject(
      new base.Error(
        `Cannot call \`${name}\` before initial connection is complete if \`bufferCommands = false\`. ` +
          'Make sure you `await mongoose.connect()` if you have `bufferCommands = false`.',
      ),
    );
  }
  return new Promise((resolve, reject) => {
    const timeoutMS = collection._getBufferTimeoutMS();
    const timer = setTimeout(() => {
      forget();
      reject(new base.Error(`Operation \`${name}\` buffering timed out after ${timeoutMS}ms`));
    }, timeoutMS);
    const forget = whenConnected(connection, () => {
      forget();
      clearTimeout(timer);
      try {
        resolve(clientOf(Model));
      } catch (error) {
        reject(error);
      }
    });
  });
}

module.exports = { begin, clientOf, openClient, releaseKept, watch };
