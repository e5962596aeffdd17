'use strict';
/*
 * The process behind `Holder`: does with one document what it is told over IPC, with this plugin or, on Mongoose 6, with
 * the original package. It decides nothing by itself and asserts nothing.
 */

const mongoose = require('../support/mongoose');

let Model;
let connection;
/** What was found, and what `lock` returned. */
let found;
let locked;

const verbs = {
  async open({ uri, original = false, options, schemaOptions }) {
    const schema = new mongoose.Schema(
      { name: String, n: Number, tags: [String] },
      { ...schemaOptions, collection: 'held' },
    );
    if (original) schema.plugin(require('mongoose-lock-release-original'), 'Held');
    else schema.plugin(require('../..'), options);
    connection = await mongoose.createConnection(uri).asPromise();
    Model = connection.model('Held', schema);
    await Model.init();
  },

  async create(fields) {
    found = await Model.create(fields);
    return String(found._id);
  },

  async find(id) {
    found = await Model.findById(id);
    locked = undefined;
  },

  async lock(duration) {
    locked = await called('lock', duration);
    return summary(locked);
  },

  /** Tries again and again until the lock is granted; tells when it was. */
  async contend(duration) {
    for (;;) {
      locked = await called('lock', duration);
      if (locked) return standing();
    }
  },

  /** Adds one to the document's number under the lock, so many times; tells how often it was refused. */
  async count(times, duration) {
    let refused = 0;
    for (let done = 0; done < times;) {
      const doc = await called('lock', duration);
      if (!doc) {
        refused += 1;
        continue;
      }
      doc.n += 1;
      await doc.save();
      await called('release');
      done += 1;
    }
    return refused;
  },

  async release() {
    return summary(await called('release'));
  },

  async extend(duration) {
    return summary(await found.extend(duration));
  },

  async save(fields) {
    locked.set(fields);
    await locked.save();
  },

  standing() {
    return standing();
  },

  /** Keeps the event loop busy and tells what the lock said of itself meanwhile. */
  block(ms) {
    const samples = [];
    const end = performance.now() + ms;
    let next = 0;
    while (performance.now() < end) {
      if (performance.now() < next) continue;
      next = performance.now() + 5;
      samples.push(standing());
    }
    return samples;
  },

  clock() {
    return Date.now();
  },

  async close() {
    await connection.close();
    process.disconnect();
  },
};

/** Calls a method of the document with a callback, which the original has instead of promises. */
function called(method, ...args) {
  return new Promise((resolve, reject) => {
    found[method](...args, (error, doc) => (error ? reject(error) : resolve(doc)));
  });
}

function summary(doc) {
  if (!doc) return null;
  return { n: doc.n, locked: doc.locked.getTime(), token: doc.$lock?.token };
}

/** Read in this order, so that `held` was true at `at` if it is true here. `at` is one clock for all processes. */
function standing() {
  const at = Number(process.hrtime.bigint() / 1000n) / 1000;
  const { held, remaining, token } = found.$lock;
  return { at, held, remaining, token };
}

process.on('message', async ({ call, verb, args }) => {
  try {
    const value = await verbs[verb](...args);
    process.send({ call, value });
  } catch (error) {
    const { name, code, message } = error;
    process.send({ call, error: { name, code, message } });
  }
});
