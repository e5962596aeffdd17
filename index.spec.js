'use strict';
/*
 * The contract: the example of the original's README, then every part of what is promised to users, each in a file of
 * spec/contract/, on one real deployment. It holds on every Mongoose of 6 to 9, on a replica set and on a single
 * server. Connections, faults and processes are specified in spec/.
 */

const assert = require('node:assert/strict');
const fs = require('node:fs');
const path = require('node:path');
const stage = require('./spec/contract/stage');

const { lockRelease, major, mongoose } = stage;
const PACKAGE = path.dirname(require.resolve('mongoose-lock-release-original'));

/** The example in the original's README, as it is there: the block of indented lines from its first `require` on. */
function originalExample() {
  const lines = fs.readFileSync(path.join(PACKAGE, 'README.md'), 'utf8').split('\n');
  const start = lines.findIndex((line) =>
    line.startsWith("    var mongoose = require('mongoose')"),
  );
  const end = lines.findIndex((line, i) => i > start && /^\S/.test(line));
  return lines.slice(start, end).join('\n');
}

/** The same, but for what this Mongoose has no more, and for how the plugin is registered. */
function adapted(example, registration) {
  const plugin = "MySchema.plugin(lockRelease, 'MySchema');";
  const save = 'myModel.save(cb);';
  assert.ok(example.includes(plugin) && example.includes(save));
  const registered = example.replace(plugin, registration);
  // From Mongoose 7 on save() takes no callback.
  return major < 7 ? registered : registered.replace(save, 'myModel.save().then(() => cb(), cb);');
}

describe('the example of the original’s README', function () {
  const REGISTRATIONS = [
    "MySchema.plugin(lockRelease, 'MySchema');",
    'MySchema.plugin(lockRelease);',
    "MySchema.plugin(lockRelease, { modelName: 'MySchema', label: 'example' });",
  ];

  for (const registration of REGISTRATIONS) {
    it(`runs with ${registration}`, async function () {
      const own = new mongoose.Mongoose();
      own.set('strictQuery', true);
      await own.connect(stage.uri());
      try {
        const modules = {
          mongoose: own,
          'mongoose-lock-release': lockRelease,
          async: require('async'),
        };
        const example = new Function(
          'require',
          'done',
          `${adapted(originalExample(), registration)}; return myModel;`,
        );
        let myModel;
        await new Promise((resolve, reject) => {
          myModel = example(
            (name) => modules[name],
            (error) => (error ? reject(error) : resolve()),
          );
        });
        const raw = await stage.stored(myModel);
        assert.equal(raw.whatever, 'yeah');
        assert.equal(raw.lockedBy.token, 1);
        assert.deepEqual(raw.locked, raw.lockedBy.until);
        assert.ok(await myModel.lock(stage.LONG_MS), 'it can be locked again');
        assert.equal(await myModel.lock(stage.LONG_MS), null);
        await myModel.collection.deleteOne({ _id: myModel._id });
      } finally {
        await own.disconnect();
      }
    });
  }
});

describe('the package', function () {
  it('exports the plugin, named, with LockError and two expressions beside it, and nothing else', function () {
    assert.equal(typeof lockRelease, 'function');
    assert.equal(lockRelease.name, 'lockReleasePlugin');
    assert.deepEqual(Object.keys(lockRelease), ['LockError', 'locked', 'unlocked']);
    const error = new lockRelease.LockError('ERR_LOCK_LOST', 'gone');
    assert.ok(error instanceof Error);
    assert.equal(error.code, 'ERR_LOCK_LOST');
    assert.equal(error.name, 'LockError');
    assert.match(String(error.stack), /^LockError: gone/);
  });
});

for (const part of [
  'locking',
  'waiting',
  'holding',
  'answering',
  'arguments',
  'schema',
  'documents',
  'by-id',
  'claiming',
  'queueing',
]) {
  require(`./spec/contract/${part}`);
}
