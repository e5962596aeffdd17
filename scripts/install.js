/*
 * `npm install`: sees to it that there is a native binary. Takes a prebuilt package, or a binary that is there and is
 * up to date, or builds the shipped Rust source; says in few lines what is missing when none of that works.
 * Plain Node without dependencies, because it runs before any of them is sure to be there.
 */
'use strict';

const { spawn, spawnSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const {
  binaryFile,
  isMusl,
  libraryFile,
  platformTriple,
  prebuiltPackages,
} = require('./platform.js');

const ROOT = path.join(__dirname, '..');
/** Whether this is the copy that somebody's project uses, and not a clone. */
const IS_DEPENDENCY = ROOT.split(path.sep).includes('node_modules');
const INSTALL_RUST = 'install Rust from https://rustup.rs, then run npm install again';

/** Something that the user can put right; `lines` say what and how. */
class MissingPart extends Error {
  constructor(...lines) {
    super(lines.join('\n'));
  }
}

function say(line) {
  console.log(`mongoose-lock-release: ${line}`);
}

/** Whether Node can load the binary; asked in a process of its own, which a bad binary may crash. */
function loads(file) {
  const script = 'require(process.argv[1])';
  return spawnSync(process.execPath, ['-e', script, file], { stdio: 'ignore' }).status === 0;
}

/** The name of an installed package with a working binary of this version, or undefined. */
function findPrebuilt(triple) {
  const { version } = require('../package.json');
  return prebuiltPackages(triple).find((name) => {
    try {
      // One of another version speaks another language with our JavaScript.
      if (require(`${name}/package.json`).version !== version) return false;
      return loads(require.resolve(name));
    } catch {
      return false;
    }
  });
}

/** The time of the newest file that the binary is built from, in milliseconds since 1970. */
function newestSource() {
  const files = fs
    .readdirSync(path.join(ROOT, 'src'), { recursive: true })
    .map((name) => path.join('src', name))
    .concat('build.rs', 'Cargo.toml', 'Cargo.lock');
  return Math.max(...files.map((file) => fs.statSync(path.join(ROOT, file)).mtimeMs));
}

/** Whether a binary is there that is newer than every source file and works. */
function isUpToDate(binary) {
  const found = fs.statSync(binary, { throwIfNoEntry: false });
  return found !== undefined && found.mtimeMs > newestSource() && loads(binary);
}

/** What a program prints, or undefined when there is no such program or it fails. */
function outputOf(program, ...args) {
  const { status, stdout } = spawnSync(program, args, { cwd: ROOT, encoding: 'utf8' });
  return status === 0 ? stdout : undefined;
}

/** Compares versions like 1.88.0 by their first two numbers. */
function isOlder(version, required) {
  const [major, minor] = version.split('.').map(Number);
  const [requiredMajor, requiredMinor] = required.split('.').map(Number);
  return major < requiredMajor || (major === requiredMajor && minor < requiredMinor);
}

/** Throws unless what the build needs is there; returns rustc's name of this machine. */
function checkTools() {
  if (outputOf('cargo', '--version') === undefined) {
    throw new MissingPart(
      'cargo, of the Rust toolchain, was not found or does not run.',
      `To fix it: ${INSTALL_RUST}.`,
    );
  }
  const rustc = outputOf(process.env.RUSTC || 'rustc', '-vV');
  if (rustc === undefined) {
    throw new MissingPart('cargo is here, but rustc does not run.', `To fix it: ${INSTALL_RUST}.`);
  }
  const version = /^release: (.+)$/m.exec(rustc)[1];
  const manifest = fs.readFileSync(path.join(ROOT, 'Cargo.toml'), 'utf8');
  const required = /^rust-version = "(.+)"$/m.exec(manifest)[1];
  if (isOlder(version, required)) {
    throw new MissingPart(
      `Rust ${version} is too old: ${required} or newer is needed.`,
      'To fix it: run `rustup update stable`, then npm install again.',
    );
  }
  // On Windows rustc finds Microsoft's compiler by itself, where no PATH leads; CC may hold a whole command.
  const findsItself = process.platform === 'win32' || process.env.CC;
  if (!findsItself && outputOf('cc', '--version') === undefined) {
    throw new MissingPart(
      'A C compiler and linker, `cc`, was not found.',
      'To fix it, install one, then run npm install again:',
      '  Debian, Ubuntu: apt-get install build-essential    Alpine: apk add build-base',
      '  Fedora: dnf install gcc                            macOS: xcode-select --install',
    );
  }
  return /^host: (.+)$/m.exec(rustc)[1];
}

/** Runs cargo with its messages shown; resolves to its exit code and what it printed on stdout. */
function cargo(args, env) {
  return new Promise((resolve, reject) => {
    const child = spawn('cargo', args, { cwd: ROOT, env, stdio: ['ignore', 'pipe', 'inherit'] });
    let output = '';
    child.stdout.setEncoding('utf8').on('data', (chunk) => (output += chunk));
    child.on('error', reject).on('close', (code) => resolve({ code, output }));
  });
}

/** The path of the library in cargo's messages: where it lies depends on the user's configuration of cargo. */
function builtLibrary(messages) {
  const name = libraryFile();
  return messages
    .split('\n')
    .filter((line) => line.startsWith('{'))
    .map((line) => JSON.parse(line))
    .filter((message) => message.reason === 'compiler-artifact')
    .flatMap((message) => message.filenames)
    .find((file) => path.basename(file) === name);
}

/** A process that has the old file mapped keeps it: the new one is complete before it takes the name. */
function replaceFile(from, to) {
  const draft = `${to}.${process.pid}.tmp`;
  try {
    fs.copyFileSync(from, draft);
    fs.renameSync(draft, to);
  } finally {
    fs.rmSync(draft, { force: true });
  }
}

async function build(binary) {
  const host = checkTools();
  const env = { ...process.env };
  // Rust's own musl target links statically, which cannot give a library that Node loads.
  if (isMusl()) env.RUSTFLAGS = `${env.RUSTFLAGS ?? ''} -C target-feature=-crt-static`.trim();

  // A clone keeps its target folder for the next build; a dependency must leave nothing behind. Not in the temporary
  // folder of the machine: that is often small, or nothing may be executed there, as build scripts must.
  const targetIsGiven = env.CARGO_TARGET_DIR || env.CARGO_BUILD_TARGET_DIR;
  const ownTarget = IS_DEPENDENCY && !targetIsGiven && path.join(ROOT, `target-${process.pid}`);
  if (ownTarget) env.CARGO_TARGET_DIR = ownTarget;

  say(`building from source for ${host}, which takes a few minutes`);
  try {
    const fetched = await cargo(['fetch', '--locked', '--quiet', '--target', host], env);
    if (fetched.code !== 0) {
      throw new MissingPart(
        'The Rust packages that the build needs could not be downloaded; the reason is above.',
        'To fix it: check the network (cargo uses HTTPS_PROXY, and a mirror set in ~/.cargo/config.toml),',
        'then run npm install again.',
      );
    }
    const format = '--message-format=json-render-diagnostics';
    const built = await cargo(['build', '--profile', 'source', '--locked', format], env);
    const library = built.code === 0 ? builtLibrary(built.output) : undefined;
    if (library === undefined) {
      throw new MissingPart(
        'The build failed; the reason is above.',
        'If no tool is missing there, report it with that output: it is a bug of this package.',
      );
    }
    replaceFile(library, binary);
  } finally {
    if (ownTarget) fs.rmSync(ownTarget, { recursive: true, force: true });
  }
  if (!loads(binary)) {
    throw new MissingPart(
      `What was built for ${host} cannot be loaded by this Node.js (${process.version}, ${process.arch}).`,
      'To fix it: use a Node.js and a Rust toolchain for the same machine, then run npm install again.',
    );
  }
}

async function install() {
  if (process.env.MONGOOSE_LOCK_RELEASE_SKIP_BUILD === '1') {
    say('no binary was looked for or built: MONGOOSE_LOCK_RELEASE_SKIP_BUILD is 1');
    return;
  }
  // Installed from git, npm first installs a clone of its own, to pack what is installed in the end. No binary is packed.
  if (process.env._PACOTE_NO_PREPARE_ && !IS_DEPENDENCY) return;
  const triple = platformTriple();
  if (triple === undefined) {
    throw new MissingPart(`There is no binary for ${process.platform} on ${process.arch}.`);
  }
  const prebuilt = findPrebuilt(triple);
  if (prebuilt !== undefined) {
    say(`uses the prebuilt binary of ${prebuilt}`);
    return;
  }
  const binary = path.join(ROOT, binaryFile(triple));
  if (isUpToDate(binary)) {
    say(`${path.basename(binary)} is up to date`);
    return;
  }
  const start = Date.now();
  await build(binary);
  say(`built ${path.basename(binary)} in ${Math.round((Date.now() - start) / 1000)} s`);
}

install().catch((error) => {
  const text = error instanceof MissingPart ? error.message : error.stack;
  console.error(`\nmongoose-lock-release could not be installed.\n${text}\n`);
  process.exitCode = 1;
});
