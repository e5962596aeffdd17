/*
 * The package as users get it: what the tarball holds, that it installs into an empty project with every Mongoose,
 * by a prebuilt binary or by a build from source, and what it says when neither is possible. The one spec that
 * requires the plugin by its name, and always in a process and a project of their own.
 */
'use strict';

const assert = require('node:assert/strict');
const { execFile, spawn } = require('node:child_process');
const { once } = require('node:events');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { promisify } = require('node:util');
const platform = require('../scripts/platform.js');
const { SIZE_LIMIT, complaintsAbout } = require('../scripts/shipped.js');
const { deployment } = require('./support/deployment.js');
const { findExecutable } = require('./support/tools.js');

const ROOT = path.join(__dirname, '..');
const NAME = 'mongoose-lock-release';
const { version } = require('../package.json');
const TRIPLE = platform.platformTriple();
const BINARY = path.join(ROOT, platform.binaryFile(TRIPLE));
const INSTALL_MS = 5 * 60_000;
const BUILD_MS = 15 * 60_000;

/** What the README's first lines do, as a program of a user's. */
const USE = `
const mongoose = require('mongoose');
const lockRelease = require('${NAME}');
const schema = new mongoose.Schema({ customer: String });
schema.plugin(lockRelease);
const Invoice = mongoose.model('Invoice', schema);
(async () => {
  await mongoose.connect(process.argv[2]);
  const invoice = await Invoice.create({ customer: 'ada' });
  const locked = await invoice.lock(60000);
  const refused = await invoice.lock(60000);
  const released = await invoice.release();
  const again = await (await Invoice.findById(invoice._id)).lock(60000);
  const answers = [locked, refused, released, again].map((document) => document && document.customer);
  console.log(JSON.stringify({ mongoose: mongoose.version, answers }));
  await mongoose.disconnect();
})();
`;

const USE_ESM = `
import lockRelease, { LockError } from '${NAME}';
console.log(typeof lockRelease, lockRelease.LockError === LockError);
`;

const USE_TYPES = `
import { model, Schema } from 'mongoose';
import lockRelease, { type LockReleaseMethods } from '${NAME}';
const schema = new Schema({ customer: String }, { methods: {} as LockReleaseMethods });
schema.plugin(lockRelease);
export const locked: Promise<{ customer?: string | null } | null> = new (model('A', schema))().lock(5);
// @ts-expect-error: milliseconds are a number
new (model('A', schema))().lock('5');
`;

let scratch;
let tarball;
let database;

/** The environment of a user's shell: what npm tells the scripts of this package is none of another's business. */
function userEnvironment(changes) {
  const env = { ...process.env, ...changes };
  for (const name of Object.keys(env)) {
    if (/^npm_(command|execpath|lifecycle|package|config_local_prefix)/i.test(name))
      delete env[name];
    if (env[name] === undefined) delete env[name];
  }
  return env;
}

/** Runs a program to its end; resolves to its exit code and what it printed. */
async function run(program, args, { cwd, env }) {
  const child = spawn(program, args, { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (chunk) => (output += chunk));
  }
  const [code] = await once(child, 'close');
  return { code, output };
}

async function succeed(program, args, options) {
  const { code, output } = await run(program, args, options);
  assert.equal(code, 0, `${program} ${args.join(' ')} ended with ${code}:\n${output}`);
  return output;
}

/** Packs a folder into the scratch folder; resolves to the tarball's path. */
async function pack(folder) {
  const args = ['pack', '--ignore-scripts', '--json', '--pack-destination', scratch];
  const { stdout } = await promisify(execFile)('npm', args, {
    cwd: folder,
    env: userEnvironment(),
  });
  return path.join(scratch, JSON.parse(stdout)[0].filename);
}

/** An empty project. */
function makeProject() {
  const project = fs.mkdtempSync(path.join(scratch, 'project-'));
  fs.writeFileSync(path.join(project, 'package.json'), '{ "private": true }\n');
  return project;
}

function installedFolder(project) {
  return path.join(project, 'node_modules', NAME);
}

/** `npm install` of tarballs and names; resolves to exit code and output, the install script's included. */
function npmInstall(project, packages, env) {
  const options = ['--foreground-scripts', '--no-audit', '--no-fund', '--prefer-offline'];
  return run('npm', ['install', ...options, ...packages], {
    cwd: project,
    env: userEnvironment(env),
  });
}

/** An installed package without any binary. */
async function installWithoutBinary(packages = []) {
  const project = makeProject();
  const { code, output } = await npmInstall(project, [tarball, ...packages], {
    MONGOOSE_LOCK_RELEASE_SKIP_BUILD: '1',
  });
  assert.equal(code, 0, output);
  assert.match(output, /MONGOOSE_LOCK_RELEASE_SKIP_BUILD is 1/);
  return project;
}

/** The very release of one major version of Mongoose that the other specs run with. */
function mongooseRelease(major) {
  return `mongoose@${require(`mongoose${major}/package.json`).version}`;
}

/** Runs a user's program in the project and checks that it locked and released, and ended by itself. */
async function useIn(project, major) {
  fs.writeFileSync(path.join(project, 'use.js'), USE);
  const uri = database.uriFor(`package_${path.basename(project).replaceAll('-', '_')}`);
  const output = await succeed(process.execPath, ['use.js', uri], {
    cwd: project,
    env: userEnvironment(),
  });
  const result = JSON.parse(output.trim().split('\n').at(-1));
  assert.equal(result.mongoose.split('.')[0], major);
  assert.deepEqual(result.answers, ['ada', null, 'ada', 'ada']);
}

/** A PATH with these programs alone. */
function pathWith(...programs) {
  const folder = fs.mkdtempSync(path.join(scratch, 'path-'));
  for (const program of programs) {
    const file = program === 'node' ? process.execPath : findExecutable(program);
    fs.symlinkSync(file, path.join(folder, program));
  }
  return folder;
}

/** Runs the install script of an installed package, as `npm rebuild` would. */
function runInstallScript(project, env) {
  return run(process.execPath, ['scripts/install.js'], {
    cwd: installedFolder(project),
    env: userEnvironment({ CARGO_TARGET_DIR: undefined, CC: undefined, ...env }),
  });
}

/** A failure has to be short, without a stack, and say what is missing and what to do. */
function assertRefusal({ code, output }, ...patterns) {
  assert.equal(code, 1, output);
  for (const pattern of patterns) assert.match(output, pattern);
  assert.ok(output.trim().split('\n').length <= 12, `too many lines:\n${output}`);
  assert.doesNotMatch(output, /\n\s+at /);
}

/** Packs the real binary as the package that binding.js looks for on this platform. */
async function packPrebuilt(packageVersion) {
  const folder = fs.mkdtempSync(path.join(scratch, 'prebuilt-'));
  const file = path.basename(BINARY);
  fs.copyFileSync(BINARY, path.join(folder, file));
  const manifest = {
    name: `${NAME}-${TRIPLE}`,
    version: packageVersion,
    main: file,
    files: [file],
    os: [process.platform],
    cpu: [process.arch],
  };
  fs.writeFileSync(path.join(folder, 'package.json'), JSON.stringify(manifest));
  return pack(folder);
}

/**
 * Building everything takes minutes. It is done with PACKAGE_BUILD=1; else only this package itself is built, with
 * the crates that `npm install` has compiled here; where it has not (a prebuilt binary, a debug build), not at all.
 */
function targetForBuild(context) {
  if (process.env.PACKAGE_BUILD === '1') return undefined;
  const target = process.env.CARGO_TARGET_DIR ?? path.join(ROOT, 'target');
  if (fs.existsSync(path.join(target, 'source', 'deps'))) return target;
  if (process.env.REQUIRE_TOOLS === '1') throw new Error(`${target} has no build from npm install`);
  return context.skip();
}

describe('The package', function () {
  this.timeout(INSTALL_MS);

  before(async () => {
    assert.ok(fs.existsSync(BINARY), `${path.basename(BINARY)} has to be built first`);
    scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'mongoose-lock-release-package-'));
    tarball = await pack(ROOT);
    database = await deployment();
  });

  after(async () => {
    await database?.stop();
    if (scratch) fs.rmSync(scratch, { recursive: true, force: true });
  });

  describe('the tarball', () => {
    it('holds what it has to and nothing of specs, benchmarks or build folders', async () => {
      const listed = await succeed('tar', ['-tzf', tarball], { env: process.env });
      const files = listed.trim().split('\n');
      assert.ok(files.every((file) => file.startsWith('package/')));
      assert.deepEqual(complaintsAbout(files.map((file) => file.slice('package/'.length))), []);
    });

    it('is small', () => {
      const { size } = fs.statSync(tarball);
      console.log(`      ${path.basename(tarball)} has ${(size / 1024).toFixed(0)} KiB`);
      assert.ok(size < SIZE_LIMIT);
    });
  });

  describe('the names of binaries', () => {
    it('are those that binding.js looks for', () => {
      const binding = fs.readFileSync(path.join(ROOT, 'binding.js'), 'utf8');
      const machines = [
        ...['x64', 'arm64', 'arm', 'loong64', 'riscv64', 'ppc64', 's390x'].flatMap((arch) => [
          { platform: 'linux', arch, musl: false },
          { platform: 'linux', arch, musl: true },
        ]),
        ...['x64', 'arm64', 'ia32'].map((arch) => ({ platform: 'win32', arch })),
        ...['x64', 'arm64'].map((arch) => ({ platform: 'darwin', arch })),
        ...['x64', 'arm64', 'ppc64'].map((arch) => ({ platform: 'freebsd', arch })),
      ];
      for (const machine of machines) {
        const triple = platform.platformTriple(machine);
        const names = [`./${platform.binaryFile(triple)}`, ...platform.prebuiltPackages(triple)];
        for (const name of names) {
          assert.ok(binding.includes(`require('${name}')`), `${JSON.stringify(machine)}: ${name}`);
        }
      }
      assert.equal(platform.platformTriple({ platform: 'sunos', arch: 'x64' }), undefined);
    });
  });

  describe('in an empty project', () => {
    for (const major of ['6', '7', '8', '9']) {
      it(`works with Mongoose ${major}`, async () => {
        const project = await installWithoutBinary([mongooseRelease(major)]);
        fs.copyFileSync(BINARY, path.join(installedFolder(project), path.basename(BINARY)));
        await useIn(project, major);
      });
    }

    it('can be imported from an ES module and is typed', async () => {
      const project = await installWithoutBinary([mongooseRelease('9')]);
      fs.copyFileSync(BINARY, path.join(installedFolder(project), path.basename(BINARY)));
      fs.writeFileSync(path.join(project, 'use.mjs'), USE_ESM);
      const env = userEnvironment();
      const output = await succeed(process.execPath, ['use.mjs'], { cwd: project, env });
      assert.equal(output.trim(), 'function true');

      const options = ['--noEmit', '--strict', '--skipLibCheck', '--module', 'node16'];
      const types = ['--types', 'node', '--typeRoots', path.join(ROOT, 'node_modules', '@types')];
      const compiler = path.join(ROOT, 'node_modules', '.bin', 'tsc');
      for (const file of ['use-types.mts', 'use-types.ts']) {
        fs.writeFileSync(path.join(project, file), USE_TYPES);
        await succeed(compiler, [...options, '--esModuleInterop', ...types, file], {
          cwd: project,
          env,
        });
      }
    });
  });

  describe('with a prebuilt binary package', () => {
    it('installs without cargo and works', async () => {
      const project = makeProject();
      const packages = [tarball, await packPrebuilt(version), mongooseRelease('9')];
      const { code, output } = await npmInstall(project, packages, {
        PATH: pathWith('node', 'npm', 'sh'),
      });
      assert.equal(code, 0, output);
      assert.match(output, new RegExp(`uses the prebuilt binary of ${NAME}-${TRIPLE}`));
      assert.ok(!fs.existsSync(path.join(installedFolder(project), path.basename(BINARY))));
      await useIn(project, '9');
    });

    it('does not take one of another version', async () => {
      const project = makeProject();
      const packages = [tarball, await packPrebuilt('0.9.0')];
      const { code, output } = await npmInstall(project, packages, {
        PATH: pathWith('node', 'npm', 'sh'),
      });
      assert.notEqual(code, 0, output);
      assert.match(output, /cargo, of the Rust toolchain, was not found/);
    });
  });

  describe('built from source', function () {
    this.timeout(BUILD_MS);

    it('works, and leaves nothing of the build behind', async function () {
      const target = targetForBuild(this);
      const project = makeProject();
      // A project that is a Rust workspace must not claim the package for a member.
      fs.writeFileSync(path.join(project, 'Cargo.toml'), '[workspace]\n');
      const { code, output } = await npmInstall(project, [tarball, mongooseRelease('9')], {
        CARGO_TARGET_DIR: target,
      });
      assert.equal(code, 0, output);
      assert.match(output, new RegExp(`built ${path.basename(BINARY)} in \\d+ s`));
      const left = fs.readdirSync(installedFolder(project));
      assert.deepEqual(
        left.filter((name) => /target|\.tmp$/.test(name)),
        [],
      );
      await useIn(project, '9');
    });
  });

  describe('with a binary that is there', () => {
    it('keeps it as long as no source file is newer', async () => {
      const project = await installWithoutBinary();
      const binary = path.join(installedFolder(project), path.basename(BINARY));
      fs.copyFileSync(BINARY, binary);
      const kept = await runInstallScript(project, { PATH: pathWith('node') });
      assert.equal(kept.code, 0, kept.output);
      assert.match(kept.output, /is up to date/);

      const later = new Date(fs.statSync(binary).mtimeMs + 60_000);
      fs.utimesSync(path.join(installedFolder(project), 'src', 'lib.rs'), later, later);
      const refused = await runInstallScript(project, { PATH: pathWith('node') });
      assertRefusal(refused, /cargo, of the Rust toolchain, was not found/);
    });

    it('does not keep one that Node.js cannot load', async () => {
      const project = await installWithoutBinary();
      const binary = path.join(installedFolder(project), path.basename(BINARY));
      fs.writeFileSync(binary, fs.readFileSync(BINARY).subarray(0, 4096));
      const refused = await runInstallScript(project, { PATH: pathWith('node') });
      assertRefusal(refused, /cargo, of the Rust toolchain, was not found/);
    });
  });

  describe('says what is missing and what to do', () => {
    let project;

    before(async () => {
      project = await installWithoutBinary();
    });

    it('when there is no cargo', async () => {
      const refused = await runInstallScript(project, { PATH: pathWith('node') });
      assertRefusal(refused, /cargo, of the Rust toolchain, was not found/, /https:\/\/rustup\.rs/);
    });

    it('when there is no C compiler', async () => {
      const refused = await runInstallScript(project, { PATH: pathWith('cargo', 'rustc') });
      assertRefusal(refused, /`cc`, was not found/, /build-essential/, /xcode-select --install/);
    });

    it('when Rust is too old', async () => {
      const manifest = path.join(installedFolder(project), 'Cargo.toml');
      const text = fs.readFileSync(manifest, 'utf8');
      fs.writeFileSync(manifest, text.replace(/^rust-version = .*$/m, 'rust-version = "9.99"'));
      try {
        const refused = await runInstallScript(project);
        assertRefusal(refused, /Rust \d+\.\d+\S* is too old: 9\.99 or newer/, /rustup update/);
      } finally {
        fs.writeFileSync(manifest, text);
      }
    });

    it('when the Rust packages cannot be downloaded', async () => {
      const refused = await runInstallScript(project, {
        CARGO_HOME: fs.mkdtempSync(path.join(scratch, 'cargo-home-')),
        CARGO_NET_OFFLINE: 'true',
      });
      assert.equal(refused.code, 1, refused.output);
      assert.match(refused.output, /could not be downloaded/);
      assert.match(refused.output, /check the network/);
      const left = fs.readdirSync(installedFolder(project));
      assert.ok(!left.some((name) => name.startsWith('target')), `left behind: ${left}`);
    });
  });
});
