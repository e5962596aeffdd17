/**
 * Contender: a loop in pure Rust that sends the commands of this plugin through the same driver,
 * with no JavaScript anywhere (`examples/limit.rs`). It is the limit of what the plugin can reach.
 */
'use strict';

const { LIMIT_BINARY } = require('../build');

module.exports = {
  title: 'the limit, pure Rust',
  needsBuild: true,
  binary: LIMIT_BINARY,
};
