'use strict';
/*
 * What every part of the contract stands on: one deployment, one connection and a database of its own for the whole
 * run, models on demand, and the server's own account of what was sent to it. It asserts nothing about the plugin.
 */

const mongoose = require('../support/mongoose');
const lockRelease = require('../..');
const { deployment } = require('../support/deployment');

const { ObjectId } = mongoose.mongo.BSON;

/** Long enough not to lapse on a busy machine; no spec waits for it. */
const LONG_MS = 10 * 60 * 1000;
/** The Mongoose under test, as a number. */
const major = Number.parseInt(mongoose.version, 10);

let deployed;
let connection;
let count = 0;

before(async function () {
  this.timeout(180000);
  deployed = await deployment();
  // Mongoose 6 would print a warning about the default that Mongoose 7 changes.
  mongoose.set('strictQuery', true);
  connection = await mongoose.createConnection(uri()).asPromise();
});

after(async function () {
  await connection?.dropDatabase();
  await connection?.close();
  await deployed?.stop();
});

const dbName = `contract_${process.pid}_${new ObjectId()}`;

/** The URI of the run's database. */
function uri(query) {
  return deployed.uriFor(dbName, query);
}

/** A name that no other model of the run has. */
function freshName(prefix = 'Model') {
  count += 1;
  return `${prefix}${count}`;
}

/**
 * A fresh model with the plugin.
 * @param {object | mongoose.Schema} [definition] default `{ name: String }`
 * @param {object} [how] `schema`, the schema's options; `plugin`, the plugin's; `prepare(schema)`, called before the
 *   model is compiled
 */
function lockable(definition = { name: String }, { schema: options, plugin, prepare } = {}) {
  const schema =
    definition instanceof mongoose.Schema ? definition : new mongoose.Schema(definition, options);
  schema.plugin(lockRelease, plugin);
  prepare?.(schema);
  return connection.model(freshName(), schema);
}

/** The document as it is stored, lockedBy included. */
function stored(doc) {
  return doc.collection.findOne({ _id: doc._id });
}

/** Writes past the plugin and past Mongoose, as an operator would. */
function write(doc, update) {
  return doc.collection.updateOne({ _id: doc._id }, update);
}

/** The stored document, loaded anew: to the plugin a stranger. */
function load(doc) {
  return doc.constructor.findById(doc._id);
}

/** The server's clock. */
async function serverNow() {
  const { localTime } = await connection.db.admin().command({ hello: 1 });
  return localTime;
}

/** Lets the lock of a document lapse, by a date that its own holder's record knows too. */
async function lapse(doc, path = 'locked') {
  const past = new Date((await serverNow()).getTime() - 1000);
  await write(doc, { $set: { [path]: past, [`${path}By.until`]: past } });
}

/** Whether this deployment has transactions. */
async function hasTransactions() {
  const hello = await connection.db.admin().command({ hello: 1 });
  return Boolean(hello.setName) || hello.msg === 'isdbgrid';
}

/** Runs `work` and resolves to what the server's profiler wrote down of the collection of `Model` meanwhile. */
async function profileDuring(Model, work) {
  const { db } = connection;
  await db.command({ profile: 2 });
  try {
    await work();
  } finally {
    await db.command({ profile: 0 });
  }
  const ns = `${db.databaseName}.${Model.collection.collectionName}`;
  const entries = await db.collection('system.profile').find({ ns }).sort({ ts: 1 }).toArray();
  await db.dropCollection('system.profile');
  return entries;
}

/** Runs `work` and resolves to the commands that reached the collection of `Model` meanwhile, as the server saw them. */
async function commandsDuring(Model, work) {
  const entries = await profileDuring(Model, work);
  return entries.map(({ command }) => command);
}

/** The error that a promise rejects with. */
async function failureOf(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error('it was fulfilled');
}

module.exports = {
  LONG_MS,
  commandsDuring,
  failureOf,
  freshName,
  hasTransactions,
  lapse,
  load,
  lockRelease,
  lockable,
  major,
  mongoose,
  profileDuring,
  serverNow,
  stored,
  uri,
  write,
  get connection() {
    return connection;
  },
};
