'use strict';
/*
 * The journals of the fault suite: one file per process, one JSON object per line, written at once, so that a killed
 * process leaves everything behind that it did. Moments are milliseconds of the machine's monotonic clock, which all
 * processes share and which no wrong clock touches. It judges nothing.
 */

const fs = require('node:fs');
const path = require('node:path');

/** The present moment. */
function moment() {
  return Number(process.hrtime.bigint() / 1000n) / 1000;
}

class Journal {
  #file;

  constructor(file) {
    this.#file = fs.openSync(file, 'a');
  }

  write(entry) {
    fs.writeSync(this.#file, `${JSON.stringify(entry)}\n`);
  }

  close() {
    fs.closeSync(this.#file);
  }
}

/** All journals of a directory as `{ name, entries }`; a last line that was cut off by a kill does not count. */
function readJournals(directory) {
  return fs
    .readdirSync(directory)
    .filter((name) => name.endsWith('.jsonl'))
    .map((name) => {
      const lines = fs.readFileSync(path.join(directory, name), 'utf8').split('\n');
      lines.pop();
      return { name, entries: lines.map((line) => JSON.parse(line)) };
    });
}

module.exports = { Journal, moment, readJournals };
