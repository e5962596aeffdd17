/*
 * Owns what the plugin adds beside the documents' methods: a model's statics, the helpers of its queries, and the
 * expressions that these are made of.
 */
'use strict';

const { claim } = require('./claim');
const { claims } = require('./claims');
const { traceOf } = require('./document');

/** Whether a document is locked, as an aggregation expression: judged by the server's clock. */
function locked(path = 'locked') {
  return { $gt: [`$${path}`, '$$NOW'] };
}

/** Whether a document can be locked: one without the path can. */
function unlocked(path = 'locked') {
  return { $lte: [`$${path}`, '$$NOW'] };
}

/** The statics that the plugin gives to a schema with these settings. */
function statics(settings) {
  return {
    claim: function claimDocuments(filter, duration, options) {
      return claim(this, settings, traceOf(claimDocuments), filter, duration, options);
    },
    claims: function claimWithoutEnd(filter, duration, options) {
      return claims(this, settings, traceOf(claimWithoutEnd), filter, duration, options);
    },
  };
}

/** The query helpers. */
function queryHelpers({ path }) {
  return {
    locked: function onlyLocked() {
      return this.and([{ $expr: locked(path) }]);
    },
    unlocked: function onlyUnlocked() {
      return this.and([{ $expr: unlocked(path) }]);
    },
  };
}

module.exports = { locked, queryHelpers, statics, unlocked };
