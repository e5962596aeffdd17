/*
 * The Mongoose under test: the environment variable MONGOOSE (6, 7, 8 or 9; default 9) chooses among the
 * aliases that package.json installs side by side. Specs, demo and benchmarks take Mongoose from here alone,
 * so that one run never mixes two versions. It must not configure Mongoose.
 */
'use strict';

const VERSIONS = ['6', '7', '8', '9'];
const major = process.env.MONGOOSE || '9';

if (!VERSIONS.includes(major)) {
  throw new Error(`MONGOOSE is ${JSON.stringify(major)}; it must be one of ${VERSIONS.join(', ')}`);
}

module.exports = require(`mongoose${major}`);
