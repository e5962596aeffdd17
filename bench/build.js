/**
 * The release builds that the benchmarks run: the addon, copied to a file of its own so that a
 * developer's debug build stays where it is, and the pure Rust loop. Owns when they are rebuilt.
 */
'use strict';

const { spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');

const ROOT = path.join(__dirname, '..');
const TARGET = path.resolve(ROOT, process.env.CARGO_TARGET_DIR ?? 'target', 'release');
const ADDON_BINARY = path.join(__dirname, '.build', 'mongoose-lock-release.node');
const EXE = process.platform === 'win32' ? '.exe' : '';
const LIMIT_BINARY = path.join(__dirname, '.build', `limit${EXE}`);

const SOURCES = ['src', 'examples/limit.rs', 'Cargo.toml', 'Cargo.lock', 'build.rs'];

/** Builds what is missing or older than its sources. Takes minutes when it has to (fat LTO). */
function buildRelease() {
  const newest = Math.max(...SOURCES.map((source) => newestChange(path.join(ROOT, source))));
  if ([ADDON_BINARY, LIMIT_BINARY].every((binary) => changedAt(binary) > newest)) return;

  const started = new Date();
  console.log('Building the addon and the Rust loop with the release profile: some minutes.');
  const cargo = spawnSync('cargo', ['build', '--release', '--lib', '--example', 'limit'], {
    cwd: ROOT,
    stdio: 'inherit',
  });
  if (cargo.error) throw cargo.error;
  if (cargo.status !== 0) throw new Error(`cargo build --release failed (${cargo.status})`);
  fs.mkdirSync(path.dirname(ADDON_BINARY), { recursive: true });
  install(path.join(TARGET, libraryName()), ADDON_BINARY, started);
  install(path.join(TARGET, 'examples', `limit${EXE}`), LIMIT_BINARY, started);
}

/** Throws unless this process has loaded the addon that it was told to load, if any, and no other one. */
function assertLoadedAsTold() {
  const told = process.env.NAPI_RS_NATIVE_LIBRARY_PATH;
  if (!told) return;
  const loaded = Object.keys(require.cache).filter(
    (file) => file.endsWith('.node') && path.basename(file).startsWith('mongoose-lock-release'),
  );
  if (loaded.length !== 1 || loaded[0] !== told) {
    throw new Error(`the addon ${told} is not what was loaded: ${loaded}`);
  }
}

// Through a new file and a rename: a process that still has the old one loaded keeps it whole. It
// is dated from the build's beginning, so that a source saved while cargo ran counts as newer.
function install(from, to, started) {
  fs.copyFileSync(from, `${to}.new`);
  fs.utimesSync(`${to}.new`, started, started);
  fs.renameSync(`${to}.new`, to);
}

function libraryName() {
  if (process.platform === 'win32') return 'mongoose_lock_release.dll';
  return `libmongoose_lock_release.${process.platform === 'darwin' ? 'dylib' : 'so'}`;
}

function newestChange(file) {
  if (!fs.statSync(file).isDirectory()) return changedAt(file);
  const inside = fs.readdirSync(file, { recursive: true });
  return Math.max(...inside.map((entry) => changedAt(path.join(file, entry))));
}

function changedAt(file) {
  return fs.statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? 0;
}

module.exports = { ADDON_BINARY, LIMIT_BINARY, assertLoadedAsTold, buildRelease };
