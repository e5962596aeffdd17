/*
 * Owns `Model.claim`: the documents of a query, each locked for the caller. What is free and who gets it is decided natively.
 */
'use strict';

const { Acquisition } = require('./acquisition');
const { checkClaimOptions, checkDuration, checkFilter, sortError } = require('./arguments');
const { begin } = require('./client');
const { hold, modelFor } = require('./document');
const { releaseAtExit } = require('./exit');
const { Patience } = require('./patience');

/** Filter and order, cast as Mongoose casts those of a find. */
function castQuery(Model, filter, sort) {
  const query = Model.find(filter);
  query._castConditions();
  if (query.error()) throw query.error();
  if (sort === undefined || sort === null) return { filter: query.getFilter() };
  try {
    query.sort(sort);
    checkOrder(query.getOptions().sort);
  } catch (error) {
    throw sortError(sort, error);
  }
  return { filter: query.getFilter(), sort: query.getOptions().sort };
}

function checkOrder(order = {}) {
  const paths = Object.entries(order);
  if (paths.length === 0) throw new TypeError('it names no path');
  for (const [path, direction] of paths) {
    if (path === '' || (direction !== 1 && direction !== -1)) {
      throw new TypeError(`the direction of "${path}" must be 1 or -1`);
    }
  }
}

/**
 * Claims documents of a query.
 * @returns {Promise<object[]>} the documents, each with a lock of its own; none when there are none
 */
async function claim(Model, settings, trace, filter, duration, given) {
  const durationMs = checkDuration(duration);
  checkFilter(filter);
  const { terms, wait, signal, limit, sort } = checkClaimOptions(given, durationMs);
  const model = modelFor(Model, settings);
  const cast = castQuery(model.Model, filter, sort);
  const patience = wait > 0 || signal ? new Patience(wait, signal) : undefined;
  const opened = model.open('claim');
  const orAborted = (promise) => patience?.orAborted(promise) ?? promise;
  const collection = opened instanceof Promise ? await orAborted(opened) : opened;
  const query = model.query(cast);
  /** What was won and nobody gets: released by its lease. */
  const abandon = (lease, bytes) => {
    const { _id } = model.mongo.BSON.deserialize(bytes);
    const release = { trace, mongo: model.mongo, read: () => null };
    const subject = model.subject({ _id, ...model.constantKey });
    begin(release, (number) => collection.release(number, subject, lease)).catch(() => {});
  };
  const won = [];
  let failure;
  const read = (bytes, lease) => {
    won.push([lease, bytes]);
    try {
      const { doc, by } = model.read(bytes);
      hold(doc, new Acquisition(model, model.keyOf(doc), lease, by));
      return doc;
    } catch (error) {
      failure ??= { error };
      return null;
    }
  };
  if (terms) releaseAtExit(settings.exitTimeout);
  const call = { trace, mongo: model.mongo, read };
  const start = (number, ms) => collection.claim(number, query, durationMs, limit, terms, ms);
  const claimed = await (patience ? patience.begin(call, start, abandon) : begin(call, start));
  if (failure) {
    // An init hook of the user's has thrown: nobody gets any of them.
    for (const [lease, bytes] of won) abandon(lease, bytes);
    throw failure.error;
  }
  return claimed ?? [];
}

module.exports = { claim };
