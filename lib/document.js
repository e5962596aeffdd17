/*
 * Owns what a document knows of its lock, and the verbs that a user calls on it: lock, release, extend,
 * withLock.
 */
'use strict';

const { Acquisition } = require('./acquisition');
const { checkCallback, checkDuration, checkFunction, checkLockOptions } = require('./arguments');
const { begin } = require('./client');
const { LockError } = require('./errors');
const { releaseAtExit } = require('./exit');
const { fence } = require('./fence');
const { lockedModel } = require('./model');
const { Patience } = require('./patience');

/** Document -> its Acquisition, or null once `lock` was called on it without success. */
const acquisitions = new WeakMap();

/** The acquisition that a document holds, or held last. */
function acquisitionOf(doc) {
  return acquisitions.get(doc) ?? undefined;
}

/** Models whose documents show what they hold. */
const equipped = new WeakSet();

/** Gives the documents of a model what a holder has; once per model, so that a lock costs less. */
function equip(Model, settings) {
  if (equipped.has(Model)) return;
  equipped.add(Model);
  Object.defineProperties(Model.prototype, {
    $lock: {
      get() {
        return acquisitions.get(this)?.lock;
      },
      configurable: true,
    },
    // `await using locked = await order.lock(…)` releases at the end of the block.
    [Symbol.asyncDispose]: {
      async value() {
        const acquisition = acquisitions.get(this);
        if (acquisition) await releaseUnlessDone(acquisition, traceOf(Model));
      },
      configurable: true,
      writable: true,
    },
  });
  if (settings.fence) fence(Model, acquisitionOf);
}

function hold(doc, acquisition) {
  acquisitions.set(doc, acquisition);
  equip(doc.constructor, acquisition.model.settings);
}

/** The model through which a model's documents are locked: itself, or the one that the plugin was told. */
function modelFor(own, settings) {
  return lockedModel(settings.modelName ? own.db.model(settings.modelName) : own, settings);
}

function refuse(doc, verb) {
  if (doc.$isSubdocument) {
    throw new LockError(
      'ERR_LOCK_SUBDOCUMENT',
      `a subdocument has no lock of its own: ${verb} its top-level document`,
    );
  }
  if (doc._id === undefined || doc._id === null) {
    throw new LockError(
      'ERR_LOCK_NOT_STORED',
      `cannot ${verb} a document without an _id (was it left out by select()?)`,
    );
  }
  if (doc.$session()?.inTransaction()) {
    throw new LockError(
      'ERR_LOCK_IN_TRANSACTION',
      `cannot ${verb} a document whose session is in a transaction: a lock that rolls back is no lock. ` +
        'Lock before the transaction begins and release after it has ended',
    );
  }
}

async function lock(doc, settings, trace, duration, options, renew) {
  // From here on it is not a document that `lock` was never called on: whatever comes of it, a `release` must not free
  // another's lock. One that holds already keeps what it has.
  if (!acquisitions.has(doc)) acquisitions.set(doc, null);
  const durationMs = checkDuration(duration);
  const { terms, wait, signal } = checkLockOptions(options, durationMs, renew);
  refuse(doc, 'lock');
  if (doc.isNew) {
    throw new LockError(
      'ERR_LOCK_NOT_STORED',
      'only stored documents can be locked: save the document first',
    );
  }
  const model = modelFor(doc.constructor, settings);
  const key = model.keyOf(doc);
  const patience = wait > 0 || signal ? new Patience(wait, signal) : undefined;
  const opened = model.open('lock');
  const orAborted = (promise) => patience?.orAborted(promise) ?? promise;
  const collection = opened instanceof Promise ? await orAborted(opened) : opened;
  const subject = model.subject(key);
  const read = (bytes, lease) => {
    const fresh = model.read(bytes);
    const acquisition = new Acquisition(model, key, lease);
    hold(doc, acquisition);
    hold(fresh, acquisition);
    return fresh;
  };
  if (terms) releaseAtExit(settings.exitTimeout);
  const call = { trace, mongo: model.mongo, read };
  if (!patience) {
    // Awaited: a promise that is returned as it is takes three turns of the microtask queue instead of one.
    return await begin(call, (number) => collection.lock(number, subject, durationMs, terms));
  }
  const abandon = (lease) => {
    const release = { trace, mongo: model.mongo, read: () => null };
    begin(release, (number) => collection.release(number, subject, lease, true)).catch(() => {});
  };
  const start = (number, ms) => collection.lock(number, subject, durationMs, terms, ms);
  return await patience.begin(call, start, abandon);
}

async function releaseUnlessDone(acquisition, trace) {
  if (!acquisition.lease.released) await acquisition.letGo(trace);
}

async function withLock(doc, settings, trace, duration, options, fn) {
  checkFunction(fn);
  const locked = await lock(doc, settings, trace, duration, options, true);
  if (!locked) {
    throw new LockError(
      'ERR_LOCK_UNAVAILABLE',
      `${doc.constructor.modelName} ${doc._id} is locked by another, or gone`,
    );
  }
  const acquisition = acquisitions.get(locked);
  let result;
  try {
    result = await fn(locked, locked.$lock);
  } catch (error) {
    await releaseUnlessDone(acquisition, trace).catch((failure) => {
      // What fn says is what the caller has to know; the release is told only where there is room.
      if (!(error instanceof Error) || error.cause !== undefined) return;
      Reflect.defineProperty(error, 'cause', {
        value: failure,
        configurable: true,
        writable: true,
      });
    });
    throw error;
  }
  // The work is done, and a lock that could not be released lapses: no reason to tell the caller that it failed.
  await releaseUnlessDone(acquisition, trace).catch(() => {});
  return result;
}

async function release(doc, settings, trace) {
  refuse(doc, 'release');
  const acquisition = acquisitions.get(doc);
  if (acquisition) return await acquisition.release(trace);
  // A lock that was refused is another's.
  if (acquisition === null) return null;
  const model = modelFor(doc.constructor, settings);
  const collection = await model.open('release');
  const subject = model.subject(model.keyOf(doc));
  const call = { trace, mongo: model.mongo, read: (bytes) => model.read(bytes) };
  return await begin(call, (number) => collection.release(number, subject));
}

async function extend(doc, settings, trace, duration) {
  const durationMs = checkDuration(duration);
  refuse(doc, 'extend');
  return acquisitions.get(doc)?.extend(durationMs, trace) ?? null;
}

/** Answers a callback, or lets the promise be. */
function answer(promise, callback) {
  if (!callback) return promise;
  // Not from within the promise's reaction: what a callback throws must be an uncaught exception, and concern no other.
  promise.then(
    (doc) => process.nextTick(callback, null, doc),
    (error) => process.nextTick(callback, error),
  );
  return undefined;
}

/** Enough to name the caller; each frame is a part of every call's price. */
const FRAMES = 4;

/** The caller's stack, to be read only if there is an error. */
function traceOf(method) {
  const trace = {};
  const { stackTraceLimit } = Error;
  Error.stackTraceLimit = Math.min(FRAMES, stackTraceLimit);
  Error.captureStackTrace(trace, method);
  Error.stackTraceLimit = stackTraceLimit;
  return trace;
}

/** The methods that the plugin gives to a schema with these settings. */
function methods(settings) {
  return {
    lock: function lockDocument(duration, options, callback) {
      if (typeof options === 'function' && !callback) {
        callback = options;
        options = undefined;
      }
      checkCallback(callback);
      return answer(lock(this, settings, traceOf(lockDocument), duration, options), callback);
    },
    release: function releaseDocument(callback) {
      checkCallback(callback);
      return answer(release(this, settings, traceOf(releaseDocument)), callback);
    },
    withLock: function withDocumentLocked(duration, options, fn) {
      if (typeof options === 'function' && fn === undefined) {
        fn = options;
        options = undefined;
      }
      return withLock(this, settings, traceOf(withDocumentLocked), duration, options, fn);
    },
    extend: function extendDocument(duration, callback) {
      checkCallback(callback);
      return answer(extend(this, settings, traceOf(extendDocument), duration), callback);
    },
  };
}

module.exports = { acquisitionOf, hold, methods, modelFor, releaseUnlessDone, traceOf };
