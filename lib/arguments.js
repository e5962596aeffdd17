/*
 * Owns the checks of what users give to the plugin and to a document's methods. Nothing native is called before they
 * have passed, and every message names the argument and the value.
 */
'use strict';

const { inspect } = require('node:util');
const { argumentError } = require('./errors');

/** The last moment that a JavaScript Date can hold, in milliseconds. */
const LAST_DATE = 8.64e15;

const PLUGIN_OPTIONS = [
  'modelName',
  'path',
  'label',
  'fence',
  'writeConcern',
  'exitTimeout',
  'pollInterval',
];

function show(value) {
  const text =
    typeof value === 'bigint' ? `${value}n` : inspect(value, { depth: 0, breakLength: 80 });
  return text.length > 60 ? `${text.slice(0, 60)}…` : text;
}

/** The duration in whole milliseconds, rounded up. */
function checkDuration(duration) {
  if (typeof duration !== 'number') {
    throw argumentError(
      TypeError,
      `duration must be a number of milliseconds, got ${show(duration)}`,
    );
  }
  if (!(duration >= 0) || Date.now() + duration > LAST_DATE) {
    throw argumentError(
      RangeError,
      `duration must be a number of milliseconds from 0 up to the end of the Date range, got ${show(duration)}`,
    );
  }
  return Math.ceil(duration);
}

function checkObject(name, value, known) {
  if (value === null || typeof value !== 'object' || Array.isArray(value)) {
    throw argumentError(TypeError, `${name} must be an object, got ${show(value)}`);
  }
  for (const key of Object.keys(value)) {
    if (!known.includes(key)) {
      const list = known.length > 0 ? `known: ${known.join(', ')}` : 'there are none yet';
      throw argumentError(
        TypeError,
        `${name}.${key} is not an option (${list}), got ${show(value[key])}`,
      );
    }
  }
}

const LOCK_OPTIONS = ['wait', 'signal', 'renew', 'maxHold', 'maxStall'];

/** The shortest duration that can be renewed: a third of it has to be enough for a command. */
const SHORTEST_RENEWED = 100;

/** After so many milliseconds without a turn of the event loop a process is taken for hung. */
const DEFAULT_MAX_STALL = 60_000;

function isPositive(ms) {
  return typeof ms === 'number' && ms > 0;
}

function isSignal(value) {
  return typeof value?.aborted === 'boolean' && typeof value.addEventListener === 'function';
}

const CLAIM_OPTIONS = [...LOCK_OPTIONS, 'limit', 'sort'];
const CLAIMS_OPTIONS = ['signal', 'renew', 'maxHold', 'maxStall', 'sort', 'concurrency'];

/** The most documents that one claim can have. */
const MOST_CLAIMED = 1000;

/** Throws unless a claim can be made with this filter. */
function checkFilter(filter) {
  if (filter === null || typeof filter !== 'object' || Array.isArray(filter)) {
    throw filterError(filter);
  }
}

/** An error about what is no filter. */
function filterError(filter) {
  return argumentError(TypeError, `filter must be an object, got ${show(filter)}`);
}

function checkCount(name, value) {
  if (!Number.isInteger(value) || value < 1 || value > MOST_CLAIMED) {
    const Type = typeof value === 'number' ? RangeError : TypeError;
    throw argumentError(
      Type,
      `options.${name} must be a whole number from 1 to ${MOST_CLAIMED}, got ${show(value)}`,
    );
  }
  return value;
}

/** What the options of a claim come to: those of a lock call, and `limit`. */
function checkClaimOptions(options, duration) {
  const { limit = 1, sort, ...rest } = checkKnown(options, CLAIM_OPTIONS);
  return { ...checkLockOptions(rest, duration), sort, limit: checkCount('limit', limit) };
}

/** What the options of endless claims come to: those of each claim, how many at once, and what ends them. */
function checkClaimsOptions(options, duration) {
  const { concurrency = 1, signal, sort, ...rest } = checkKnown(options, CLAIMS_OPTIONS);
  const each = { renew: true, ...rest };
  checkLockOptions({ ...each, signal }, duration);
  return { each: { ...each, sort }, concurrency: checkCount('concurrency', concurrency), signal };
}

function checkKnown(options, known) {
  if (options === undefined || options === null) return {};
  checkObject('options', options, known);
  return options;
}

/** An error about an order that cannot be used, for the reason that Mongoose gave. */
function sortError(sort, cause) {
  const message = `options.sort must be an order as Mongoose takes it, got ${show(sort)}: ${cause.message}`;
  return Object.assign(argumentError(TypeError, message), { cause });
}

/**
 * What the options of a lock call come to: `terms` on which the lock is kept alive, or undefined if it is not to be;
 * `wait`, in milliseconds; `signal`, if there is one.
 * @param {number} duration the lock's, checked
 * @param {boolean} renew whether it is kept alive, unless the options say otherwise
 */
function checkLockOptions(options, duration, renew = false) {
  if (options === undefined || options === null) {
    return { terms: renew ? termsOf({}, duration) : undefined, wait: 0 };
  }
  checkObject('options', options, LOCK_OPTIONS);
  checkOption(options, 'wait', (ms) => typeof ms === 'number' && ms >= 0, TIME_OR_FOREVER);
  checkOption(options, 'signal', isSignal, 'an AbortSignal');
  checkOption(options, 'renew', (value) => typeof value === 'boolean', 'true or false');
  checkOption(options, 'maxHold', isPositive, POSITIVE_TIME);
  checkOption(options, 'maxStall', isPositive, POSITIVE_TIME);
  const { wait = 0, signal, renew: renewed = renew } = options;
  return { terms: renewed ? termsOf(options, duration) : undefined, wait, signal };
}

const TIME_OR_FOREVER = 'a number of milliseconds, 0 or more, or Infinity';
const POSITIVE_TIME = 'a number of milliseconds above 0, or Infinity';

function termsOf({ maxHold = Infinity, maxStall = DEFAULT_MAX_STALL }, duration) {
  if (duration < SHORTEST_RENEWED) {
    throw argumentError(
      RangeError,
      `duration must be at least ${SHORTEST_RENEWED} ms for a lock that is renewed, got ${duration}`,
    );
  }
  return { maxHold, maxStall };
}

/** What `withLock` is to run. */
function checkFunction(fn) {
  if (typeof fn !== 'function') {
    throw argumentError(TypeError, `fn must be a function, got ${show(fn)}`);
  }
}

/** Throws, always: without a function there is nobody to tell otherwise. */
function checkCallback(callback) {
  if (callback !== undefined && callback !== null && typeof callback !== 'function') {
    throw argumentError(TypeError, `callback must be a function, got ${show(callback)}`);
  }
}

function checkOption(options, name, isValid, wanted) {
  const value = options[name];
  if (value !== undefined && !isValid(value)) {
    throw argumentError(TypeError, `options.${name} must be ${wanted}, got ${show(value)}`);
  }
}

const isText = (value) => typeof value === 'string' && value !== '';

/** The plugin's own options, as an object whatever form they were given in. */
function checkPluginOptions(options) {
  if (options === undefined || options === null) return {};
  if (typeof options === 'string') options = { modelName: options };
  checkObject('options', options, PLUGIN_OPTIONS);
  // The original took the model's name as a string; an empty one is a slip.
  checkOption(options, 'modelName', isText, 'the name of a model');
  checkOption(
    options,
    'path',
    (path) => isText(path) && path.split('.').every((name) => /^[^$\0]/.test(name)),
    'a path in the document',
  );
  checkOption(options, 'label', (label) => typeof label === 'string', 'a string');
  checkOption(options, 'fence', (fence) => typeof fence === 'boolean', 'true or false');
  checkOption(
    options,
    'exitTimeout',
    (ms) => typeof ms === 'number' && ms >= 0 && ms <= 2 ** 31 - 1,
    'a number of milliseconds',
  );
  checkOption(
    options,
    'pollInterval',
    (ms) => typeof ms === 'number' && ms >= 10 && ms <= 2 ** 31 - 1,
    'a number of milliseconds, 10 or more',
  );
  if (options.writeConcern !== undefined) checkWriteConcern(options.writeConcern);
  return options;
}

function checkWriteConcern(writeConcern) {
  checkObject('options.writeConcern', writeConcern, ['w', 'j', 'wtimeout', 'wtimeoutMS']);
  const { w } = writeConcern;
  const acknowledged = isText(w) || (Number.isInteger(w) && w >= 1);
  if (w !== undefined && !acknowledged) {
    throw argumentError(
      RangeError,
      `options.writeConcern.w must be "majority", a tag, or a number from 1 (a lock must be acknowledged), got ${show(w)}`,
    );
  }
}

module.exports = {
  checkCallback,
  checkClaimOptions,
  checkClaimsOptions,
  checkDuration,
  checkFilter,
  checkFunction,
  checkLockOptions,
  checkPluginOptions,
  filterError,
  sortError,
};
