/**
 * Row `claim`: documents per second that one process gets out of a queue, one at a time and in
 * batches, and handles in its own loop. Owns the contenders' order, the rounds and the ratios.
 */
'use strict';

const { execFile } = require('node:child_process');
const path = require('node:path');
const { promisify } = require('node:util');

const { deployment } = require('../../spec/support/deployment');
const { ADDON_BINARY, buildRelease } = require('../build');
const { Comparison, goalRows, gridTable } = require('../comparison');
const { table } = require('../figures');

const LENGTHS = {
  full: { rounds: 5, warmMs: 500, measureMs: 3000 },
  quick: { rounds: 1, warmMs: 300, measureMs: 1000 },
};
const PROCESS = path.join(__dirname, '..', 'claim-process.js');
const METRIC = { key: 'perSecond', title: 'documents per second', more: true };

/** What only takes documents out of the queue; each against the loop that people write by hand. */
const CLAIMS = {
  'one-by-one': { title: 'findOneAndUpdate, Mongoose 9', documents: 10_000 },
  ours1: { title: 'Model.claim, limit 1', documents: 10_000 },
  ours10: { title: 'Model.claim, limit 10', documents: 30_000 },
  ours100: { title: 'Model.claim, limit 100', documents: 60_000, goal: 12 },
};
/** Whole loops, 100 at once: taken, handled by doing nothing, and done with. */
const LOOPS = {
  'mongo-jobs': { title: '@clipboard-health/mongo-jobs', documents: 10_000, needs: true },
  agenda: { title: 'agenda', documents: 3000, needs: true },
  loop: { title: 'Model.claims, save and release', documents: 20_000 },
};

module.exports = {
  summary: 'documents per second out of a queue, against one by one and two job queues',

  async run({ quick, rounds, only }) {
    buildRelease();
    const lengths = { ...(quick ? LENGTHS.quick : LENGTHS.full), ...(rounds && { rounds }) };
    const server = await deployment();
    try {
      const claims = await measureAll(server, CLAIMS, lengths, only);
      const loops = await measureAll(server, LOOPS, lengths, only);
      return {
        result: { lengths, claims: summary(claims, 'one-by-one'), loops: summary(loops, 'agenda') },
        text: [
          describe(claims, CLAIMS, 'one-by-one'),
          describe(loops, LOOPS, 'agenda'),
          goals(claims),
        ].join('\n\n'),
      };
    } finally {
      await server.stop();
    }
  },
};

async function measureAll(server, claimers, lengths, only) {
  const names = Object.keys(claimers).filter(
    (name) => (!only || only.includes(name)) && isInstalled(name, claimers[name]),
  );
  const measured = [];
  // The first round is thrown away; the order turns with each.
  for (let round = 0; round <= lengths.rounds; round++) {
    const turned = names.map((_, index) => names[(index + round) % names.length]);
    for (const name of turned) {
      const perSecond = await measure(server, name, claimers[name], lengths, round);
      if (round > 0) measured.push({ round, contender: name, column: 'one process', perSecond });
    }
  }
  return new Comparison(
    measured.toSorted((a, b) => names.indexOf(a.contender) - names.indexOf(b.contender)),
  );
}

async function measure(server, name, { documents }, { warmMs, measureMs }, round) {
  const database = `claim_${name.replaceAll('-', '_')}_${round}`;
  const args = [PROCESS, name, server.uriFor(database), documents, warmMs, measureMs].map(String);
  const env = { ...process.env, NAPI_RS_NATIVE_LIBRARY_PATH: ADDON_BINARY };
  try {
    const { stdout } = await promisify(execFile)(process.execPath, args, { env });
    return JSON.parse(stdout.trim().split('\n').at(-1)).perSecond;
  } finally {
    await (await server.primary()).command({ dropDatabase: 1 }, database);
  }
}

function isInstalled(name, { title, needs }) {
  if (!needs) return true;
  try {
    require.resolve(title);
    return true;
  } catch {
    console.log(`${title} is left out: npm install --prefix bench --ignore-scripts installs it`);
    return false;
  }
}

function summary(comparison, base) {
  return { figures: comparison.figures(METRIC), ratios: comparison.ratios(METRIC, base) };
}

function describe(comparison, claimers, base) {
  const titles = { titleOf: (name) => claimers[name].title, columnTitle: (column) => column };
  return [
    gridTable(METRIC.title, comparison.figures(METRIC), titles),
    gridTable(`times as many as ${claimers[base].title}`, comparison.ratios(METRIC, base), titles),
  ]
    .filter(Boolean)
    .join('\n\n');
}

function goals(comparison) {
  const ratios = comparison.ratios(METRIC, 'one-by-one');
  const rows = Object.entries(CLAIMS)
    .filter(([name, { goal }]) => goal && ratios[name])
    .flatMap(([name, { title, goal }]) => goalRows(title, { 'one process': goal }, ratios[name]));
  return rows.length ? table([['goal', '', 'median', ''], ...rows]) : '';
}
