/**
 * What the benchmarks themselves do in a database: prepare it, ask its version, drop it. By the bare
 * driver, so that no contender is involved.
 */
'use strict';

/** Runs a task on the database that a URI names, and resolves to what it resolves to. */
async function onDatabase(uri, task) {
  const { MongoClient } = require('mongoose9').mongo;
  const client = new MongoClient(uri);
  try {
    return await task(client.db());
  } finally {
    await client.close();
  }
}

module.exports = { onDatabase };
