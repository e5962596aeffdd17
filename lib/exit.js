/*
 * Owns the release at the end of the process: one listener of Node's 'exit' event, however often this library is loaded. A
 * worker's end is the native side's to notice.
 */
'use strict';

const { isMainThread } = require('node:worker_threads');
const { releaseKept } = require('./client');

/** Shared by all copies of the library in this process, as after a reset of a test runner's modules. */
const RELEASES = Symbol.for('mongoose-lock-release.releasesAtExit');

let isRegistered = false;
let limitMs = 0;

/** Sees to it that the locks that are kept alive are released at exit; the longest time asked for counts. */
function releaseAtExit(exitTimeoutMs) {
  limitMs = Math.max(limitMs, exitTimeoutMs);
  if (isRegistered || !isMainThread) return;
  isRegistered = true;
  if (!process[RELEASES]) {
    Object.defineProperty(process, RELEASES, { value: new Set() });
    process.on('exit', () => {
      for (const release of process[RELEASES]) release();
    });
  }
  process[RELEASES].add(() => releaseKept(limitMs));
}

module.exports = { releaseAtExit };
