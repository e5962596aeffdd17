/**
 * The child process of a contender that is written in JavaScript. Owns the loop of lock+release
 * pairs and the count of them; reads orders from stdin and answers on stdout, one line each, in the
 * protocol that `contender.js` describes. Must not measure CPU: the parent does that from outside,
 * alike for JavaScript and Rust.
 *
 *   node bench/contender-process.js <contender> <uri> <collection,collection> [<settings>]
 *
 * The settings are JSON: `filter`, which documents it loads (default all), and `shuffled`, whether
 * their order is left to chance (default as they were found, collection by collection).
 */
'use strict';

const { monitorEventLoopDelay } = require('node:perf_hooks');
const readline = require('node:readline');
const { setTimeout: sleep } = require('node:timers/promises');

const LOCK_MS = 10_000;

const [name, uri, collections, settings = '{}'] = process.argv.slice(2);

function say(...words) {
  process.stdout.write(`${words.join(' ')}\n`);
}

async function run(contender, flight, warmMs, measureMs, watchDelay) {
  const { documents } = contender;
  if (documents.length < flight) throw new Error(`${flight} in flight need as many documents`);
  // Two calls are a pair. Pairs themselves end in waves, all together, when many lanes begin at once.
  let calls = 0;
  let running = true;

  async function lane(number) {
    // What no other lane touches.
    const own = documents.filter((_, index) => index % flight === number);
    for (let turn = 0; running; turn++) {
      const document = own[turn % own.length];
      const locked = await contender.lock(document, LOCK_MS);
      if (!locked) throw new Error(`a document that nobody else touches could not be locked`);
      calls++;
      const released = await contender.release(document);
      if (!released) throw new Error(`a document that was just locked could not be released`);
      calls++;
    }
  }

  async function window() {
    await sleep(warmMs);
    // Sampling each millisecond costs the event loop something, so throughput goes without it.
    const delay = watchDelay ? monitorEventLoopDelay({ resolution: 1 }) : null;
    delay?.enable();
    const callsBefore = calls;
    const start = performance.now();
    say('begin');
    await sleep(measureMs);
    const elapsed = performance.now() - start;
    delay?.disable();
    say('end', (calls - callsBefore) / 2, elapsed, delay ? delay.percentile(99) / 1e6 : 0);
    running = false;
  }

  await Promise.all([window(), ...Array.from({ length: flight }, (_, number) => lane(number))]);
  say('idle');
}

async function main() {
  const { filter = {}, shuffled = false } = JSON.parse(settings);
  const contender = await require(`./contenders/${name}`).open(uri, collections.split(','), filter);
  if (shuffled) shuffle(contender.documents);
  say('ready');
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [order, ...numbers] = line.split(' ');
    if (order !== 'run') throw new Error(`unknown order: ${line}`);
    const [flight, warmMs, measureMs, watchDelay] = numbers.map(Number);
    await run(contender, flight, warmMs, measureMs, watchDelay === 1);
  }
  await contender.close();
}

/** Fisher and Yates's: each order is equally likely. */
function shuffle(list) {
  for (let last = list.length - 1; last > 0; last--) {
    const other = Math.floor(Math.random() * (last + 1));
    [list[last], list[other]] = [list[other], list[last]];
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
