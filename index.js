/*
 * The plugin: adds the lock's paths and methods to a schema. Thin: no I/O, no BSON; the work is in lib/ and, below it, in
 * the native addon.
 */
'use strict';

const { checkPluginOptions } = require('./lib/arguments');
const { methods } = require('./lib/document');
const { LockError } = require('./lib/errors');
const { locked, queryHelpers, statics, unlocked } = require('./lib/statics');

/** Marks the methods with the settings that they were made with: they survive the cloning of schemas. */
const SETTINGS = Symbol('mongoose-lock-release.settings');
const WRAPPED = Symbol('mongoose-lock-release.wrapped');

/**
 * Default of the lock's date: 1970 for new documents, which is lockable at once whatever the clocks say. Not for others: a
 * document from before the plugin would get it when it is loaded, and its next save() would write it over a held lock.
 */
function onlyWhenNew(value) {
  if (value?.[WRAPPED]) return value;
  function defaultOfLocked() {
    if (!this?.isNew || this.$isSubdocument) return undefined;
    return typeof value === 'function' ? value.call(this, this) : value;
  }
  return Object.assign(defaultOfLocked, { [WRAPPED]: true });
}

function addDate(schema, path) {
  const kind = schema.pathType(path);
  if (kind === 'real' && schema.path(path).instance === 'Date') {
    const type = schema.path(path);
    if (type.defaultValue !== undefined) type.default(onlyWhenNew(type.defaultValue));
    return;
  }
  if (kind !== 'adhocOrUndefined') {
    throw new TypeError(
      `mongoose-lock-release needs the path "${path}" to be a Date, but the schema has it as ` +
        `${schema.path(path)?.instance ?? kind}; another path can be chosen with the option { path: '…' }`,
    );
  }
  const type = schema.options.typeKey ?? 'type';
  schema.add({ [path]: { [type]: Date, default: onlyWhenNew(() => new Date(0)) } });
}

function addHolder(schema, { path, by }) {
  if (schema.pathType(by) !== 'adhocOrUndefined') {
    throw new TypeError(
      `mongoose-lock-release keeps the holder of the lock in "${by}", but the schema has that path already; ` +
        `its name follows the option path (now '${path}'): choose another`,
    );
  }
  const type = schema.options.typeKey ?? 'type';
  schema.add({ [by]: { [type]: 'Mixed', select: false, immutable: true } });
  schema.pre('save', function keepHolder() {
    if (this.isNew) return;
    // A dotted key in a request's body marks a path below it.
    for (const modified of this.modifiedPaths()) {
      if (modified === by || modified.startsWith(`${by}.`)) this.unmarkModified(modified);
    }
  });
}

function addMethods(schema, settings) {
  for (const [name, method] of Object.entries(methods(settings))) {
    const known = schema.methods[name];
    const isField = schema.pathType(name) !== 'adhocOrUndefined';
    if (name !== 'lock' && name !== 'release' && (isField || (known && !known[SETTINGS]))) continue;
    if (isField) {
      throw new TypeError(
        `mongoose-lock-release adds the method "${name}", but the schema has a field of that name`,
      );
    }
    schema.methods[name] = Object.assign(method, { [SETTINGS]: settings });
  }
}

/** What the user's schema calls by the same name stays. */
function addUnlessThere(target, additions, settings) {
  for (const [name, addition] of Object.entries(additions)) {
    if (target[name] && !target[name][SETTINGS]) continue;
    target[name] = Object.assign(addition, { [SETTINGS]: settings });
  }
}

/**
 * Mongoose plugin that adds `lock`, `release`, `extend` and `withLock` to documents, `claim` and `claims` to models, and
 * `locked` and `unlocked` to queries.
 * @param {import('mongoose').Schema} schema
 * @param {string | object} [options] the name of the model to lock through, or options: see index.d.ts
 */
function lockReleasePlugin(schema, options) {
  const {
    path = 'locked',
    fence = true,
    exitTimeout = 1000,
    pollInterval = 250,
    ...rest
  } = checkPluginOptions(options);
  const earlier = schema.methods.lock?.[SETTINGS];
  // Applied globally and again to one schema, in either order: what was asked for explicitly holds.
  if (earlier && (options === undefined || options === null)) return;
  const settings = { ...rest, path, fence, exitTimeout, pollInterval, by: `${path}By` };
  addDate(schema, path);
  if (earlier?.by !== settings.by) addHolder(schema, settings);
  addMethods(schema, settings);
  addUnlessThere(schema.statics, statics(settings), settings);
  addUnlessThere(schema.query, queryHelpers(settings), settings);
}

module.exports = lockReleasePlugin;
module.exports.LockError = LockError;
module.exports.locked = locked;
module.exports.unlocked = unlocked;
