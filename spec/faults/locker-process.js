'use strict';
/*
 * A process of the fault suite: several lanes that lock, work on and release the documents that they are given, over and
 * over, and write down what they did. It never judges; it goes on after every error. It runs this plugin, this plugin
 * with one of its protections off, or the original package: what `protection` says.
 */

const { setTimeout: sleep } = require('node:timers/promises');
const mongoose = require('../support/mongoose');
const { Journal, moment } = require('./journal');
const { Random } = require('./random');

const setup = JSON.parse(process.env.LOCKER);
const { protection, duration } = setup;
const journal = new Journal(setup.journal);
const random = new Random(setup.seed);
const isOriginal = protection === 'original';
/** A broken network is whole again long before. */
const CONNECT_MS = 60_000;
let calls = 0;
/** Acquisitions that the parent was not told of yet. */
let untold = 0;
let stopping = false;
/** Set by the nemesis: so many rounds keep the event loop busy while they hold. */
let busyRounds = 0;

function lockable() {
  const schema = new mongoose.Schema(
    { _id: Number, n: Number, last: String },
    { collection: setup.collection, autoIndex: false, autoCreate: false },
  );
  if (isOriginal) return schema.plugin(require('mongoose-lock-release-original'), 'Counted');
  return schema.plugin(require('../..'), { fence: protection !== 'unfenced' });
}

/** One call of the user's kind: with a callback, and every answer is written down, should there be two. */
function called(doc, verb, id, entry, outcome, ...args) {
  return new Promise((resolve) => {
    journal.write({ e: 'call', id, verb, ...entry, t: moment() });
    doc[verb](...args, (error, answer) => {
      const t = moment();
      journal.write({ e: 'answer', id, t, ...(error ? failure(error) : outcome(answer)) });
      resolve(error ? undefined : answer);
    });
  });
}

function failure(error) {
  const name = error.codeName ?? error.code;
  return { error: name === undefined ? error.name : `${error.name}/${name}` };
}

/** What a granted lock is; the original has neither lease nor token. */
function granted(doc) {
  if (!doc) return { outcome: 'refused' };
  const { n, last, $lock } = doc;
  if (isOriginal) return { outcome: 'granted', n, last };
  const lease = String($lock.filter['lockedBy.lease']);
  return { outcome: 'granted', n, last, lease, token: $lock.token, since: +$lock.since };
}

const released = (doc) => ({ outcome: doc ? 'released' : 'gone' });
const extended = (doc) => ({ outcome: doc ? 'extended' : 'gone' });

/** Adds one to the counter through save(): true if it was acknowledged. */
async function add(doc, acquisition, step) {
  calls += 1;
  const id = `${setup.name}.${calls}`;
  const writer = `${acquisition}/${step}`;
  doc.n += 1;
  doc.last = writer;
  journal.write({ e: 'call', id, verb: 'save', acquisition, to: doc.n, writer, t: moment() });
  try {
    await doc.save();
    journal.write({ e: 'answer', id, t: moment(), outcome: 'saved' });
    return true;
  } catch (error) {
    const lost = error.code === 'ERR_LOCK_LOST';
    journal.write({
      e: 'answer',
      id,
      t: moment(),
      ...(lost ? { outcome: 'lost' } : failure(error)),
    });
    return false;
  }
}

/** How long the lock says of itself that it is held: a moment is noted before `held` is read, which is true or not. */
class Belief {
  #lock;

  constructor(lock) {
    this.#lock = lock;
    this.look();
  }

  look() {
    if (!this.#lock) return;
    const at = moment();
    if (!this.#lock.held) return;
    this.from ??= at;
    this.to = at;
  }
}

async function hold(belief, ms) {
  const end = moment() + ms;
  while (moment() < end) {
    await sleep(Math.min(10, ms));
    belief.look();
  }
}

/** What a process does that does not let go of its event loop. */
function keepBusy(belief, ms) {
  const end = moment() + ms;
  let next = 0;
  while (moment() < end) {
    if (moment() < next) continue;
    next = moment() + 5;
    belief.look();
  }
}

async function work(doc, id, belief) {
  // Not everybody who locks has something to write.
  if (busyRounds === 0 && random.chance(0.4)) return;
  let saved = await add(doc, id, 1);
  belief.look();
  if (busyRounds > 0) {
    busyRounds -= 1;
    keepBusy(belief, 3 * duration);
    saved = (await add(doc, id, 2)) && saved;
  } else if (random.chance(setup.long)) {
    // Some work takes about as long as the lock, and some longer.
    await hold(belief, random.between(0, 1.6 * duration));
    if (saved) await add(doc, id, 2);
  }
  belief.look();
}

async function round(Model, _id) {
  const found = Model.hydrate({ _id });
  calls += 1;
  const id = `${setup.name}.${calls}`;
  // Some locks are kept alive for as long as the work takes.
  const renew = !isOriginal && random.chance(0.2);
  // And some wait for a locked document: less, about as long, or longer than it can be locked.
  const wait = !isOriginal && random.chance(0.3) ? random.pick([30, 300, 1200]) : undefined;
  const asked = renew || wait !== undefined ? [duration, { renew, wait }] : [duration];
  const doc = await called(found, 'lock', id, { doc: _id, renew }, granted, ...asked);
  if (!doc) return false;
  untold += 1;
  const belief = new Belief(found.$lock);
  await work(doc, id, belief);
  if (!isOriginal && random.chance(0.05)) {
    calls += 1;
    await called(
      found,
      'extend',
      `${setup.name}.${calls}`,
      { acquisition: id },
      extended,
      duration,
    );
    belief.look();
  }
  if (belief.to !== undefined) {
    journal.write({ e: 'held', acquisition: id, from: belief.from, to: belief.to });
  }
  calls += 1;
  const releaser = protection === 'unowned' ? Model.hydrate({ _id }) : found;
  await called(releaser, 'release', `${setup.name}.${calls}`, { acquisition: id }, released);
  return true;
}

async function lane(Model) {
  while (!stopping) {
    const done = await round(Model, random.pick(setup.ids));
    if (!done) await sleep(random.between(5, 80));
  }
}

process.on('message', (message) => {
  if (message === 'busy') busyRounds += 1;
  if (message === 'stop') stopping = true;
});

function tell() {
  if (process.connected) process.send(untold);
  untold = 0;
}

/** Mongoose's own connection is not what is tested: where the network is broken just now, it is opened again. */
async function connect() {
  const end = moment() + CONNECT_MS;
  for (;;) {
    const connection = mongoose.createConnection(setup.uri, setup.options);
    try {
      return await connection.asPromise();
    } catch (error) {
      await connection.close().catch(() => {});
      if (moment() > end) throw error;
      await sleep(100);
    }
  }
}

async function main() {
  const connection = await connect();
  const Model = connection.model('Counted', lockable());
  process.send('ready');
  setInterval(tell, 500).unref();
  await Promise.all(Array.from({ length: setup.lanes }, () => lane(Model)));
  tell();
  await connection.close();
  journal.write({ e: 'end' });
  process.disconnect();
}

main().catch((error) => {
  journal.write({ e: 'crash', message: `${error.name}: ${error.message}`, t: moment() });
  console.error(error);
  process.exit(1);
});
