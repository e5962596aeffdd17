/**
 * The child process of one claimer of the row `claim`: fills a queue, empties it for a while, and
 * prints how many documents it had per second. Owns the window; what a claimer does is its own.
 *
 *   node bench/claim-process.js <claimer> <uri> <documents> <warm-up ms> <measured ms>
 */
'use strict';

const { setTimeout: sleep } = require('node:timers/promises');

const [name, uri, documents, warmMs, measureMs] = process.argv.slice(2);

async function main() {
  const claimer = await require(`./claimers/${name}`)(uri, Number(documents));
  let count = 0;
  let begin;
  const begun = new Promise((resolve) => {
    begin = resolve;
  });
  const running = claimer.run((more) => {
    count += more;
    begin();
  });
  // Whatever goes wrong in the loop ends the measurement.
  running.catch((error) => {
    console.error(error);
    process.exit(1);
  });
  // Some take seconds to get going.
  await begun;
  await sleep(Number(warmMs));
  const start = performance.now();
  const before = count;
  await sleep(Number(measureMs));
  const perSecond = ((count - before) / (performance.now() - start)) * 1000;
  if (count >= 0.95 * Number(documents)) throw new Error(`the queue was too short for "${name}"`);
  console.log(JSON.stringify({ perSecond }));
  // Some of the claimers cannot be stopped in the middle of a queue.
  process.exit(0);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
