/*
 * Owns what the commands and their results need to know of a Mongoose model, worked out once per model: the fields that
 * a query of Mongoose's own would return, the key that finds a document, its timestamps. It sends nothing.
 */
'use strict';

const { hostname } = require('node:os');
const { clientOf, openClient } = require('./client');

/** Paths with `select: false`, which Mongoose's queries leave out; a discriminator's too. */
function excludedPaths(schema, prefix = '', found = new Set()) {
  schema.eachPath((name, type) => {
    const path = prefix + name;
    if (type.options.select === false) {
      found.add(path);
    } else if (type.schema) {
      excludedPaths(type.schema, `${path}.`, found);
    }
  });
  for (const discriminator of Object.values(schema.discriminators ?? {})) {
    excludedPaths(discriminator, prefix, found);
  }
  return found;
}

/** The parent of what is excluded is enough: the server refuses both. */
function projection(excluded) {
  const fields = {};
  for (const path of excluded) {
    const names = path.split('.');
    const parents = names.map((_, i) => names.slice(0, i).join('.')).slice(1);
    if (!parents.some((parent) => excluded.has(parent))) fields[path] = 0;
  }
  return fields;
}

class LockedModel {
  constructor(Model, settings) {
    this.Model = Model;
    this.settings = settings;
    this.mongo = Model.base.mongo;
    this.discriminators = Object.keys(Model.discriminators ?? {}).length;

    const excluded = excludedPaths(Model.schema);
    for (const { schema } of Object.values(Model.discriminators ?? {})) {
      excludedPaths(schema, '', excluded);
    }
    // The holder's record is read for the lock's sake, and taken out natively.
    excluded.delete(settings.by);
    const fields = projection(excluded);
    this.hidden = Object.keys(fields).length > 0 ? { ...fields, [settings.by]: 0 } : undefined;
    this.target = {
      collection: Model.collection.collectionName ?? Model.collection.name,
      locked: settings.path,
      by: settings.by,
      label: settings.label ?? `${hostname()}:${process.pid}`,
      fields,
      writeConcern: writeConcern(settings.writeConcern),
      pollIntervalMs: Math.ceil(settings.pollInterval),
    };

    const { discriminatorMapping, options, $timestamps } = Model.schema;
    this.constantKey =
      discriminatorMapping && !discriminatorMapping.isRoot
        ? { [discriminatorMapping.key]: discriminatorMapping.value }
        : {};
    this.shardKey = Object.keys(options.shardKey || {});
    this.collation = options.collation;
    this.updatedAt = $timestamps?.updatedAt || undefined;
    this.currentTime = options.timestamps?.currentTime ?? (() => Model.base.now());
    this.client = undefined;
    this.collection = undefined;
  }

  /** Which document a call is about: its `_id`, and whatever else must be equal to reach it. */
  keyOf(doc) {
    // Without getters: what is stored, not what is shown. (A UUID's own getter gives a string.)
    const valueOf = (path) => doc.get(path, null, { getters: false });
    const key = { _id: valueOf('_id'), ...this.constantKey };
    for (const path of this.shardKey) key[path] = valueOf(path);
    return key;
  }

  /** The key of a document that is not a document yet. */
  keyOfRaw(raw) {
    const valueOf = (path) => path.split('.').reduce((inside, name) => inside?.[name], raw);
    const key = { _id: raw._id, ...this.constantKey };
    for (const path of this.shardKey) key[path] = valueOf(path);
    return key;
  }

  /** The subject of a command, as BSON: the key, and the fields that change with it. */
  subject(key) {
    return this.mongo.BSON.serialize({ key, set: this.#changes() });
  }

  /** Which documents a claim is about, as BSON: a filter and an order as Mongoose has cast them. */
  query({ filter, sort }) {
    const query = { filter: { ...filter, ...this.constantKey }, set: this.#changes() };
    if (sort) query.sort = sort;
    if (this.collation) query.collation = this.collation;
    const { ignoreUndefined } = this.bsonOptions ?? {};
    return this.mongo.BSON.serialize(query, { ignoreUndefined });
  }

  #changes() {
    if (!this.updatedAt) return {};
    const now = this.currentTime();
    return { [this.updatedAt]: this.Model.schema.path(this.updatedAt)?.cast(now) ?? now };
  }

  /** A hydrated document, as a query of Mongoose's own would have made it. */
  read(bytes) {
    return this.hydrate(this.parse(bytes));
  }

  /** What was read, not hydrated yet. */
  parse(bytes) {
    return this.mongo.BSON.deserialize(bytes, this.bsonOptions);
  }

  /** A document of what was read. */
  hydrate(raw) {
    if (!this.hidden) return this.Model.hydrate(raw);
    // What hydrate() does, with the paths that were not read. Given those, it breaks arrays that have one inside on
    // Mongoose 6 and 7, and forgets them when it makes a discriminator.
    const options = { skipId: true, isNew: false, willInit: true };
    const doc = new (this.classOf(raw))(undefined, this.hidden, options);
    doc.$init(raw);
    return doc;
  }

  /** The model of a document read through this one: itself, or a discriminator. */
  classOf(raw) {
    const { discriminators, schema } = this.Model;
    if (!schema.discriminatorMapping?.isRoot || !discriminators) return this.Model;
    const kind = raw[schema.discriminatorMapping.key];
    const isOf = (Model) => Model.schema.discriminatorMapping.value === kind;
    return Object.values(discriminators).find(isOf) ?? this.Model;
  }

  /** The native collection, at once if the client is there, else a promise of it. */
  open(operation) {
    const client = clientOf(this.Model);
    if (client !== undefined && client === this.client) return this.collection;
    return client ? this.bind(client) : openClient(this.Model, operation).then((c) => this.bind(c));
  }

  bind(client) {
    const { db } = this.Model;
    this.bsonOptions = db.getClient().bsonOptions;
    this.client = client;
    this.collection = client.collection(db.db?.databaseName ?? db.name, this.target, this.mongo);
    return this.collection;
  }
}

/** Majority unless told otherwise: a lock that a failover rolls back is no lock. */
function writeConcern({ w = 'majority', j, wtimeout, wtimeoutMS = wtimeout } = {}) {
  return { w, j, wtimeout: wtimeoutMS };
}

/** Settings -> (Model -> LockedModel) */
const models = new WeakMap();

/** What is known of a model; worked out again when it has got more discriminators. */
function lockedModel(Model, settings) {
  let known = models.get(settings);
  if (!known) models.set(settings, (known = new WeakMap()));
  let model = known.get(Model);
  const count = Model.discriminators ? Object.keys(Model.discriminators).length : 0;
  if (!model || model.discriminators !== count) {
    known.set(Model, (model = new LockedModel(Model, settings)));
  }
  return model;
}

module.exports = { lockedModel };
