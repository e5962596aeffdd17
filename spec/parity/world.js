'use strict';
/*
 * One of the two packages with its Mongoose and a database of its own, so that one case can run on either, and results
 * in a form that can be compared. Only the original's own interface is used: the model's name, `lock(duration,
 * callback)` and `release(callback)`. It knows nothing of what the cases should come to.
 */

const assert = require('node:assert/strict');

const LONG_MS = 10 * 60 * 1000;
/** Clocks of one machine differ by less, and durations here by more. */
const NOW_MS = 60 * 1000;

/** One of the two packages, on a database of its own. */
class World {
  #count = 0;
  #name;

  constructor(name, plugin, base) {
    this.#name = name;
    this.plugin = plugin;
    this.base = base;
    base.set('strictQuery', true);
  }

  async open(deployed) {
    const uri = deployed.uriFor(`parity_${this.#name}_${process.pid}`);
    this.connection = await this.base.createConnection(uri).asPromise();
  }

  async close() {
    await this.connection?.dropDatabase();
    await this.connection?.close();
  }

  schema(definition = { name: String, total: Number }, options) {
    return new this.base.Schema(definition, options);
  }

  /** A fresh model with the plugin, told its name as the original wants it. */
  model(definition, options, prepare) {
    const name = `Order${(this.#count += 1)}`;
    const schema = this.schema(definition, options);
    schema.plugin(this.plugin, name);
    prepare?.(schema, this.base.Schema);
    return this.connection.model(name, schema);
  }

  /** What the callback of lock or release gets: the document or null, or the error. */
  call(doc, verb, ...args) {
    return new Promise((resolve, reject) => {
      try {
        doc[verb](...args, (error, result) => resolve(error ?? result ?? null));
      } catch (error) {
        reject(error);
      }
    });
  }

  lock(doc, duration = LONG_MS) {
    return this.call(doc, 'lock', duration);
  }

  release(doc) {
    return this.call(doc, 'release');
  }
}

/** The document loaded anew: to the plugin a stranger. */
const load = (doc) => doc.constructor.findById(doc._id);
const raw = (doc) => doc.collection.findOne({ _id: doc._id });
const write = (doc, set) => doc.collection.updateOne({ _id: doc._id }, { $set: set });

/** Where a date lies, for what runs at different times. */
function moment(date) {
  if (!(date instanceof Date)) return `${date}`;
  if (date.getTime() === 0) return '1970';
  const ahead = date - Date.now();
  if (Math.abs(ahead) < NOW_MS) return 'now';
  return ahead > 0 ? `ahead, ${Math.round(ahead / NOW_MS)} min` : 'past';
}

/** All that matters of a result, in a form that can be compared between the two. */
function shape(result) {
  if (result === null || result === undefined) return null;
  if (result instanceof Error) return `${result.name} ${result.code ?? ''}`.trim();
  const { _id, locked, ...fields } = result.toObject();
  for (const [name, value] of Object.entries(fields)) {
    if (value instanceof Date) fields[name] = moment(value);
  }
  const shown = {
    fields,
    hasId: _id !== undefined,
    locked: moment(locked),
    model: result.constructor.modelName,
    isNew: result.isNew,
    modified: result.modifiedPaths(),
  };
  // The numbers of the models are the run's.
  return JSON.parse(JSON.stringify(shown).replaceAll(/\bOrder\d+/g, 'Order'));
}

async function lockedAt(doc) {
  return moment((await raw(doc)).locked);
}

/** Lets the lock lapse as time would. */
async function lapse(doc) {
  const { lockedBy } = await raw(doc);
  const past = new Date(Date.now() - 1000);
  await write(doc, { locked: past, ...(lockedBy ? { 'lockedBy.until': past } : {}) });
}

function isDated(text) {
  return ['1970', 'now', 'past'].includes(text) || text.startsWith('ahead');
}

/** The moments of all dates in a stored document, in the order of its fields. */
async function momentsOf(doc) {
  return Object.values(await raw(doc))
    .map(moment)
    .filter(isDated);
}

/** Another object of the document takes the lock. */
async function takeOver(world, doc) {
  assert.ok(await world.lock(await load(doc)));
}

module.exports = {
  LONG_MS,
  World,
  lapse,
  load,
  lockedAt,
  moment,
  momentsOf,
  raw,
  shape,
  takeOver,
  write,
};
