/*
 * Owns the fence: while a document holds a lock, its `save()` writes only if nobody else has taken the lock since. The
 * condition travels in the filter of Mongoose's own update, through the document's `$where`; no other write is touched.
 */
'use strict';

const { withStack } = require('./errors');

const FENCED = Symbol('fenced');

/** The errors in which Mongoose says that the filter of a save matched nothing. */
const UNMATCHED = new Set(['DocumentNotFoundError', 'VersionError']);

/** Document -> the condition that its running saves carry, how many there are, and the user's own `$where`. */
const running = new WeakMap();

/** Puts the condition into the document's `$where`. */
function raise(doc, acquisition) {
  let state = running.get(doc);
  if (!state) {
    state = { saves: 0, usersOwn: doc.$where };
    running.set(doc, state);
    // An accessor, since a hook that runs later than ours and assigns would otherwise remove the condition; and only
    // during save(), since deleteOne() and updateOne() apply it too, and do nothing in silence when it does not match.
    Object.defineProperty(doc, '$where', {
      get: () => {
        const { usersOwn, condition } = state;
        return { ...usersOwn, $and: [...(usersOwn?.$and ?? []), condition] };
      },
      set: (where) => {
        state.usersOwn = where;
      },
      configurable: true,
    });
  }
  state.condition = acquisition.condition;
  state.saves += 1;
}

/** Takes it out again, once the last save has ended: a hook may begin one within another, and not wait for it. */
function lower(doc) {
  const state = running.get(doc);
  state.saves -= 1;
  if (state.saves > 0) return;
  running.delete(doc);
  delete doc.$where;
  if (state.usersOwn !== undefined) doc.$where = state.usersOwn;
}

async function fencedSave(doc, acquisition, inner, args) {
  const trace = {};
  Error.captureStackTrace(trace, fencedSave);
  raise(doc, acquisition);
  try {
    return await inner.apply(doc, args);
  } catch (error) {
    if (!UNMATCHED.has(error?.name)) throw error;
    // A true version conflict of the holder's own, and a document that is gone, stay what they are.
    const isOthers = await acquisition.isOthers(trace).catch(() => false);
    if (!isOthers) throw error;
    throw withStack(acquisition.lost('another has taken it, and nothing was saved', error), trace);
  } finally {
    lower(doc);
  }
}

/**
 * Fences the documents of a model.
 * @param {(doc: object) => object | undefined} acquisitionOf tells what a document holds, or held last
 */
function fence(Model, acquisitionOf) {
  const takesCallback = Model.base.version.startsWith('6.');
  for (const name of ['save', '$save']) {
    const inner = Model.prototype[name];
    // A discriminator's has been fenced with its base's.
    if (typeof inner !== 'function' || inner[FENCED]) continue;
    const save = function save(...args) {
      const acquisition = acquisitionOf(this);
      if (!acquisition || acquisition.lease.released || this.isNew) return inner.apply(this, args);
      const callback = args.at(-1);
      // Later versions than 6 say themselves that they take none.
      if (!takesCallback || typeof callback !== 'function') {
        return fencedSave(this, acquisition, inner, args);
      }
      fencedSave(this, acquisition, inner, args.slice(0, -1)).then(
        (saved) => process.nextTick(callback, null, saved),
        (error) => process.nextTick(callback, error),
      );
      return undefined;
    };
    Object.defineProperty(Model.prototype, name, {
      value: Object.assign(save, { [FENCED]: true }),
      configurable: true,
      writable: true,
    });
  }
}

module.exports = { fence };
