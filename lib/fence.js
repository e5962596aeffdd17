/*
 * Owns the fence: while a document holds a lock, its `save()` writes only if nobody else has taken the lock since. The
 * condition travels in the filter of Mongoose's own update, through the document's `$where`; no other write is touched.
 */
'use strict';

const { withStack } = require('./errors');

const fenced = new WeakSet();

/** The errors in which Mongoose says that the filter of a save matched nothing. */
const UNMATCHED = new Set(['DocumentNotFoundError', 'VersionError']);

/**
 * Fences a document, once for all locks that it will hold.
 * @param {(doc: object) => object | undefined} acquisitionOf tells what the document holds, or held last
 */
function fence(doc, acquisitionOf) {
  if (fenced.has(doc)) return;
  fenced.add(doc);

  let saving;
  let saves = 0;
  let usersOwn = doc.$where;
  Object.defineProperty(doc, '$where', {
    // An accessor, since a hook that runs later than ours and assigns would otherwise remove the condition; and only
    // during save(), since deleteOne() and updateOne() apply it too, and do nothing in silence when it does not match.
    get: () => {
      if (!saving) return usersOwn;
      return { ...usersOwn, $and: [...(usersOwn?.$and ?? []), saving.condition] };
    },
    set: (where) => {
      usersOwn = where;
    },
    configurable: true,
  });

  async function save(inner, args) {
    const acquisition = acquisitionOf(doc);
    if (!acquisition || acquisition.lease.released || doc.isNew) return inner.apply(doc, args);
    const trace = {};
    Error.captureStackTrace(trace, save);
    saving = acquisition;
    saves += 1;
    try {
      return await inner.apply(doc, args);
    } catch (error) {
      if (!UNMATCHED.has(error?.name)) throw error;
      // A true version conflict of the holder's own, and a document that is gone, stay what they are.
      const isOthers = await acquisition.isOthers(trace).catch(() => false);
      if (!isOthers) throw error;
      throw withStack(acquisition.lost('another has taken it, and nothing was saved', error), trace);
    } finally {
      // A hook may begin a save within a save, and not wait for it.
      saves -= 1;
      if (saves === 0) saving = undefined;
    }
  }

  for (const name of ['save', '$save']) {
    if (typeof doc[name] !== 'function') continue;
    Object.defineProperty(doc, name, {
      value: (...args) => {
        const inner = Object.getPrototypeOf(doc)[name];
        // Mongoose 6 takes a callback; later ones say themselves that they do not.
        const callback = args.at(-1);
        if (typeof callback !== 'function' || !doc.constructor.base.version.startsWith('6.')) {
          return save(inner, args);
        }
        save(inner, args.slice(0, -1)).then(
          (saved) => process.nextTick(callback, null, saved),
          (error) => process.nextTick(callback, error),
        );
        return undefined;
      },
      configurable: true,
      writable: true,
    });
  }
}

module.exports = { fence };
