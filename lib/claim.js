/*
 * Owns `Model.claim`: the documents of a query, each locked for the caller. What is free and who gets it is decided natively.
 */
'use strict';

const { Acquisition } = require('./acquisition');
const {
  checkClaimOptions,
  checkDuration,
  checkFilter,
  filterError,
  sortError,
} = require('./arguments');
const { begin } = require('./client');
const { hold, modelFor } = require('./document');
const { releaseAtExit } = require('./exit');
const { Patience } = require('./patience');

/** Filter and order, cast as Mongoose casts those of a find. */
function castQuery(Model, filter, sort) {
  const query = Model.find(filter);
  query._castConditions();
  const failure = query.error();
  // A Date, a Map: objects, but no filters.
  if (failure?.name === 'ObjectParameterError') throw filterError(filter);
  if (failure) throw failure;
  if (sort === undefined || sort === null) return { filter: query.getFilter() };
  try {
    return { filter: query.getFilter(), sort: orderOf(query.sort(sort).getOptions()) };
  } catch (error) {
    throw sortError(sort, error);
  }
}

const DIRECTIONS = { 1: 1, asc: 1, ascending: 1, '-1': -1, desc: -1, descending: -1 };

/** What Mongoose has made of an order: an object, and up to version 7 pairs or a Map if that was given. */
function orderOf({ sort = {} }) {
  const pairs = typeof sort[Symbol.iterator] === 'function' ? [...sort] : Object.entries(sort);
  if (pairs.length === 0) throw new TypeError('it names no path');
  const order = {};
  for (const [path, given] of pairs) {
    const direction = given?.$meta ? given : DIRECTIONS[given];
    if (path === '' || !direction) {
      throw new TypeError(`the direction of "${path}" must be 1 or -1`);
    }
    order[path] = direction;
  }
  return order;
}

/**
 * Claims documents of a query.
 * @returns {Promise<object[]>} the documents, each with a lock of its own; none when there are none
 */
async function claim(Model, settings, trace, filter, duration, given) {
  const durationMs = checkDuration(duration);
  checkFilter(filter);
  const { terms, wait, signal, limit, sort } = checkClaimOptions(given, durationMs);
  // By the model that was asked: it may be a discriminator of the one that it is locked through.
  const cast = castQuery(Model, filter, sort);
  const model = modelFor(Model, settings);
  const patience = wait > 0 || signal ? new Patience(wait, signal) : undefined;
  const opened = model.open('claim');
  const orAborted = (promise) => patience?.orAborted(promise) ?? promise;
  const collection = opened instanceof Promise ? await orAborted(opened) : opened;
  const query = model.query(cast);
  const won = [];
  const read = (bytes, lease) => {
    const raw = model.parse(bytes);
    const acquisition = new Acquisition(model, model.keyOfRaw(raw), lease);
    won.push(acquisition);
    return { raw, acquisition };
  };
  const letGo = (acquisition) => acquisition.letGo(trace).catch(() => {});
  if (terms) releaseAtExit(settings.exitTimeout);
  const call = { trace, mongo: model.mongo, read };
  const start = (number, ms) => collection.claim(number, query, durationMs, limit, terms, ms);
  const abandon = (lease, bytes) => letGo(read(bytes, lease).acquisition);
  const claimed = await (patience ? patience.begin(call, start, abandon) : begin(call, start));
  try {
    return claimed.map(({ raw, acquisition }) => {
      const doc = model.hydrate(raw);
      acquisition.key = model.keyOf(doc);
      hold(doc, acquisition);
      return doc;
    });
  } catch (error) {
    // An init hook of the user's has thrown: nobody gets the others either.
    for (const acquisition of won) letGo(acquisition);
    throw error;
  }
}

module.exports = { claim };
