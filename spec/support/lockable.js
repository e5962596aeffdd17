/*
 * A model that carries the plugin, and the one round of lock, refused lock and release that says "this connection
 * works". For specs about connections; the contract itself is specified elsewhere.
 */
'use strict';

const assert = require('node:assert/strict');
const mongoose = require('./mongoose');
const lockRelease = require('../..');

/** A fresh schema with the plugin: `{ name: String }`. */
function lockableSchema(schemaOptions) {
  return new mongoose.Schema({ name: String }, schemaOptions).plugin(lockRelease);
}

/** The model `Lockable` on this connection (or Mongoose instance), compiled at the first call. */
function lockableOn(connection, schemaOptions) {
  return connection.models.Lockable ?? connection.model('Lockable', lockableSchema(schemaOptions));
}

/** Stores a document, locks it, is refused a second lock, releases it; resolves to the document. */
async function lockAndRelease(connection) {
  const stored = await lockableOn(connection).create({ name: 'round' });
  const locked = await stored.lock(60000);
  assert.ok(locked, 'the first lock is granted');
  assert.ok(locked.locked.getTime() > Date.now(), 'its end lies ahead');
  assert.equal(await stored.lock(60000), null, 'the second lock is refused');
  const released = await stored.release();
  assert.ok(released, 'the release gives the document');
  return released;
}

module.exports = { lockAndRelease, lockableOn, lockableSchema };
