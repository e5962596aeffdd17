/*
 * Command-line tools that some specs need (openssl, faketime, ...) and that a machine may lack. It alone decides
 * whether a missing tool makes a spec pending or, with REQUIRE_TOOLS=1, failed. It must not install anything.
 */
'use strict';

const fs = require('node:fs');
const path = require('node:path');

/** The path of the executable `name` on the PATH, or undefined. */
function findExecutable(name) {
  const names = process.platform === 'win32' ? [`${name}.exe`, name] : [name];
  for (const directory of (process.env.PATH || '').split(path.delimiter)) {
    for (const candidate of names) {
      const file = path.join(directory || '.', candidate);
      try {
        fs.accessSync(file, fs.constants.X_OK);
        if (fs.statSync(file).isFile()) return file;
      } catch {
        // Not here: the next directory of the PATH may have it.
      }
    }
  }
  return undefined;
}

/**
 * Makes the running spec or hook pending if the tool `name` is missing. Call it first in a `before` or an `it`
 * with that function's `this`. With REQUIRE_TOOLS=1, where every tool has to be there, it throws instead.
 */
function requireTool(context, name) {
  const file = findExecutable(name);
  if (file) return file;
  if (process.env.REQUIRE_TOOLS === '1') {
    throw new Error(`${name} is not installed, and REQUIRE_TOOLS=1 says that it must be`);
  }
  const runnable = context.test || context.currentTest;
  if (runnable) runnable.title += ` (needs ${name}, which is not installed)`;
  console.error(`pending: ${name} is not installed`);
  return context.skip();
}

module.exports = { findExecutable, requireTool };
