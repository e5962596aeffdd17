'use strict';
/*
 * The same cases on the original package, which needs Mongoose 6, and on ours with the Mongoose under test: what each
 * comes to must be the same, but for the differences on purpose. The cases are in parity/.
 */

const assert = require('node:assert/strict');
const mongoose = require('./support/mongoose');
const mongoose6 = require('mongoose6');
const original = require('mongoose-lock-release-original');
const ours = require('..');
const { deployment } = require('./support/deployment');
const DIFFERENT = require('./parity/different');
const SAME = require('./parity/same');
const { World } = require('./parity/world');

describe('parity with the original', function () {
  this.timeout(120000);

  const worlds = {
    original: new World('original', original, mongoose6),
    ours: new World('ours', ours, mongoose),
  };
  let deployed;

  before(async function () {
    deployed = await deployment();
    await Promise.all(Object.values(worlds).map((world) => world.open(deployed)));
  });

  after(async function () {
    await Promise.all(Object.values(worlds).map((world) => world.close()));
    await deployed?.stop();
  });

  for (const [name, run] of Object.entries(SAME)) {
    it(`is the same for ${name}`, async function () {
      assert.deepEqual(await run(worlds.ours), await run(worlds.original));
    });
  }

  for (const [name, { why, run, ...expected }] of Object.entries(DIFFERENT)) {
    it(`differs on purpose for ${name}: ${why}`, async function () {
      for (const [package_, world] of Object.entries(worlds)) {
        assert.deepEqual(await run(world), expected[package_], package_);
      }
    });
  }
});
