/**
 * One contender under a profiler: starts a server and the contender, lets it run, and meanwhile runs a command in
 * which `{pid}` stands for its process. Owns no figures: what it prints beside the command's output is only to tell
 * how much the profiler itself costs.
 *
 *   node bench/profile.js [--contender ours] [--flight 16] [--seconds 8] [--addon FILE] -- COMMAND...
 */
'use strict';

const { spawn } = require('node:child_process');
const { once } = require('node:events');
const path = require('node:path');
const { parseArgs } = require('node:util');

const { deployment } = require('../spec/support/deployment');
const { buildRelease } = require('./build');
const { startContender } = require('./contender');
const { onDatabase } = require('./database');
const { storedOrder } = require('./order');

const DOCUMENTS = 1024;
/** Until the contender's code is compiled as far as it ever will be. */
const WARM_MS = 5000;
const COLLECTION = 'orders';

async function main() {
  const { positionals, values } = parseArgs({
    allowPositionals: true,
    options: {
      contender: { type: 'string', default: 'ours' },
      flight: { type: 'string', default: '16' },
      seconds: { type: 'string', default: '8' },
      addon: { type: 'string' },
    },
  });
  if (!values.addon) buildRelease();
  const server = await deployment();
  let contender;
  try {
    const uri = server.uriFor('lock_release_profile');
    await onDatabase(uri, async (db) => {
      const orders = Array.from({ length: DOCUMENTS }, (_, number) => storedOrder(number));
      await db.collection(COLLECTION).insertMany(orders);
    });
    contender = await startContender(values.contender, {
      uri,
      collections: [COLLECTION],
      serverPids: server.servers.map(({ pid }) => pid),
      addon: values.addon && path.resolve(values.addon),
    });
    const measured = contender.measure({
      flight: Number(values.flight),
      warmMs: WARM_MS,
      measureMs: Number(values.seconds) * 1000,
    });
    await new Promise((resolve) => setTimeout(resolve, WARM_MS));
    const [program, ...args] = positionals.map((word) => word.replaceAll('{pid}', contender.pid));
    if (program) await once(spawn(program, args, { stdio: 'inherit' }), 'exit');
    console.log(await measured);
  } finally {
    await contender?.stop();
    await server.stop();
  }
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
