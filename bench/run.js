/**
 * Entry of the benchmarks: picks the rows, says on what machine they ran, prints their tables and
 * writes their results. Each file under rows/ is one row and exports
 * `{ summary, run(options): Promise<{ result, text, failure }> }`; run.js must know nothing else of
 * it. A row with a `failure`, a sentence that says what of, makes the exit code 1.
 *
 *   npm run bench -- [row ...] [--quick] [--rounds N] [--only contender,contender]
 */
'use strict';

const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { parseArgs } = require('node:util');

const ROWS = path.join(__dirname, 'rows');
const RESULTS = path.join(__dirname, 'results');
const DEFAULT_ROW = 'lock';

async function main() {
  const known = fs.readdirSync(ROWS).map((file) => path.basename(file, '.js'));
  const { positionals, values } = parseArgs({
    allowPositionals: true,
    options: {
      quick: { type: 'boolean', default: false },
      rounds: { type: 'string' },
      only: { type: 'string' },
      help: { type: 'boolean', default: false },
    },
  });
  const names = positionals.length ? positionals : [DEFAULT_ROW];
  const unknown = names.filter((name) => !known.includes(name));
  const rounds = values.rounds === undefined ? undefined : Number(values.rounds);
  if (values.help || unknown.length || !(rounds === undefined || rounds >= 1)) {
    console.log('npm run bench -- [row ...] [--quick] [--rounds N] [--only contender,contender]\n');
    for (const name of known)
      console.log(`  ${name.padEnd(8)}${require(`./rows/${name}`).summary}`);
    return values.help ? 0 : 1;
  }

  let exitCode = 0;
  for (const name of names) {
    const surroundings = describeSurroundings();
    console.log(`\n${name}: ${require(`./rows/${name}`).summary}`);
    console.log(`${surroundings.cores} x ${surroundings.cpu}, ${surroundings.system}`);
    if (surroundings.loadBefore > 0.5) {
      console.log(
        `CAUTION: the machine is busy (load ${surroundings.loadBefore}); these figures mislead.`,
      );
    }
    const { result, text, failure } = await require(`./rows/${name}`).run({
      quick: values.quick,
      rounds,
      only: values.only?.split(','),
    });
    console.log(`\n${text}`);
    if (failure) {
      console.error(`\nFAILED, ${name}: ${failure}`);
      exitCode = 1;
    }
    // Only a whole run may replace the figures that the README stands on.
    const whole = !values.quick && !values.only && !failure;
    const file = path.join(RESULTS, `${name}${whole ? '' : '.partial'}.json`);
    fs.mkdirSync(RESULTS, { recursive: true });
    fs.writeFileSync(
      file,
      `${JSON.stringify({ row: name, ...surroundings, ...result }, null, 2)}\n`,
    );
    console.log(`\nWritten to ${path.relative(process.cwd(), file)}.`);
  }
  return exitCode;
}

function describeSurroundings() {
  return {
    when: new Date().toISOString(),
    arguments: process.argv.slice(2),
    cpu: os.cpus()[0].model.trim(),
    cores: os.cpus().length,
    memoryGigabytes: Math.round(os.totalmem() / 2 ** 30),
    system: `${os.type()} ${os.release()} ${os.arch()}, Node ${process.version}`,
    loadBefore: os.loadavg()[0],
  };
}

main().then(
  (exitCode) => process.exit(exitCode),
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
