/*
 * Owns the loading of the native binary: it says what to do when there is none that works. What is in it, the generated
 * binding says.
 */
'use strict';

try {
  module.exports = require('../binding');
} catch (cause) {
  throw new Error(
    'the native binary of mongoose-lock-release is missing or does not load: run `npm rebuild mongoose-lock-release`, ' +
      'which needs a Rust toolchain (https://rustup.rs); if npm blocked its install script, approve that first',
    { cause },
  );
}
