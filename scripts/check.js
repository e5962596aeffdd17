/*
 * `npm run check`: everything that can be judged without a MongoDB, one line each, stopped by the first failure.
 * What cargo does and what Node does run side by side. It changes no file of the tree outside of `target/`.
 * A tool that the machine lacks is named as skipped; with REQUIRE_TOOLS=1 it fails.
 */
'use strict';

const { spawn } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const { SIZE_LIMIT, complaintsAbout } = require('./shipped.js');

const ROOT = path.join(__dirname, '..');
const isContinuousIntegration = process.env.CI === 'true';
const running = new Set();
let failed = false;

/** Why a step failed: what the tool printed. */
class StepFailure extends Error {}
/** Why a step could not run: what the machine lacks. */
class StepSkipped extends Error {}

/** Runs a program to its end; resolves to its exit code and all that it printed, in order. */
function run(program, args, env = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, {
      cwd: ROOT,
      env: { ...process.env, ...(!process.stdout.isTTY && { NO_COLOR: '1' }), ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
      // A group of its own, so that what the program started can be ended with it.
      detached: true,
    });
    const output = { all: '', stdout: '' };
    child.stdout.setEncoding('utf8').on('data', (chunk) => {
      output.all += chunk;
      output.stdout += chunk;
    });
    child.stderr.setEncoding('utf8').on('data', (chunk) => (output.all += chunk));
    running.add(child);
    child.on('error', reject).on('close', (code) => {
      running.delete(child);
      resolve({ code, ...output });
    });
  });
}

/** Runs a program that has to succeed; resolves to its stdout. */
async function succeed(program, args, env) {
  const { code, all, stdout } = await run(program, args, env);
  if (code !== 0) throw new StepFailure(`$ ${[program, ...args].join(' ')}\n${all}`);
  return stdout;
}

/** Runs the program that a dev dependency installed. */
async function tool(name, ...args) {
  await succeed(path.join(ROOT, 'node_modules', '.bin', name), args);
}

async function cargo(...args) {
  await succeed('cargo', args);
}

/** Licences, bans and sources always; advisories only where their database can be downloaded. */
async function denyCrates() {
  const found = await run('cargo', ['deny', '--version']);
  if (found.code !== 0) throw new StepSkipped('cargo-deny is not installed');
  await cargo('deny', '--log-level', 'error', 'check', 'bans', 'licenses', 'sources');
  const fetched = await run('cargo', ['deny', 'fetch', 'db']);
  // Not the machine's fault, so REQUIRE_TOOLS does not turn it into a failure.
  if (fetched.code !== 0) return 'advisories skipped, their database cannot be had here';
  await cargo('deny', '--log-level', 'error', 'check', '--disable-fetch', 'advisories');
}

/** What `npm pack` would ship, against the list of what may ship. */
async function packageFiles() {
  const [{ files, size }] = JSON.parse(
    await succeed('npm', ['pack', '--dry-run', '--ignore-scripts', '--json']),
  );
  const complaints = complaintsAbout(files.map((file) => file.path));
  if (size > SIZE_LIMIT)
    complaints.push(`the package has ${size} bytes; ${SIZE_LIMIT} are allowed`);
  if (complaints.length > 0) throw new StepFailure(complaints.join('\n'));
  return `${files.length} files, ${(size / 1024).toFixed(0)} KiB`;
}

/** Whether binding.js and binding.d.ts are what the Rust source gives; built beside, so that no binary is replaced. */
async function generatedFiles() {
  const folder = path.join('target', 'binding-check');
  fs.mkdirSync(path.join(ROOT, folder), { recursive: true });
  const names = ['--js', 'binding.js', '--dts', 'binding.d.ts'];
  await tool('napi', 'build', '--platform', '--output-dir', folder, ...names);
  for (const name of ['binding.js', 'binding.d.ts']) {
    await succeed('git', ['diff', '--no-index', '--exit-code', name, path.join(folder, name)]);
  }
}

async function rustDocumentation() {
  // A binary has no public items: links between private ones are all that there is.
  const env = { RUSTDOCFLAGS: '-D warnings -A rustdoc::private_intra_doc_links' };
  await succeed('cargo', ['doc', '--locked', '--no-deps', '--document-private-items'], env);
}

async function rustTests() {
  // `napi build` always names the target, and cargo keeps what is built so apart: named here too, it is built once.
  const host = /^host: (.+)$/m.exec(await succeed('rustc', ['-vV']))[1];
  const output = await succeed('cargo', ['test', '--locked', '--target', host]);
  const counts = [...output.matchAll(/^test result: .*? (\d+) passed/gm)];
  return `${counts.reduce((sum, [, passed]) => sum + Number(passed), 0)} passed`;
}

/** The steps by their names; what a step returns is a remark for its line. */
const RUST_STEPS = {
  'cargo fmt': () => cargo('fmt', '--check'),
  'cargo clippy': () => cargo('clippy', '--locked', '--all-targets', '--', '-D', 'warnings'),
  'cargo doc': rustDocumentation,
  'cargo test': rustTests,
  ...(isContinuousIntegration && { 'generated files': generatedFiles }),
  'cargo deny': denyCrates,
};

const NODE_STEPS = {
  prettier: () => tool('prettier', '--check', '--log-level', 'warn', '.'),
  oxlint: () => tool('oxlint', '--deny-warnings'),
  'types, Mongoose 9': () => tool('tsc', '-p', 'spec/types'),
  'types, Mongoose 8': () => tool('tsc', '-p', 'spec/types/tsconfig.mongoose8.json'),
  'package files': packageFiles,
};

function report(name, start, remark) {
  const seconds = ((Date.now() - start) / 1000).toFixed(1).padStart(6);
  console.log(`${seconds} s  ${name}${remark ? `: ${remark}` : ''}`);
}

/** Ends what runs, once: the other lane's result does not matter any more. */
function fail(text) {
  if (failed) return;
  failed = true;
  process.exitCode = 1;
  console.error(`\n${text}`);
  for (const child of running) process.kill(-child.pid, 'SIGKILL');
}

/** Runs steps one after the other, as long as none has failed anywhere. */
async function runSteps(steps) {
  for (const [name, step] of Object.entries(steps)) {
    if (failed) return;
    const start = Date.now();
    try {
      const remark = await step();
      if (failed) return;
      report(name, start, remark);
    } catch (error) {
      if (failed) return;
      if (error instanceof StepSkipped && process.env.REQUIRE_TOOLS !== '1') {
        report(name, start, `skipped: ${error.message}`);
        continue;
      }
      report(name, start, 'FAILED');
      fail(
        error instanceof StepFailure || error instanceof StepSkipped ? error.message : error.stack,
      );
    }
  }
}

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, () => fail(`ended by ${signal}`));
}
runSteps(RUST_STEPS);
runSteps(NODE_STEPS);
