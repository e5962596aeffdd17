/**
 * Row `start`: what it costs to have the plugin at all: the time of `require` in a fresh process,
 * and the size of the native binary. Needs no server.
 */
'use strict';

const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const { ADDON_BINARY, buildRelease } = require('../build');
const { spread, table, written } = require('../figures');

const GOALS = { requireMs: 15, binaryMegabytes: 10 };

const SUBJECTS = {
  ours: { title: 'this plugin', file: path.join(__dirname, '..', '..') },
  original: { title: 'the original', file: require.resolve('mongoose-lock-release-original') },
};

/** Printed by the fresh process: milliseconds that `require` took in it, the addon's load included. */
const SCRIPT = `
  const start = process.hrtime.bigint();
  require(process.argv[1]);
  console.log(Number(process.hrtime.bigint() - start) / 1e6);
`;

module.exports = {
  summary: 'the time of require in a fresh process, and the size of the native binary',

  async run({ quick, rounds }) {
    buildRelease();
    const count = rounds ?? (quick ? 5 : 20);
    const env = { ...process.env, NAPI_RS_NATIVE_LIBRARY_PATH: ADDON_BINARY };
    const times = Object.fromEntries(Object.keys(SUBJECTS).map((name) => [name, []]));
    // The first one brings the files into the system's cache and is thrown away.
    for (let round = 0; round <= count; round++) {
      for (const [name, { file }] of Object.entries(SUBJECTS)) {
        const printed = execFileSync(process.execPath, ['-e', SCRIPT, file], { env });
        if (round > 0) times[name].push(Number(printed));
      }
    }

    const binaryMegabytes = fs.statSync(ADDON_BINARY).size / 1e6;
    const requireMs = Object.fromEntries(
      Object.entries(times).map(([name, measured]) => [name, spread(measured)]),
    );
    const text = table([
      ['require in a fresh process, ms', `median of ${count} (lowest to highest)`, 'goal'],
      ...Object.entries(SUBJECTS).map(([name, { title }]) => [
        `  ${title}`,
        written(requireMs[name]),
        name === 'ours' ? `below ${GOALS.requireMs}` : '',
      ]),
      ['native binary, MB', binaryMegabytes.toFixed(1), `below ${GOALS.binaryMegabytes}`],
    ]);
    return { result: { requireMs, binaryMegabytes }, text };
  },
};
